// Checkpoints: runs/NAME/checkpoints/step-00001000/ with manifest.json, model-00000-of-00001.safetensors and
// optimizer-00000-of-00001.safetensors (fp32, the names and shapes of the outer model, vocabulary unpadded).
//
// A checkpoint is committed by one rename: everything is written into step-00001000.tmp-NONCE and synced before. What a
// kill leaves behind has the wrong name and is removed by the next run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/step.h"
#include "src/config.h"
#include "src/log.h"
#include "src/model.h"
#include "src/optimizer.h"

namespace ingot {

// What a run needs besides weights and moments to go on exactly.
struct TrainingState {
    int64_t step = 0;           // optimizer steps attempted
    int64_t rows_consumed = 0;  // of the training data
    StepState state;
    StepReport report;  // of step `step`, so that the log line of that step is written by whoever goes on
};

// Writes checkpoints/step-NNNNNNNN of `run_dir` and then removes the oldest beyond `keep`. Throws Error; the older
// checkpoints are whole then.
void save_checkpoint(const std::string& run_dir, const Config& config, const TrainingState& training,
                     const Model& model, const Optimizer& optimizer);

// The committed checkpoints of a run folder, oldest first.
std::vector<std::string> list_checkpoints(const std::string& run_dir);

// Loads the newest checkpoint that is whole into model and optimizer; damaged ones are named on stderr and passed over.
// Throws UserError if there are some and none is whole, or if the newest whole one belongs to another model or seed.
TrainingState load_newest_checkpoint(const std::string& run_dir, const Config& config, const Model& model,
                                     const Optimizer& optimizer);

// Removes what killed runs left behind in `run_dir`.
void remove_unfinished_checkpoints(const std::string& run_dir);

}  // namespace ingot
