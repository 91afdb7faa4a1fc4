// The layout of wgmma's operands on Hopper: shared-memory tiles, their descriptors, and the registers of a warp group.
// This is index arithmetic alone, so that it can be tested without a GPU.
//
// A tile of R rows of HS 16-bit elements is HS / 64 panels of R x 64, one after the other; a panel's row takes 128
// bytes, and chunk c (16 bytes) of row r is kept in place c ^ (r % 8), so that eight rows fill all banks. TMA
// writes tiles so (CU_TENSOR_MAP_SWIZZLE_128B, with panels as an axis of the tensor map), and wgmma reads them so. The
// hardware takes r % 8 from bits 7 to 9 of the address: panels start at multiples of 1024 bytes.
//
// The same tile serves a GEMM that sums over the tile's columns (K-major: Q and K in S = Q K^T) and one that sums over
// its rows (MN-major: V in P V, transposed by the instruction).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/hd.h"

namespace ingot::sm90 {

constexpr int kPanelColumns = 64;  // of a 16-bit type: 128 bytes
constexpr uint32_t kPanelRowBytes = 128;
constexpr uint32_t kSwizzledRows = 8;  // after which the pattern repeats: 1024 bytes

// The byte offset of chunk `chunk` of row `row` from the tile's start.
INGOT_HD constexpr uint32_t panel_offset(int row, int chunk, int rows) {
    const auto r = static_cast<uint32_t>(row), c = static_cast<uint32_t>(chunk);
    return c / 8 * static_cast<uint32_t>(rows) * kPanelRowBytes + r * kPanelRowBytes + (c % 8 ^ r % 8) * 16;
}

// ---- Matrix descriptors: PTX ISA, "Matrix Descriptor Format" and "Strides" of wgmma ----
//
// 64 bits: [0, 14) address, [16, 30) leading and [32, 46) stride byte offset, each in 16 bytes; [62, 64) 1 for the
// 128-byte swizzle. The base offset is 0, since tiles are aligned.
INGOT_HD constexpr uint64_t matrix_descriptor(uint32_t address, uint32_t leading_bytes, uint32_t stride_bytes) {
    return static_cast<uint64_t>((address & 0x3ffffu) >> 4) | static_cast<uint64_t>(leading_bytes >> 4) << 16 |
           static_cast<uint64_t>(stride_bytes >> 4) << 32 | uint64_t{1} << 62;
}
// Describes the operand of a GEMM that sums over the tile's columns. The stride leads to the next 8 rows; 16 columns
// lie within a panel, so that the leading offset is not used.
INGOT_HD constexpr uint64_t descriptor_over_columns(uint32_t tile) {
    return matrix_descriptor(tile, 16, kSwizzledRows * kPanelRowBytes);
}
// Describes the operand of a GEMM that sums over the tile's rows. The stride leads to the next 8 rows, the leading
// offset to the next 64 columns.
INGOT_HD constexpr uint64_t descriptor_over_rows(uint32_t tile, int rows) {
    return matrix_descriptor(tile, static_cast<uint32_t>(rows) * kPanelRowBytes, kSwizzledRows * kPanelRowBytes);
}
// Added to a descriptor, they move its address on by 16 * step columns or rows.
INGOT_HD constexpr uint64_t step_over_columns(int step, int rows) {
    constexpr int kSteps = kPanelColumns / 16;
    const uint32_t bytes = static_cast<uint32_t>(step / kSteps) * static_cast<uint32_t>(rows) * kPanelRowBytes +
                           static_cast<uint32_t>(step % kSteps) * 32;
    return bytes >> 4;
}
INGOT_HD constexpr uint64_t step_over_rows(int step) {
    return static_cast<uint32_t>(step) * 16 * kPanelRowBytes >> 4;
}

// ---- Registers ----
//
// In a 64 x n accumulator (PTX ISA, "Matrix Fragments for wgmma.mma_async.m64nNk16"), warp w of the group holds rows 16
// w to 16 w + 15, as fragments of 16 x 8 that lie as mma.m16n8k16's: kernels/attention/fragments.h. Element i of a lane
// belongs to fragment i / 4. Two fragments that lie side by side are, rounded, a 64 x 16 operand in registers.

// The chunk and row that a lane gives to stmatrix.x4 for the fragments 2 n and 2 n + 1 of its warp, the registers being
// rows 0 to 7 and 8 to 15 of the one, then of the other.
INGOT_HD constexpr int store_row(int lane) {
    return static_cast<int>(static_cast<unsigned>(lane) % 16);
}
INGOT_HD constexpr int store_chunk(int lane, int n) {
    return 2 * n + static_cast<int>(static_cast<unsigned>(lane) / 16);
}

}  // namespace ingot::sm90

// Defines member(), the address of Shared::member in shared memory, for a struct with `base` and a type Shared.
#define INGOT_PLACE(member)                                            \
    __device__ uint32_t member() const {                               \
        return base + static_cast<uint32_t>(offsetof(Shared, member)); \
    }
