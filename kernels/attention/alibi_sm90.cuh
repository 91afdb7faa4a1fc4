// ALiBi's bias as a product of tensor cores, by which a tile's scores begin: 16 more columns of Q and of K, of which
// six are not 0. It costs a score no instruction of its own.
//
// One operand is a tile in shared memory that stays: of its columns' places, 0 to 127, and of ones. The other is in
// registers: for each row, what does not depend on the column, and the step from one column to the next. A float is the
// sum of three bf16 numbers of eight significant bits each, so that nothing is lost, in fp16 neither.
#pragma once

#include "kernels/attention/fragments.h"
#include "kernels/attention/operands_sm90.h"
#include "kernels/cuda/mma_sm80.cuh"
#include "kernels/cuda/mma_sm90.cuh"

namespace ingot::sm90 {

constexpr int kAlibiRows = 8;  // of the tile: 0 to 2 ones, 3 to 5 places, then zeros
constexpr uint32_t kBothSigns = 0x80008000u;

// Elements of the tile for scores of `columns` columns, 64 or 128.
constexpr int alibi_elements(int columns) {
    return kAlibiRows * columns;
}
// By all threads of a block, before a barrier.
__device__ inline void write_alibi_tile(uint32_t tile, int columns, int thread, int num_threads) {
    const int chunks = columns / 8;
    for (int n = thread; n < kAlibiRows * chunks; n += num_threads) {
        const int row = n / chunks, chunk = n % chunks;
        const auto pair = [&](int e) {
            const auto place = static_cast<float>(8 * chunk + e);
            const uint32_t places = sm80::pack<DType::bf16>(place, place + 1),
                           ones = sm80::pack<DType::bf16>(1.0f, 1.0f);
            return static_cast<int>(row < 3 ? ones : row < 6 ? places : 0);
        };
        store_shared(tile + panel_offset(row, chunk, kAlibiRows), make_int4(pair(0), pair(2), pair(4), pair(6)));
    }
    publish_shared();
}
// Its rows 8 to 15 are rows 0 to 7 again, which meet zeros. (compute-sanitizer takes a product to read 16 rows on end,
// so that as much again of shared memory should follow.)
INGOT_HD constexpr uint64_t alibi_descriptor(uint32_t tile) {
    return matrix_descriptor(tile, kAlibiRows * kPanelRowBytes, 0);
}

// This lane's registers of the operand by which its rows become starts[row] + step (place of the column).
__device__ __forceinline__ void alibi_operand(uint32_t (&operand)[4], const float (&starts)[2], float step, int lane) {
    struct Pieces {
        float high, middle, low;
    };
    const auto pieces_of = [](float value) {
        const auto rounded = [](float x) { return sm80::unpack<DType::bf16>(sm80::pack<DType::bf16>(x, 0.0f)).x; };
        const float high = rounded(value), middle = rounded(value - high);
        return Pieces{high, middle, value - high - middle};
    };
    const Pieces s = pieces_of(step);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const Pieces start = pieces_of(starts[half]);
        // Two columns each, of the first eight.
        const auto chosen = [&](float a, float b, float c) {
            return lane % 4 == 0 ? a : lane % 4 == 1 ? b : lane % 4 == 2 ? c : 0.0f;
        };
        operand[half] =
            sm80::pack<DType::bf16>(chosen(start.high, start.low, s.middle), chosen(start.middle, s.high, s.low));
    }
    operand[2] = operand[3] = 0;
}

}  // namespace ingot::sm90
