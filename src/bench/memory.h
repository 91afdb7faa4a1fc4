// Memory and types of the tensors that benchmarks measure.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/device.h"

namespace ingot {

// The memory of one measurement's tensors, which is freed by clear() or with this object.
class BenchMemory {
  public:
    explicit BenchMemory(const Device& device) : device_(device) {}
    // Returns a contiguous tensor with undefined contents.
    Tensor tensor(DType dtype, std::initializer_list<int64_t> shape);
    size_t num_tensors() const { return memory_.size(); }
    void clear() { memory_.clear(); }

  private:
    Device device_;
    std::vector<std::shared_ptr<void>> memory_;
};

// Returns the type that the option --dtype names. Throws UserError for any but fp32, bf16 and fp16.
DType dtype_of(const std::string& name);

}  // namespace ingot
