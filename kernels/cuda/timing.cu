#include "kernels/cuda/timing.h"

#include "kernels/cuda/context.h"

namespace ingot {

namespace {

constexpr int kThreads = 256;

// A block copies kUnroll * kThreads vectors; a thread's loads are all in flight before its first store.
constexpr int kUnroll = 4;
__global__ void __launch_bounds__(kThreads) copy_kernel(uint4* destination, const uint4* source, int64_t count) {
    const int64_t first = static_cast<int64_t>(blockIdx.x) * (kUnroll * kThreads) + threadIdx.x;
    uint4 values[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i)
        if (first + i * kThreads < count) values[i] = __ldcs(source + first + i * kThreads);
#pragma unroll
    for (int i = 0; i < kUnroll; ++i)
        if (first + i * kThreads < count) __stcs(destination + first + i * kThreads, values[i]);
}

}  // namespace

void copy_kernel_cuda(const Device& device, const Tensor& destination, const Tensor& source) {
    CHECK(destination.is_contiguous() && source.is_contiguous() && destination.bytes() == source.bytes() &&
              source.bytes() % 16 == 0 && source.bytes() > 0,
          "copy_kernel of ", source.describe(), " to ", destination.describe());
    const int64_t count = source.bytes() / 16, blocks = (count + kUnroll * kThreads - 1) / (kUnroll * kThreads);
    copy_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, device.context().stream>>>(
        static_cast<uint4*>(destination.data), static_cast<const uint4*>(source.data), count);
    CUDA_CHECK_LAUNCH("copy_kernel");
}

std::string describe_cuda(const Device& device) {
    const cudaDeviceProp& gpu = device.context().properties;
    int driver = 0, runtime = 0;
    CUDA_CHECK(cudaDriverGetVersion(&driver));
    CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
    return join(device.name(), ", ", gpu.multiProcessorCount, " multiprocessors, ",
                format_bytes(static_cast<size_t>(gpu.l2CacheSize)), " L2, ", format_bytes(gpu.totalGlobalMem),
                " memory; driver for CUDA ", driver / 1000, ".", driver % 1000 / 10, ", CUDA ", runtime / 1000, ".",
                runtime % 1000 / 10, ", cuBLASLt ", cublaslt_version());
}

}  // namespace ingot
