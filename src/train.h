// The training run.
#pragma once

#include <string>
#include <vector>

namespace ingot {

struct TrainOptions {
    std::string config_file;
    std::vector<std::string> overrides;  // "section.key=value"
    bool resumes = false;                // --resume auto; otherwise a folder with checkpoints is refused
};

// Trains to the end, or until a signal. Returns the exit code; throws Error.
int train(const TrainOptions& options);

}  // namespace ingot
