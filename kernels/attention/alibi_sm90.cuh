// ALiBi's bias as a GEMM on tensor cores that initialises a tile's scores: 16 more columns of Q and of K, of which six
// are not 0. It costs no instruction per score.
//
// One operand is a constant tile in shared memory: its columns' indices, 0 to 127, and ones. The other is in registers:
// for each row, the part that does not depend on the column, and the step from one column to the next. A float is the
// sum of three bf16 numbers of eight significant bits each, so that nothing is lost, with fp16 inputs too.
#pragma once

#include "kernels/attention/fragments.h"
#include "kernels/attention/operands_sm90.h"
#include "kernels/cuda/mma_sm80.cuh"
#include "kernels/cuda/mma_sm90.cuh"

namespace ingot::sm90 {

constexpr int kAlibiRows = 8;  // rows 0 to 2 are ones, 3 to 5 column indices, then zeros
constexpr uint32_t kBothSigns = 0x80008000u;

// The tile's size in elements, for scores of 64 or 128 columns.
constexpr int alibi_elements(int columns) {
    return kAlibiRows * columns;
}
// All threads of a block call this, before a barrier.
__device__ inline void write_alibi_tile(uint32_t tile, int columns, int thread, int num_threads) {
    const int chunks = columns / 8;
    for (int n = thread; n < kAlibiRows * chunks; n += num_threads) {
        const int row = n / chunks, chunk = n % chunks;
        const auto pair = [&](int e) {
            const auto place = static_cast<float>(8 * chunk + e);
            const uint32_t places = tiles::pack<DType::bf16>(place, place + 1),
                           ones = tiles::pack<DType::bf16>(1.0f, 1.0f);
            return static_cast<int>(row < 3 ? ones : row < 6 ? places : 0);
        };
        store_shared(tile + panel_offset(row, chunk, kAlibiRows), make_int4(pair(0), pair(2), pair(4), pair(6)));
    }
    publish_shared();
}
// The tile's rows 8 to 15 are rows 0 to 7 again, which are multiplied by zeros. (compute-sanitizer assumes that wgmma
// reads 16 consecutive rows, so that as much again of shared memory should follow.)
INGOT_HD constexpr uint64_t alibi_descriptor(uint32_t tile) {
    return matrix_descriptor(tile, kAlibiRows * kPanelRowBytes, 0);
}

// Fills this lane's registers of the operand that makes its rows starts[row] + step * (index of the column).
__device__ __forceinline__ void alibi_operand(uint32_t (&operand)[4], const float (&starts)[2], float step, int lane) {
    struct Pieces {
        float high, middle, low;
    };
    const auto pieces_of = [](float value) {
        const auto rounded = [](float x) { return tiles::unpack<DType::bf16>(tiles::pack<DType::bf16>(x, 0.0f)).x; };
        const float high = rounded(value), middle = rounded(value - high);
        return Pieces{high, middle, value - high - middle};
    };
    const Pieces s = pieces_of(step);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const Pieces start = pieces_of(starts[half]);
        // Each lane has two of the first eight columns.
        const auto chosen = [&](float a, float b, float c) {
            return lane % 4 == 0 ? a : lane % 4 == 1 ? b : lane % 4 == 2 ? c : 0.0f;
        };
        operand[half] =
            tiles::pack<DType::bf16>(chosen(start.high, start.low, s.middle), chosen(start.middle, s.high, s.low));
    }
    operand[2] = operand[3] = 0;
}

}  // namespace ingot::sm90
