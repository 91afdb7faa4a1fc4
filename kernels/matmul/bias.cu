// The gradient of a bias on CUDA: the sum of dout's rows, which are read once. Bound by memory.
//
// A block has 32 columns and kRows rows of threads. A thread owns 16 bytes of columns and adds every kRows-th row of
// the block's part; the kRows partial sums of a column are added in shared memory, in order, and go to global memory.
#include <algorithm>

#include "kernels/cuda/context.h"
#include "kernels/cuda/partial_sums.cuh"
#include "kernels/cuda/vec.cuh"
#include "kernels/matmul/matmul.h"

namespace ingot {

namespace {

constexpr int kRows = 8;
constexpr int kBatch = 8;  // rows of a thread whose loads are in flight at once

template <typename T>
struct Args {
    const T* dout;
    float* partial;  // (gridDim.y, width)
    int64_t row_stride, num_rows;
    int width;
};

template <typename T, bool kIsVector>
__global__ void __launch_bounds__(kWarpSize* kRows) bias_kernel(const __grid_constant__ Args<T> a) {
    using C = Chunk<T, kIsVector>;
    __shared__ float shared[kRows][kWarpSize * C::kSize];
    const int column = (blockIdx.x * kWarpSize + threadIdx.x) * C::kSize;
    const bool is_inside = column < a.width;
    const int64_t step = int64_t{kRows} * gridDim.y;
    float sums[C::kSize] = {};
    for (int64_t first = blockIdx.y * kRows + threadIdx.y; is_inside && first < a.num_rows; first += kBatch * step) {
        typename C::Packed rows[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            const int64_t row = first + i * step;
            if (row < a.num_rows) rows[i] = C::fetch(a.dout + row * a.row_stride + column);
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            if (first + i * step >= a.num_rows) continue;
            float values[C::kSize];
            C::unpack(rows[i], values);
#pragma unroll
            for (int e = 0; e < C::kSize; ++e) sums[e] += values[e];
        }
    }
#pragma unroll
    for (int e = 0; e < C::kSize; ++e) shared[threadIdx.y][e * kWarpSize + threadIdx.x] = sums[e];
    __syncthreads();
    if (threadIdx.y != 0 || !is_inside) return;
#pragma unroll
    for (int e = 0; e < C::kSize; ++e) {
        float sum = 0;
#pragma unroll
        for (int row = 0; row < kRows; ++row) sum += shared[row][e * kWarpSize + threadIdx.x];
        a.partial[static_cast<int64_t>(blockIdx.y) * a.width + column + e] = sum;
    }
}

__global__ void __launch_bounds__(1024) sum_partials_kernel(PartialSums sums) {
    add_partial_sums(sums);
}

}  // namespace

size_t matmul_backward_bias_workspace_cuda(const Device& device, int64_t outputs) {
    return static_cast<size_t>(device.context().properties.multiProcessorCount * kMatmulBackwardBiasBlocks * outputs) *
           sizeof(float);
}

void matmul_backward_bias_cuda(const Device& device, const MatmulBackwardBias& a) {
    const int64_t N = a.dout.shape[0], O = a.dout.shape[1];
    if (O == 0) return;
    if (N == 0) {
        if (!a.accumulate) device.zero(a.dbias);
        return;
    }
    CHECK(O < (int64_t{1} << 30), "matmul_backward_bias on CUDA: dout is ", a.dout.describe(),
          ": at most 2^30 columns");
    const CudaContext& context = device.context();
    for_cuda_type(a.dout.dtype, "matmul_backward_bias", [&](auto element) {
        using T = decltype(element);
        const int64_t size = Vec<T>::kSize;
        const bool fits = O % size == 0 && a.dout.stride[0] % size == 0 && is_aligned(a.dout.data);
        const int64_t columns = kWarpSize * (fits ? size : 1), column_blocks = (O + columns - 1) / columns;
        // The GPU holds so many blocks at a time; each gets rows enough for one batch.
        const int64_t resident = context.properties.multiProcessorCount * kMatmulBackwardBiasBlocks;
        const int64_t row_blocks =
            std::clamp<int64_t>(N / (kRows * kBatch), 1, std::max<int64_t>(1, resident / column_blocks));
        const Args<T> args = {.dout = a.dout.get<T>(),
                              .partial = reinterpret_cast<float*>(a.workspace.data),
                              .row_stride = a.dout.stride[0],
                              .num_rows = N,
                              .width = static_cast<int>(O)};
        const auto kernel = fits ? bias_kernel<T, true> : bias_kernel<T, false>;
        kernel<<<dim3(static_cast<uint32_t>(column_blocks), static_cast<uint32_t>(row_blocks)), dim3(kWarpSize, kRows),
                 0, context.stream>>>(args);
        CUDA_CHECK_LAUNCH("matmul_backward_bias");
        launch_partial_sums(context, sum_partials_kernel,
                            {.out = a.dbias.get<float>(),
                             .partial = args.partial,
                             .num_blocks = static_cast<int>(row_blocks),
                             .width = args.width,
                             .accumulate = a.accumulate});
        CUDA_CHECK_LAUNCH("matmul_backward_bias (sum)");
    });
}

}  // namespace ingot
