// Writes a matrix in fp8, row by row and transposed, from kernels that compute it in tiles.
//
// A thread has blocks of 4 rows and 8 columns: four pieces of 8 bytes of the rows, and, after a transposition of 4 x 4
// bytes in registers, eight words of 4 bytes of the columns. Words go through shared memory, so that a column of the
// tile leaves in one piece.
#pragma once

#include <cuda_fp8.h>

#include "kernels/core/fp8.h"
#include "kernels/cuda/vec.cuh"

namespace ingot {

constexpr int kFp8Threads = 256;
constexpr int kFp8BlockRows = 4, kFp8BlockColumns = 8;

// An operand as kernels write it.
struct Fp8Out {
    uint8_t *rows, *columns;  // null if nobody reads it
    Fp8Scale* scale;
    int64_t num_rows, num_columns;  // of the whole matrix
};

inline Fp8Out fp8_out(const Fp8Operand& operand, int64_t num_rows, int64_t num_columns) {
    return {static_cast<uint8_t*>(operand.rows.data), static_cast<uint8_t*>(operand.columns.data), operand.scale,
            num_rows, num_columns};
}

// Rounds eight values to 8 bytes, and raises `largest`, the bits of the largest |value|, which order as the values do;
// infinities and NaN are above all others. (v - v) is 0, or NaN where v is not finite.
template <__nv_fp8_interpretation_t kFormat>
__device__ uint2 to_fp8(const float (&values)[8], float scale, uint32_t& largest) {
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float a = values[2 * i], b = values[2 * i + 1];
        largest = max(largest, max(__float_as_uint(a) & 0x7fffffffu, __float_as_uint(b) & 0x7fffffffu));
        pairs[i] = __nv_cvt_float2_to_fp8x2(make_float2(fmaf(a, scale, a - a), fmaf(b, scale, b - b)), __NV_SATFINITE,
                                            kFormat);
    }
    return make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
}

// Raises scale->largest by what the threads of a block have seen. Atomics on one address follow one upon the other,
// some tens of thousands of them would take as long as the kernel itself: so a block has one, and only where it would
// raise.
class Fp8Largest {
  public:
    // A barrier stands between the two.
    __device__ void put(uint32_t largest) {
        largest = __reduce_max_sync(0xffffffffu, largest);
        if (threadIdx.x % 32 == 0) warps_[threadIdx.x / 32] = largest;
    }
    __device__ void raise(Fp8Scale* scale) const {
        if (threadIdx.x >= 32) return;
        const uint32_t largest =
            __reduce_max_sync(0xffffffffu, threadIdx.x < kFp8Threads / 32 ? warps_[threadIdx.x] : 0);
        auto* const raised = reinterpret_cast<uint32_t*>(&scale->largest);
        if (threadIdx.x == 0 && largest > *static_cast<volatile uint32_t*>(raised)) atomicMax(raised, largest);
    }

  private:
    uint32_t warps_[kFp8Threads / 32];
};

// A tile of kRows x kColumns, worked on by kFp8Threads threads.
template <int kRows, int kColumns>
struct Fp8Tile {
    static_assert(kRows % 32 == 0 && kColumns % 32 == 0);
    // A warp has 32 x 32 elements at a time: eight groups of four rows, four groups of eight columns.
    static constexpr int kWarps = kFp8Threads / 32, kSquares = kRows / 32 * (kColumns / 32);
    static_assert(kSquares % kWarps == 0);
    static constexpr int kSteps = kSquares / kWarps;
    static constexpr int kWords = kRows / 4, kStride = kWords + 1;  // the lanes of a store have 32 different banks

    uint32_t words[kColumns * kStride];

    struct Place {
        int row, column;  // in the tile
    };
    __device__ static Place place(int step) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int square = step * kWarps + warp;
        return {square / (kColumns / 32) * 32 + lane / 4 * kFp8BlockRows,
                square % (kColumns / 32) * 32 + lane % 4 * kFp8BlockColumns};
    }

    // Takes a thread's block, which lies inside of the matrix, writes its rows and keeps its columns.
    __device__ void put(const Fp8Out& out, int64_t first_row, int64_t first_column, Place place,
                        const uint2 (&block)[4]) {
        if (out.rows != nullptr) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                *reinterpret_cast<uint2*>(out.rows + (first_row + place.row + i) * out.num_columns + first_column +
                                          place.column) = block[i];
        }
        if (out.columns == nullptr) return;
        const auto keep = [&](int column, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
            const uint32_t low_ab = __byte_perm(a, b, 0x5140), high_ab = __byte_perm(a, b, 0x7362);
            const uint32_t low_cd = __byte_perm(c, d, 0x5140), high_cd = __byte_perm(c, d, 0x7362);
            uint32_t* const at = words + column * kStride + place.row / 4;
            at[0 * kStride] = __byte_perm(low_ab, low_cd, 0x5410);
            at[1 * kStride] = __byte_perm(low_ab, low_cd, 0x7632);
            at[2 * kStride] = __byte_perm(high_ab, high_cd, 0x5410);
            at[3 * kStride] = __byte_perm(high_ab, high_cd, 0x7632);
        };
        keep(place.column, block[0].x, block[1].x, block[2].x, block[3].x);
        keep(place.column + 4, block[0].y, block[1].y, block[2].y, block[3].y);
    }

    // Writes the columns that lie before end_column, once all threads have put their blocks: a barrier stands before
    // it, and another before the next put().
    __device__ void write_columns(const Fp8Out& out, int64_t first_row, int64_t first_column,
                                  int64_t end_column) const {
        if (out.columns == nullptr) return;
        constexpr int kPieces = kWords / 4;  // of 16 bytes, one for each lane
        const int piece = threadIdx.x % kPieces;
        if (first_row + 16 * piece >= out.num_rows) return;
#pragma unroll 4
        for (int column = threadIdx.x / kPieces; column < kColumns; column += kFp8Threads / kPieces) {
            if (first_column + column >= end_column) break;
            const uint32_t* const at = words + column * kStride + 4 * piece;
            *reinterpret_cast<uint4*>(out.columns + (first_column + column) * out.num_rows + first_row + 16 * piece) =
                make_uint4(at[0], at[1], at[2], at[3]);
        }
    }
};

// Calls launch(format) with the format's constant.
template <typename Launch>
void for_fp8_format(DType format, Launch&& launch) {
    if (format == DType::e4m3)
        launch(std::integral_constant<__nv_fp8_interpretation_t, __NV_E4M3>{});
    else
        launch(std::integral_constant<__nv_fp8_interpretation_t, __NV_E5M2>{});
}

// A matrix in tiles, one for each block, in an order in which neighbours run at about the same time in both directions:
// first eight tiles below each other, then those beside them. So the L2 writes long pieces of rows and of columns.
struct Fp8Tiles {
    uint32_t num_rows, num_columns;  // counted in tiles
    struct Place {
        uint32_t row, column;
    };
    uint32_t count() const { return num_rows * num_columns; }
    __device__ Place place(uint32_t index) const {
        constexpr uint32_t kGroup = 8;
        const uint32_t group = index / (kGroup * num_columns), rest = index - group * kGroup * num_columns;
        const uint32_t height = min(kGroup, num_rows - group * kGroup);
        return {group * kGroup + rest % height, rest / height};
    }
};

inline Fp8Tiles fp8_tiles(int64_t num_rows, int64_t num_columns, int tile_rows, int tile_columns) {
    const int64_t rows = (num_rows + tile_rows - 1) / tile_rows,
                  columns = (num_columns + tile_columns - 1) / tile_columns;
    CHECK(rows * columns < int64_t{1} << 31, "fp8 on CUDA: a matrix of ", num_rows, " x ", num_columns);
    return {static_cast<uint32_t>(rows), static_cast<uint32_t>(columns)};
}

}  // namespace ingot
