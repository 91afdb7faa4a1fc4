// A StepBlock in the memory of a device, for tests.
#pragma once

#include "kernels/core/step.h"
#include "tests/support/tensors.h"

namespace ingot::test {

class StepOn {
  public:
    StepOn(const Device& device, const StepBlock& step) : device_(device), bytes_(device, DType::u8, {sizeof step}) {
        write(step);
    }
    void write(StepBlock step) const { device_.copy(bytes_, Tensor::contiguous(&step, DType::u8, {sizeof step})); }
    StepBlock* get() const { return static_cast<StepBlock*>(bytes_.tensor().data); }
    StepBlock read() const {
        StepBlock result;
        device_.copy(Tensor::contiguous(&result, DType::u8, {sizeof result}), bytes_);
        return result;
    }

  private:
    Device device_;
    Buffer bytes_;
};

}  // namespace ingot::test
