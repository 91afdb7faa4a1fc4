// The training run.
#pragma once

#include <string>
#include <vector>

namespace ingot {

struct TrainOptions {
    std::string config_file;
    std::vector<std::string> overrides;  // "section.key=value"
    // "none": a run folder with checkpoints is refused. "auto": goes on from the newest that verifies, or starts anew
    // where there is none. Else the path of a step folder, or of a run folder, to go on from.
    std::string resume = "none";
    bool is_dry_run = false;  // prints the plan and stops
};

// Trains to the end, until a signal or max_minutes. Returns the exit code; throws Error.
int train(const TrainOptions& options);

}  // namespace ingot
