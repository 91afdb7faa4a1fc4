// What the launches of all attention kernels share.
#pragma once

#include <mutex>
#include <type_traits>

#include "kernels/cuda/context.h"

namespace ingot {

constexpr int64_t kMaxTokens = int64_t{1} << 30;  // so that 32-bit indices may run a tile past the end
constexpr int64_t kMaxHeads = 65535;              // the most blocks along the grid's second axis
constexpr int kMaxGpus = 64;                      // of one host
constexpr size_t kMostSharedBytes = 99 * 1024;    // that every GPU since sm_80 gives to a block

// Allows a kernel more shared memory than the 48 KB that it has unasked: once on each GPU.
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

// Every head size that is compiled: kPlainHeadSizes.
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

// A 16-bit element type and whether there is ALiBi, as constants: four instantiations.
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
