// Conversion to fp8 on CUDA is bound by memory: a tile is read once, and written once row by row and once transposed.
#include "kernels/cuda/context.h"
#include "kernels/cuda/fp8_tile.cuh"
#include "kernels/fp8.h"

namespace ingot {

namespace {

using Tile = Fp8Tile<128, 128>;

template <__nv_fp8_interpretation_t kFormat>
__global__ void __launch_bounds__(kFp8Threads)
    quantize_kernel(const __grid_constant__ Fp8Out out, const __nv_bfloat16* in, Fp8Tiles tiles) {
    __shared__ Tile tile;
    __shared__ Fp8Largest largest_of_block;
    const Fp8Tiles::Place at = tiles.place(blockIdx.x);
    const int64_t first_row = int64_t{at.row} * 128, first_column = int64_t{at.column} * 128;
    const float scale = out.scale->quantize;
    uint32_t largest = 0;
#pragma unroll
    for (int step = 0; step < Tile::kSteps; ++step) {
        const Tile::Place place = Tile::place(step);
        if (first_row + place.row >= out.num_rows || first_column + place.column >= out.num_columns) continue;
        Vec<__nv_bfloat16> loaded[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            loaded[i] =
                load_streaming(in + (first_row + place.row + i) * out.num_columns + first_column + place.column, 0);
        uint2 block[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float values[8];
            loaded[i].unpack(values);
            block[i] = to_fp8<kFormat>(values, scale, largest);
        }
        tile.put(out, first_row, first_column, place, block);
    }
    largest_of_block.put(largest);
    __syncthreads();
    largest_of_block.raise(out.scale);
    tile.write_columns(out, first_row, first_column, out.num_columns);
}

__global__ void update_scales_kernel(Fp8Scale* scales, int64_t count, float format_largest) {
    const int64_t i = int64_t{blockIdx.x} * kFp8Threads + threadIdx.x;
    if (i < count) fp8_update_scale(scales[i], format_largest);
}

}  // namespace

bool supports_fp8_cuda(const Device& device) {
    const cudaDeviceProp& properties = device.context().properties;
    return 10 * properties.major + properties.minor >= 89;
}

void fp8_quantize_cuda(const Device& device, const Fp8Quantize& a) {
    CHECK(a.in.dtype == DType::bf16, "fp8_quantize on CUDA reads bf16, not ", a.in.describe());
    const int64_t N = a.in.shape[0], W = a.in.shape[1];
    if (N * W == 0) return;
    const Fp8Tiles tiles = fp8_tiles(N, W, 128, 128);
    for_fp8_format(a.out.format(), [&](auto format) {
        quantize_kernel<decltype(format)::value><<<tiles.count(), kFp8Threads, 0, device.context().stream>>>(
            fp8_out(a.out, N, W), a.in.get<__nv_bfloat16>(), tiles);
    });
    CUDA_CHECK_LAUNCH("fp8_quantize");
}

void fp8_update_scales_cuda(const Device& device, const Fp8UpdateScales& a) {
    if (a.count == 0) return;
    const auto blocks = static_cast<unsigned>((a.count + kFp8Threads - 1) / kFp8Threads);
    update_scales_kernel<<<blocks, kFp8Threads, 0, device.context().stream>>>(a.scales, a.count, fp8_largest(a.format));
    CUDA_CHECK_LAUNCH("fp8_update_scales");
}

}  // namespace ingot
