// The training run.
#pragma once

#include <string>
#include <vector>

namespace ingot {

struct TrainOptions {
    std::string config_file;
    std::vector<std::string> overrides;  // "section.key=value"
    std::string resume = "none";  // auto, none or a checkpoint's folder; with none a run that has some is refused
    bool is_dry_run = false;
};

// Trains to the end, or until a signal. Returns the exit code; throws Error.
int train(const TrainOptions& options);

}  // namespace ingot
