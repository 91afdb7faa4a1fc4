// Building blocks of the tensor-core attention kernels: tiles of one head in shared memory, and a warp's GEMMs with
// them. fragments.h has the layout.
#pragma once

#include "kernels/attention/fragments.h"
#include "kernels/core/tensor.h"
#include "kernels/cuda/mma_sm80.cuh"

namespace ingot::tiles {

constexpr double kLog2E = 1.4426950408889634;
constexpr float kLn2 = 0.6931471805599453f;
constexpr uint32_t kAllLanes = 0xffffffffu;

// The forward kernels move a row's running maximum when a score exceeds it by more than so many powers of two.
constexpr float kMostAboveMaximum = 8;

// A (N, heads, HS) view of a 16-bit type: strides in elements, multiples of 8; the data is aligned to 16 bytes.
struct View {
    uint16_t* data;
    int64_t token_stride, head_stride;
    __device__ uint16_t* head(int index) const { return data + index * head_stride; }
};
inline View view_of(const Tensor& tensor) {
    return {static_cast<uint16_t*>(tensor.data), tensor.stride[0], tensor.stride[1]};
}

// Starts the copies of tokens [begin, begin + kRows) of one head into a tile; zeros from token N on.
template <int HS, int kRows, int kThreads>
__device__ void start_tile(uint32_t tile, const View& view, int head_index, int begin, int N) {
    // Consecutive threads copy 64 or 128 consecutive bytes of a row, and a thread's rows differ by a multiple of 8, so
    // that the swizzle is the same in all of them.
    constexpr int kPerRow = HS % 64 == 0 ? 8 : 4, kRowsAtOnce = kThreads / kPerRow;
    static_assert(kRowsAtOnce % 8 == 0);
    const auto thread = static_cast<unsigned>(opaque(static_cast<int>(threadIdx.x)));
    const int row = static_cast<int>(thread / kPerRow), chunk = static_cast<int>(thread % kPerRow);
    const uint32_t to = tile + tile_offset<HS>(row, chunk);
    const uint16_t* const head = view.head(opaque(head_index));
    const uint16_t* from = head + (begin + row) * view.token_stride + chunk * 8;
#pragma unroll
    for (int first = 0; first < kRows; first += kRowsAtOnce) {
        if (kRows % kRowsAtOnce != 0 && row + first >= kRows) break;
        const bool is_inside = begin + row + first < N;
#pragma unroll
        for (int group = 0; group < HS / 8; group += kPerRow)
            start_copy(to + static_cast<uint32_t>(first * HS * 2 + group * 16), is_inside ? from + group * 8 : head,
                       is_inside);
        from += kRowsAtOnce * view.token_stride;
    }
}

// A warp's accumulator of a matrix multiplication is float[kRowBlocks][kColumnBlocks][4]: kRowBlocks x kColumnBlocks
// fragments of 16 x 8. It is written out where it is used, since an alias template for it stops nvcc 12.4 (an internal
// error in scope_stk.c).
template <int kRowBlocks, int kColumnBlocks>
__device__ void set_zero(float (&sums)[kRowBlocks][kColumnBlocks][4]) {
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
        for (int n = 0; n < kColumnBlocks; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[m][n][e] = 0;
}

// Rounds two neighbouring fragments to A of the next GEMM.
template <DType kType>
__device__ void round_to_operand(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack<kType>(left[0], left[1]), a[1] = pack<kType>(left[2], left[3]);
    a[2] = pack<kType>(right[0], right[1]), a[3] = pack<kType>(right[2], right[3]);
}

// accumulator += a b for 16 of its columns: `left` and `right` are the 8 columns that b's halves belong to.
template <DType kType>
__device__ void multiply_pair(float (&left)[4], float (&right)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
    multiply_add<kType>(left, a, b[0], b[1], left);
    multiply_add<kType>(right, a, b[2], b[3], right);
}

// Writes a warp's fragments times `factor`, rounded once, as rows of HS elements. They go through a tile in shared
// memory that the warp has to itself, so that global memory sees whole lines. Row r of the tile is token first_token +
// r; rows from N on are left out.
template <DType kType, int HS, int kRowBlocks>
__device__ void store_rows(uint32_t tile, uint16_t* head, int64_t token_stride, int first_token, int N, int lane,
                           const float (&sums)[kRowBlocks][HS / 8][4], const float (&factors)[kRowBlocks][2]) {
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
        for (int n = 0; n < HS / 8; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = 16 * m + fragment_row(lane, 2 * half);
                const float factor = factors[m][half];
                store_shared(tile + tile_offset<HS>(row, n) + static_cast<uint32_t>(fragment_column(lane, 0) * 2),
                             pack<kType>(sums[m][n][2 * half] * factor, sums[m][n][2 * half + 1] * factor));
            }
    __syncwarp();
    constexpr int kPerRow = HS % 64 == 0 ? 8 : 4, kRowsAtOnce = 32 / kPerRow;
#pragma unroll
    for (int first = 0; first < 16 * kRowBlocks; first += kRowsAtOnce) {
        const int row = first + static_cast<int>(static_cast<unsigned>(lane) / kPerRow);
        if (first_token + row >= N) break;
        uint16_t* const to = head + (first_token + row) * token_stride;
#pragma unroll
        for (int group = 0; group < HS / 8; group += kPerRow) {
            const int chunk = group + static_cast<int>(static_cast<unsigned>(lane) % kPerRow);
            *reinterpret_cast<uint4*>(to + chunk * 8) = load_shared_vector(tile + tile_offset<HS>(row, chunk));
        }
    }
}

}  // namespace ingot::tiles
