// The training run.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace ingot {

// Steps first to last, both included; none if first is 0.
struct StepRange {
    int64_t first = 0, last = 0;
    bool is_empty() const { return first == 0; }
    bool contains(int64_t step) const { return !is_empty() && first <= step && step <= last; }
};

struct TrainOptions {
    std::string config_file;
    std::vector<std::string> overrides;  // "section.key=value"
    // "none": a run folder with checkpoints is refused. "auto": goes on from the newest that verifies, or starts anew
    // where there is none. Else the path of a step folder, or of a run folder, to go on from.
    std::string resume = "none";
    bool is_dry_run = false;             // prints the plan and stops
    std::optional<int64_t> num_ranks;    // --gpus; not given: what start_ranks.h says
    std::vector<std::string> arguments;  // of this program, for the ranks that it starts
    StepRange profile;                   // what a profiler records: these steps run without graphs. CUDA only
};

// Trains to the end, until a signal or max_minutes. Returns the exit code; throws Error.
int train(const TrainOptions& options);

}  // namespace ingot
