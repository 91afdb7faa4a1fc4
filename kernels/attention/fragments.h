// The layout of tensor-core operands in shared memory and in the registers of a warp. This is index arithmetic alone,
// so that it can be tested without a GPU.
//
// mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"): with g = lane / 4 and t = lane % 4, a lane holds
//
//   A (16 x 16): a0 (g, 2t..2t+1)   a1 (g + 8, 2t..)   a2 (g, 2t + 8..)   a3 (g + 8, 2t + 8..)     two to a register
//   B (16 x 8):  b0 (2t..2t+1, g)   b1 (2t + 8.., g)
//   C (16 x 8):  c0, c1 (g, 2t..2t+1)   c2, c3 (g + 8, 2t..2t+1)                                   fp32
//
// so that two neighbouring C, rounded to 16 bits, are the A of a GEMM that sums over their columns: probabilities go
// into the next GEMM without passing through memory.
#pragma once

#include <cstdint>

#include "kernels/core/hd.h"

namespace ingot::tiles {

// A tile in shared memory is rows of kWidth 16-bit elements, in chunks of 16 bytes. ldmatrix reads the same chunk of
// eight rows at a time, which lie 2 kWidth bytes apart, in one bank as they are: chunk c of row r is kept in place
// c ^ swizzle(r), so that the eight fill all 32 banks. Rows whose length is a multiple of 128 bytes need three bits of
// r for that; rows of 64 or 192 bytes lie in alternate halves of the banks by themselves, and two bits remain.
template <int kWidth>
INGOT_HD constexpr int swizzle(int row) {
    static_assert(kWidth % 32 == 0);
    const unsigned r = static_cast<unsigned>(row);  // never negative: no instructions for that
    return static_cast<int>(kWidth % 64 == 0 ? r % 8 : r / 2 % 4);
}
template <int kWidth>
INGOT_HD constexpr uint32_t tile_offset(int row, int chunk) {
    return static_cast<uint32_t>(row * kWidth * 2 + (chunk ^ swizzle<kWidth>(row)) * 16);
}

// The address that a lane gives to ldmatrix.x4, for a block of 16 x 16 elements at (row, chunk): row is a multiple of
// 8, chunk is even. Its four matrices are taken rows first or chunks first:
//
//   rows first     A from a tile of its rows, or B, transposed, from a tile whose rows are what is summed over
//   chunks first   B from a tile of its columns, or A, transposed, from a tile whose rows are what is summed over
template <int kWidth>
struct MatrixLane {
    uint32_t row, chunk;  // in bytes

    INGOT_HD uint32_t at(uint32_t tile, int first_row, int first_chunk) const {
        return tile + row + static_cast<uint32_t>(first_row * kWidth * 2) +
               (static_cast<uint32_t>(first_chunk * 16) ^ chunk);
    }
};
template <int kWidth>
INGOT_HD constexpr MatrixLane<kWidth> matrix_lane(int lane_row, int lane_chunk) {
    return {static_cast<uint32_t>(lane_row * kWidth * 2),
            static_cast<uint32_t>((lane_chunk ^ swizzle<kWidth>(lane_row)) * 16)};
}
template <int kWidth>
INGOT_HD constexpr MatrixLane<kWidth> rows_first(int lane) {
    const unsigned l = static_cast<unsigned>(lane);
    return matrix_lane<kWidth>(static_cast<int>(l % 16), static_cast<int>(l / 16));
}
template <int kWidth>
INGOT_HD constexpr MatrixLane<kWidth> chunks_first(int lane) {
    const unsigned l = static_cast<unsigned>(lane);
    return matrix_lane<kWidth>(static_cast<int>(l % 8 + l / 16 * 8), static_cast<int>(l / 8 % 2));
}

// Element i of C that a lane holds.
INGOT_HD constexpr int fragment_row(int lane, int i) {
    return static_cast<int>(static_cast<unsigned>(lane) / 4) + i / 2 * 8;
}
INGOT_HD constexpr int fragment_column(int lane, int i) {
    return static_cast<int>(static_cast<unsigned>(lane) % 4 * 2) + i % 2;
}

}  // namespace ingot::tiles
