#include "src/bench/memory.h"

namespace ingot {

Tensor BenchMemory::tensor(DType dtype, std::initializer_list<int64_t> shape) {
    Tensor result = Tensor::contiguous(nullptr, dtype, shape, device_.kind());
    memory_.push_back(device_.allocate(static_cast<size_t>(result.bytes())));
    result.data = memory_.back().get();
    return result;
}

DType dtype_of(const std::string& name) {
    for (const DType candidate : {DType::f32, DType::bf16, DType::f16})
        if (name == name_of(candidate)) return candidate;
    throw UserError(join("--dtype is fp32, bf16 or fp16, not ", name));
}

}  // namespace ingot
