// What is not as it was, where a run goes on from a checkpoint: whether it has the bits of an uninterrupted one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/device.h"
#include "src/base/console.h"
#include "src/checkpoint/checkpoint.h"
#include "src/config/config.h"
#include "src/tokenizer/tokenizer.h"
#include "src/train/training_data.h"

namespace ingot {

class Resume {
  public:
    // Says on the console what the config changes of the checkpoint's. Throws UserError for what a resumed run cannot
    // change. The arguments outlive this; `tokenizer` may be null.
    Resume(const Checkpoint& checkpoint, const Config& config, Tokenizer* tokenizer, const Console& console);
    // Says from where the run goes on, what of data, device and libraries is another, and what that makes of the bits.
    // `training` is what the checkpoint held; the data go on after it.
    void describe(const TrainingState& training, const Device& device, int64_t num_ranks, TrainingData* data);

  private:
    const Checkpoint& checkpoint_;
    const Config& config_;
    const Console& console_;
    std::vector<std::string> differences_;  // that the bits depend on
};

}  // namespace ingot
