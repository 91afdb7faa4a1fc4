#include "kernels/step.h"

namespace ingot {

void step_begin(const Device& device, StepBlock* block, const StepSettings& settings) {
    if (!device.is_cpu()) return step_begin_cuda(device, block, settings);
    block->settings = settings;
    block->sums = StepSums{};
}

void step_decide(const Device& device, StepBlock* block) {
    if (!device.is_cpu()) return step_decide_cuda(device, block);
    decide_step(*block);
}

}  // namespace ingot
