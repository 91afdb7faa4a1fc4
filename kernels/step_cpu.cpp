#include "kernels/step.h"

namespace ingot {

void step_begin(const Device& device, StepBlock* block, const StepSettings& settings) {
    INGOT_DISPATCH(device, block->settings = settings;
                   block->sums = StepSums{}, step_begin_cuda(device, block, settings));
}

void step_decide(const Device& device, StepBlock* block) {
    INGOT_DISPATCH(device, decide_step(*block), step_decide_cuda(device, block));
}

}  // namespace ingot
