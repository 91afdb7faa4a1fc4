// RMSNorm whose result goes to fp8 GEMMs alone. A block has so few rows that those of all blocks at work stay in the L2
// cache: it reads them once for their norms and once more, from there, tile by tile.
#include <algorithm>

#include "kernels/cuda/context.h"
#include "kernels/cuda/fp8_tile.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/rmsnorm.h"

namespace ingot {

namespace {

using T = __nv_bfloat16;
using V = Vec<T>;

struct Args {
    const T *x, *weight;
    float* rstd;
    float eps;
};

__device__ V load_cached(const T* data) {
    return {*reinterpret_cast<const uint4*>(data)};
}

template <int kRows, int kColumns>
__global__ void __launch_bounds__(kFp8Threads)
    rmsnorm_forward_fp8_kernel(const __grid_constant__ Fp8Out out, const __grid_constant__ Args a) {
    using Tile = Fp8Tile<kRows, kColumns>;
    __shared__ Tile tile;
    __shared__ float rstds[kRows];
    const int64_t C = out.num_columns, first_row = int64_t{blockIdx.x} * kRows;
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    for (int row = warp; row < kRows && first_row + row < out.num_rows; row += Tile::kWarps) {
        const T* const x = a.x + (first_row + row) * C;
        float squares = 0;
#pragma unroll 4
        for (int64_t column = lane * V::kSize; column < C; column += kWarpSize * V::kSize) {
            float values[V::kSize];
            load_cached(x + column).unpack(values);
#pragma unroll
            for (int e = 0; e < V::kSize; ++e) squares += values[e] * values[e];
        }
        squares = group_sum<kWarpSize>(squares);
        const float rstd = 1.0f / sqrtf(squares / static_cast<float>(C) + a.eps);
        if (lane == 0) {
            rstds[row] = rstd;
            a.rstd[first_row + row] = rstd;
        }
    }
    __syncthreads();
    const float scale = out.scale->quantize;
    uint32_t largest = 0;
    for (int64_t first_column = 0; first_column < C; first_column += kColumns) {
#pragma unroll
        for (int step = 0; step < Tile::kSteps; ++step) {
            const typename Tile::Place place = Tile::place(step);
            const int64_t row = first_row + place.row, column = first_column + place.column;
            if (row >= out.num_rows || column >= C) continue;
            V loaded[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) loaded[i] = load_cached(a.x + (row + i) * C + column);
            float weight[V::kSize];
            load_constant(a.weight + column, 0).unpack(weight);
            uint2 block[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float rstd = rstds[place.row + i];
                float values[V::kSize];
                loaded[i].unpack(values);
#pragma unroll
                for (int e = 0; e < V::kSize; ++e) values[e] *= rstd * weight[e];
                block[i] = to_fp8<__NV_E4M3>(values, scale, largest);
            }
            tile.put(out, first_row, first_column, place, block);
        }
        __syncthreads();
        tile.write_columns(out, first_row, first_column, C);
        __syncthreads();
    }
    raise_largest(out.scale, largest);
}

}  // namespace

void rmsnorm_forward_fp8_cuda(const Device& device, const RmsNormForward& a) {
    const int64_t N = a.x.shape[0], C = a.x.shape[1];
    CHECK(a.x.dtype == DType::bf16 && a.quantized.format() == DType::e4m3, "rmsnorm to fp8 on CUDA takes bf16 to e4m3");
    if (N * C == 0) return;
    const Args args = {a.x.get<T>(), a.weight.get<T>(), a.rstd.get<float>(), static_cast<float>(a.eps)};
    const Fp8Out out = fp8_out(a.quantized, N, C);
    const cudaStream_t stream = device.context().stream;
    // 64 rows of up to 1,024 columns, and 32 of wider ones, are 128 KB for each of two blocks on a multiprocessor.
    if (C <= 1024)
        rmsnorm_forward_fp8_kernel<64, 128>
            <<<static_cast<unsigned>((N + 63) / 64), kFp8Threads, 0, stream>>>(out, args);
    else
        rmsnorm_forward_fp8_kernel<32, 256>
            <<<static_cast<unsigned>((N + 31) / 32), kFp8Threads, 0, stream>>>(out, args);
    CUDA_CHECK_LAUNCH("rmsnorm_forward to fp8");
}

}  // namespace ingot
