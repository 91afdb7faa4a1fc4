// Adds up the rows of partial sums that the blocks of a kernel have left.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/cuda/reduce.cuh"

namespace ingot {

// out (width) [+]= the sum of partial (num_blocks, width) over its rows.
struct PartialSums {
    float* out;
    const float* partial;
    int num_blocks, width;
    bool accumulate;
};

// The body of a kernel. Each file has such a kernel of its own, so that a trace tells them apart. The order of the sum
// is fixed. A block of 32 x 32 threads takes 32 columns, and each of its warps every 32nd row; kBatch loads are in
// flight before the first is used.
__device__ inline void add_partial_sums(const PartialSums& a) {
    constexpr int kBatch = 9;  // 288 rows at a time: two blocks on each of 132 multiprocessors are one batch
    __shared__ float sums[kWarpSize][kWarpSize + 1];
    const int c = blockIdx.x * kWarpSize + threadIdx.x;
#if __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
    float sum = 0;
    for (int first = threadIdx.y; c < a.width && first < a.num_blocks; first += kBatch * kWarpSize) {
        float values[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            const int block = first + i * kWarpSize;
            values[i] = block < a.num_blocks ? a.partial[static_cast<int64_t>(block) * a.width + c] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) sum += values[i];
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    // From here on each warp has a column.
    const float total = group_sum<kWarpSize>(sums[threadIdx.x][threadIdx.y]);
    const int column = blockIdx.x * kWarpSize + threadIdx.y;
    if (threadIdx.x == 0 && column < a.width) a.out[column] = a.accumulate ? a.out[column] + total : total;
}

// Launches the kernel after the one that wrote `partial`, on Hopper without the usual pause between two kernels
// (programmatic dependent launch).
inline void launch_partial_sums(const CudaContext& context, void (*kernel)(PartialSums), const PartialSums& sums) {
    cudaLaunchAttribute overlap{};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<uint32_t>((sums.width + kWarpSize - 1) / kWarpSize));
    config.blockDim = dim3(kWarpSize, kWarpSize);
    config.stream = context.stream;
    config.attrs = &overlap;
    config.numAttrs = context.properties.major >= 9 ? 1 : 0;
    CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, sums));
}

}  // namespace ingot
