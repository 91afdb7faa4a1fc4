#include "kernels/cuda/context.h"
#include "kernels/step.h"

namespace ingot {

namespace {

// The settings travel in the launch itself: there is no staging buffer that the next step could overwrite too early.
__global__ void step_begin_kernel(StepBlock* block, const __grid_constant__ StepSettings settings) {
    block->settings = settings;
    block->sums = StepSums{};
}

__global__ void step_decide_kernel(StepBlock* block) {
    StepBlock local = *block;
    decide_step(local);
    block->state = local.state;
    block->decision = local.decision;
}

}  // namespace

void step_begin_cuda(const Device& device, StepBlock* block, const StepSettings& settings) {
    step_begin_kernel<<<1, 1, 0, device.context().stream>>>(block, settings);
    CUDA_CHECK_LAUNCH("step_begin");
}

void step_decide_cuda(const Device& device, StepBlock* block) {
    step_decide_kernel<<<1, 1, 0, device.context().stream>>>(block);
    CUDA_CHECK_LAUNCH("step_decide");
}

}  // namespace ingot
