// The decision of an optimizer step, taken where the StepBlock lives (core/step.h has the arithmetic).
#pragma once

#include "kernels/core/device.h"
#include "kernels/core/step.h"

namespace ingot {

// Opens a step: writes `settings` into the block and zeroes its sums; on CUDA in stream order.
void step_begin(const Device&, StepBlock* block, const StepSettings& settings);

// Reads the sums and settings, updates the state and writes the decision.
void step_decide(const Device&, StepBlock* block);

// The CUDA twins.
void step_begin_cuda(const Device&, StepBlock* block, const StepSettings& settings);
void step_decide_cuda(const Device&, StepBlock* block);

}  // namespace ingot
