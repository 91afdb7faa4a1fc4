// The scalars of a step (kernels/core/step.h) in the device's memory, and the host's copies of them.
#pragma once

#include "kernels/core/device.h"
#include "kernels/core/step.h"

namespace ingot {

class DeviceStep {
  public:
    DeviceStep(const Device& device, const char* name, MemoryPlan* plan) : device_(device) {
        plan->add(name, DType::u8, {sizeof(StepBlock)}, &tensor_);
    }
    DeviceStep(const DeviceStep&) = delete;  // the plan knows where the tensor is
    DeviceStep& operator=(const DeviceStep&) = delete;

    // Device memory: for ops alone.
    StepBlock* get() const { return static_cast<StepBlock*>(tensor_.data); }
    const Tensor& tensor() const { return tensor_; }
    // write() and read() wait for all work that was launched.
    void write(StepBlock block) const { device_.copy(tensor_, bytes_of(&block)); }
    StepBlock read() const {
        StepBlock block;
        device_.copy(bytes_of(&block), tensor_);
        return block;
    }

    static Tensor bytes_of(StepBlock* block) { return Tensor::contiguous(block, DType::u8, {sizeof(StepBlock)}); }

  private:
    Device device_;
    Tensor tensor_;
};

}  // namespace ingot
