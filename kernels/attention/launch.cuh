// The launches of all attention kernels share these functions.
#pragma once

#include <mutex>
#include <type_traits>

#include "kernels/cuda/context.h"

namespace ingot {

constexpr int64_t kMaxTokens = int64_t{1} << 30;  // so that 32-bit indices may run a tile past the end
constexpr int64_t kMaxHeads = 65535;              // CUDA's limit of blocks along the grid's second axis
constexpr int kMaxGpus = 64;                      // in one host
constexpr size_t kMostSharedBytes = 99 * 1024;    // every GPU since sm_80 gives a block as much

// Raises a kernel's limit of dynamic shared memory above the default 48 KB, once on each GPU.
class SharedMemoryLimit {
  public:
    template <typename Kernel>
    void raise(const CudaContext& context, Kernel kernel, size_t bytes) {
        CHECK(context.index < kMaxGpus, "attention on CUDA: GPU ", context.index, ", at most ", kMaxGpus);
        std::call_once(is_raised_[context.index], [&] {
            CUDA_CHECK(
                cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
        });
    }

  private:
    std::once_flag is_raised_[kMaxGpus];
};

// Calls function(HS as a constant); every head size in kSimtHeadSizes is compiled.
template <typename Function>
void with_head_size(int64_t HS, Function&& function) {
    switch (HS) {
        case 32:
            return function(std::integral_constant<int, 32>{});
        case 64:
            return function(std::integral_constant<int, 64>{});
        case 96:
            return function(std::integral_constant<int, 96>{});
        case 128:
            return function(std::integral_constant<int, 128>{});
        default:
            CHECK(false, "attention on CUDA: head size ", HS);
    }
}

// Calls function(type, has_alibi) with both as constants: four instantiations.
template <typename Function>
void with_type_and_alibi(DType dtype, bool has_alibi, Function&& function) {
    const auto with_type = [&](auto type) {
        if (has_alibi)
            function(type, std::true_type{});
        else
            function(type, std::false_type{});
    };
    CHECK(dtype == DType::bf16 || dtype == DType::f16, "attention on tensor cores: ", name_of(dtype));
    if (dtype == DType::bf16)
        with_type(std::integral_constant<DType, DType::bf16>{});
    else
        with_type(std::integral_constant<DType, DType::f16>{});
}

inline void check_size(const Tensor& q) {
    CHECK(q.shape[0] <= kMaxTokens && q.shape[1] <= kMaxHeads, "attention on CUDA: q is ", q.describe(), ": at most ",
          kMaxTokens, " tokens and ", kMaxHeads, " heads");
}

inline const float* slopes_of(const Tensor& slopes) {
    return slopes ? slopes.get<float>() : nullptr;
}

}  // namespace ingot
