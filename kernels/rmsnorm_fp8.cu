// RMSNorm whose result goes to fp8 GEMMs alone. A block reads its rows once for their norms, and once more, mostly from
// the L2 cache, tile by tile. With 32 rows a block writes whole sectors of 32 bytes of the columns.
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

constexpr int kRows = 32, kColumns = 256;
using Tile = Fp8Tile<kRows, kColumns>;
static_assert(Tile::kSteps == 1);
constexpr int kRowsPerWarp = kRows / Tile::kWarps;

__global__ void __launch_bounds__(kFp8Threads)
    rmsnorm_forward_fp8_kernel(const __grid_constant__ Fp8Out out, const __grid_constant__ Args a) {
    __shared__ Tile tiles[2];
    __shared__ Fp8Largest largest_of_block;
    __shared__ float rstds[kRows];
    const int64_t C = out.num_columns, first_row = int64_t{blockIdx.x} * kRows;
    // N is a multiple of 16, so the rows of a warp are all there, or none is.
    const int first_of_warp = threadIdx.x / kWarpSize * kRowsPerWarp, lane = threadIdx.x % kWarpSize;
    if (first_row + first_of_warp < out.num_rows) {
        const T* const x = a.x + (first_row + first_of_warp) * C;
        float squares[kRowsPerWarp] = {};
#pragma unroll 2
        for (int64_t column = lane * V::kSize; column < C; column += kWarpSize * V::kSize) {
            V loaded[kRowsPerWarp];
#pragma unroll
            for (int row = 0; row < kRowsPerWarp; ++row) loaded[row] = load_cached(x + row * C + column);
#pragma unroll
            for (int row = 0; row < kRowsPerWarp; ++row) {
                float values[V::kSize];
                loaded[row].unpack(values);
#pragma unroll
                for (int e = 0; e < V::kSize; ++e) squares[row] += values[e] * values[e];
            }
        }
#pragma unroll
        for (int row = 0; row < kRowsPerWarp; ++row) {
            const float sum = group_sum<kWarpSize>(squares[row]);
            const float rstd = 1.0f / sqrtf(sum / static_cast<float>(C) + a.eps);
            if (lane == 0) {
                rstds[first_of_warp + row] = rstd;
                a.rstd[first_row + first_of_warp + row] = rstd;
            }
        }
    }
    const float scale = out.scale->quantize;
    const Tile::Place place = Tile::place(0);
    const int64_t row = first_row + place.row;
    uint32_t largest = 0;
    V loaded[4], weight_loaded;
    const auto load = [&](int64_t column) {
        if (row >= out.num_rows || column >= C) return;
#pragma unroll
        for (int i = 0; i < 4; ++i) loaded[i] = load_cached(a.x + (row + i) * C + column);
        weight_loaded = load_constant(a.weight + column, 0);
    };
    load(place.column);
    __syncthreads();
    // While a tile is written, the next one is on its way. Two tiles take turns, so that one barrier each is enough.
    int turn = 0;
    for (int64_t first_column = 0; first_column < C; first_column += kColumns, turn ^= 1) {
        if (row < out.num_rows && first_column + place.column < C) {
            float weight[V::kSize];
            weight_loaded.unpack(weight);
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
            load(first_column + kColumns + place.column);
            tiles[turn].put(out, first_row, first_column, place, block);
        }
        __syncthreads();
        tiles[turn].write_columns(out, first_row, first_column, C);
    }
    largest_of_block.put(largest);
    __syncthreads();
    largest_of_block.raise(out.scale);
}

}  // namespace

void rmsnorm_forward_fp8_cuda(const Device& device, const RmsNormForward& a) {
    const int64_t N = a.x.shape[0], C = a.x.shape[1];
    CHECK(a.x.dtype == DType::bf16 && a.quantized.format() == DType::e4m3, "rmsnorm to fp8 on CUDA takes bf16 to e4m3");
    if (N * C == 0) return;
    const Args args = {a.x.get<T>(), a.weight.get<T>(), a.rstd.get<float>(), static_cast<float>(a.eps)};
    const Fp8Out out = fp8_out(a.quantized, N, C);
    const cudaStream_t stream = device.context().stream;
    rmsnorm_forward_fp8_kernel<<<static_cast<unsigned>((N + kRows - 1) / kRows), kFp8Threads, 0, stream>>>(out, args);
    CUDA_CHECK_LAUNCH("rmsnorm_forward to fp8");
}

}  // namespace ingot
