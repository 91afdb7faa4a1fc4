// SwiGLU whose results go to fp8 GEMMs alone: no result is written in bf16. Like the versions in swiglu.cu the kernels
// are bound by memory.
#include "kernels/cuda/context.h"
#include "kernels/cuda/fp8_tile.cuh"
#include "kernels/cuda/sigmoid.cuh"
#include "kernels/swiglu.h"

namespace ingot {

namespace {

using T = __nv_bfloat16;
constexpr int kRows = 128, kColumns = 64;
using Tile = Fp8Tile<kRows, kColumns>;
static_assert(Tile::kSteps == 1);

__device__ void load(const T* data, float (&values)[8]) {
    load_streaming(data, 0).unpack(values);
}

__global__ void __launch_bounds__(kFp8Threads)
    swiglu_forward_fp8_kernel(const __grid_constant__ Fp8Out out, const T* gate_up, Fp8Tiles grid) {
    __shared__ Tile tile;
    __shared__ Fp8Largest largest_of_block;
    const int64_t F = out.num_columns;
    const Fp8Tiles::Place at = grid.place(blockIdx.x);
    const int64_t first_row = int64_t{at.row} * kRows, first_column = int64_t{at.column} * kColumns;
    const Tile::Place place = Tile::place(0);
    const int64_t row = first_row + place.row, column = first_column + place.column;
    const float scale = out.scale->quantize;
    uint32_t largest = 0;
    if (row < out.num_rows && column < F) {
        uint2 block[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const T* const source = gate_up + (row + i) * 2 * F + column;
            float gate[8], up[8];
            load(source, gate);
            load(source + F, up);
#pragma unroll
            for (int e = 0; e < 8; ++e) gate[e] *= sigmoid<T>(gate[e]) * up[e];
            block[i] = to_fp8<__NV_E4M3>(gate, scale, largest);
        }
        tile.put(out, first_row, first_column, place, block);
    }
    largest_of_block.put(largest);
    __syncthreads();
    largest_of_block.raise(out.scale);
    tile.write_columns(out, first_row, first_column, F);
}

// With kWritesOut it also writes the forward's out, with the same bits.
template <bool kWritesOut>
__global__ void __launch_bounds__(kFp8Threads)
    swiglu_backward_fp8_kernel(const __grid_constant__ Fp8Out dgate_up, const __grid_constant__ Fp8Out out,
                               const T* dout, const T* gate_up, Fp8Tiles grid) {
    __shared__ Tile tiles[kWritesOut ? 3 : 2];
    __shared__ Fp8Largest largest_of_block[2];
    Tile &dgate_tile = tiles[0], &dup_tile = tiles[1];
    const int64_t F = dgate_up.num_columns / 2;
    const Fp8Tiles::Place at = grid.place(blockIdx.x);
    const int64_t first_row = int64_t{at.row} * kRows, first_column = int64_t{at.column} * kColumns;
    const Tile::Place place = Tile::place(0);
    const int64_t row = first_row + place.row, column = first_column + place.column;
    const float scale = dgate_up.scale->quantize, out_scale = kWritesOut ? out.scale->quantize : 0;
    uint32_t largest = 0, largest_out = 0;
    if (row < dgate_up.num_rows && column < F) {
        uint2 dgate_block[4], dup_block[4], out_block[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const T* const source = gate_up + (row + i) * 2 * F + column;
            float gate[8], up[8], d[8], again[8];
            load(source, gate);
            load(source + F, up);
            load(dout + (row + i) * F + column, d);
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                const float s = sigmoid<T>(gate[e]);
                const float dup = d[e] * gate[e] * s;
                again[e] = gate[e] * (s * up[e]);
                gate[e] = d[e] * up[e] * s * (1 + gate[e] * (1 - s));
                up[e] = dup;
            }
            dgate_block[i] = to_fp8<__NV_E5M2>(gate, scale, largest);
            dup_block[i] = to_fp8<__NV_E5M2>(up, scale, largest);
            if constexpr (kWritesOut) out_block[i] = to_fp8<__NV_E4M3>(again, out_scale, largest_out);
        }
        dgate_tile.put(dgate_up, first_row, first_column, place, dgate_block);
        dup_tile.put(dgate_up, first_row, F + first_column, place, dup_block);
        if constexpr (kWritesOut) tiles[2].put(out, first_row, first_column, place, out_block);
    }
    largest_of_block[0].put(largest);
    if constexpr (kWritesOut) largest_of_block[1].put(largest_out);
    __syncthreads();
    largest_of_block[0].raise(dgate_up.scale);
    if constexpr (kWritesOut) largest_of_block[1].raise(out.scale);
    dgate_tile.write_columns(dgate_up, first_row, first_column, F);
    dup_tile.write_columns(dgate_up, first_row, F + first_column, 2 * F);
    if constexpr (kWritesOut) tiles[2].write_columns(out, first_row, first_column, F);
}

}  // namespace

void swiglu_forward_fp8_cuda(const Device& device, const SwigluForward& a) {
    const int64_t N = a.gate_up.shape[0], F = a.gate_up.shape[1] / 2;
    CHECK(a.gate_up.dtype == DType::bf16, "swiglu to fp8 on CUDA reads bf16, not ", a.gate_up.describe());
    CHECK(a.quantized.format() == DType::e4m3, "swiglu to fp8 on CUDA: out is ", name_of(a.quantized.format()));
    if (N * F == 0) return;
    const Fp8Tiles grid = fp8_tiles(N, F, kRows, kColumns);
    swiglu_forward_fp8_kernel<<<grid.count(), kFp8Threads, 0, device.context().stream>>>(fp8_out(a.quantized, N, F),
                                                                                         a.gate_up.get<T>(), grid);
    CUDA_CHECK_LAUNCH("swiglu_forward to fp8");
}

void swiglu_backward_fp8_cuda(const Device& device, const SwigluBackward& a) {
    const int64_t N = a.dout.shape[0], F = a.dout.shape[1];
    CHECK(a.dout.dtype == DType::bf16, "swiglu to fp8 on CUDA reads bf16, not ", a.dout.describe());
    CHECK(a.quantized.format() == DType::e5m2 && (!a.quantized_out || a.quantized_out.format() == DType::e4m3),
          "swiglu to fp8 on CUDA: gradients are e5m2, values e4m3");
    if (N * F == 0) return;
    const auto kernel = a.quantized_out ? swiglu_backward_fp8_kernel<true> : swiglu_backward_fp8_kernel<false>;
    const Fp8Out out = a.quantized_out ? fp8_out(a.quantized_out, N, F) : Fp8Out{};
    const Fp8Tiles grid = fp8_tiles(N, F, kRows, kColumns);
    kernel<<<grid.count(), kFp8Threads, 0, device.context().stream>>>(fp8_out(a.quantized, N, 2 * F), out,
                                                                      a.dout.get<T>(), a.gate_up.get<T>(), grid);
    CUDA_CHECK_LAUNCH("swiglu_backward to fp8");
}

}  // namespace ingot
