#include "kernels/core/rng.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/vec.cuh"
#include "kernels/fill.h"

namespace ingot {

namespace {

constexpr int kThreads = 256;

// These kernels run once when a run begins, so simple grid-stride loops are fast enough.
unsigned num_blocks(const CudaContext& context, int64_t count) {
    const int64_t most = int64_t{8} * context.properties.multiProcessorCount;
    return static_cast<unsigned>(std::clamp<int64_t>((count + kThreads - 1) / kThreads, 1, most));
}

template <typename T>
__global__ void fill_normal_kernel(T* out, int64_t count, FillRows rows, uint64_t seed, uint64_t stream, float std) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride)
        out[i / rows.columns * rows.row_stride + i % rows.columns] =
            from_float<T>(std * random_normal(seed, stream, static_cast<uint64_t>(i)));
}

template <typename T>
__global__ void fill_value_kernel(T* out, int64_t count, float value) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride)
        out[i] = from_float<T>(value);
}

template <typename T>
__global__ void round_to_kernel(T* out, const float* in, int64_t count) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride)
        out[i] = from_float<T>(in[i]);
}

}  // namespace

void fill_normal_cuda(const Device& device, const FillNormal& a) {
    const CudaContext& context = device.context();
    const auto fill = [&](auto element) {
        using T = decltype(element);
        fill_normal_kernel<T><<<num_blocks(context, a.out.numel()), kThreads, 0, context.stream>>>(
            a.out.get<T>(), a.out.numel(), fill_rows(a.out), a.seed, a.stream, static_cast<float>(a.std));
    };
    if (a.out.dtype == DType::e4m3)
        fill(__nv_fp8_e4m3{});
    else if (a.out.dtype == DType::e5m2)
        fill(__nv_fp8_e5m2{});
    else
        for_cuda_type(a.out.dtype, "fill_normal", fill);
    CUDA_CHECK_LAUNCH("fill_normal");
}

void fill_value_cuda(const Device& device, const FillValue& a) {
    const CudaContext& context = device.context();
    for_cuda_type(a.out.dtype, "fill_value", [&](auto element) {
        using T = decltype(element);
        fill_value_kernel<T><<<num_blocks(context, a.out.numel()), kThreads, 0, context.stream>>>(
            a.out.get<T>(), a.out.numel(), static_cast<float>(a.value));
    });
    CUDA_CHECK_LAUNCH("fill_value");
}

void round_to_cuda(const Device& device, const RoundTo& a) {
    const CudaContext& context = device.context();
    for_cuda_type(a.out.dtype, "round_to", [&](auto element) {
        using T = decltype(element);
        round_to_kernel<T><<<num_blocks(context, a.in.numel()), kThreads, 0, context.stream>>>(
            a.out.get<T>(), a.in.get<float>(), a.in.numel());
    });
    CUDA_CHECK_LAUNCH("round_to");
}

}  // namespace ingot
