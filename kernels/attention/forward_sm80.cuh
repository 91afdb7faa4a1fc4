// The forward kernel on tensor cores (Flash attention: Dao et al. 2022; Dao 2023). forward_sm80.cu includes this file,
// and so does the test that runs it on the CPU.
//
// A block has a tile of queries of one head, a warp 32 of its rows. It walks over the tiles of keys that they see, from
// the last to the first, with S = Q K^T and the accumulator of P V in registers. V's tile is copied during Q K^T, the
// next K during P V.
//
// Scores are in the domain of log 2: with c = scale log2(e), a probability before normalisation is 2^(c s - maximum),
// one fused multiply-add and one ex2. The running maximum moves only when a score exceeds it by more than 8, a factor
// of 2^8, so that the accumulator is rarely rescaled (P stays far below fp16's 65504; in bf16 and fp16 alike its
// relative precision does not depend on the maximum).
//
// ALiBi initialises the accumulator of S: it starts as the part of the bias that depends on the key, divided by
// `scale`, the same for all rows; the part that depends on the query joins the running maximum.
#pragma once

#include "kernels/attention/policy.h"
#include "kernels/attention/tiles.cuh"

namespace ingot::sm80 {

using namespace tiles;

template <int HS>
struct ForwardShape {
    static constexpr int kWarps = 4, kThreads = 32 * kWarps;
    static constexpr int kRowBlocks = 2;                       // of 16 queries, of a warp
    static constexpr int kQueries = kWarps * 16 * kRowBlocks;  // 128
    // P V's accumulator takes HS registers of a lane, and scores one for each key of a tile: at most 192 of 255.
    static constexpr int kKeys = HS <= 64 ? 128 : 64;
};

template <int HS>
struct alignas(128) ForwardShared {
    uint16_t q[ForwardShape<HS>::kQueries * HS];
    uint16_t k[ForwardShape<HS>::kKeys * HS];
    uint16_t v[ForwardShape<HS>::kKeys * HS];
};

struct ForwardArgs {
    View out, q, k, v;
    float* lse;           // (NH, N)
    const float* slopes;  // (NH), with ALiBi
    const int32_t *first_key, *end_key;
    int N, G;
    float scale, scale_log2;  // > 0; times log2(e)
};

template <DType kType, int HS, bool kHasAlibi>
__global__ void __launch_bounds__(ForwardShape<HS>::kThreads, 2) forward_kernel(const __grid_constant__ ForwardArgs a) {
    using Shape = ForwardShape<HS>;
    using Shared = ForwardShared<HS>;
    constexpr int kKeys = Shape::kKeys, kThreads = Shape::kThreads, kRowBlocks = Shape::kRowBlocks;
    constexpr int kWarpRows = 16 * kRowBlocks;
    const uint32_t shared = shared_memory();
    const uint32_t q_tile = shared + static_cast<uint32_t>(offsetof(Shared, q));
    const uint32_t k_tile = shared + static_cast<uint32_t>(offsetof(Shared, k));
    const uint32_t v_tile = shared + static_cast<uint32_t>(offsetof(Shared, v));
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;

    // Under a causal mask the last tiles see the most keys, so they go first.
    const int q0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * Shape::kQueries;
    const int head = static_cast<int>(blockIdx.y), kv_head = head / a.G;
    const TileRange keys = reached_tiles(a.first_key, a.end_key, q0, min(q0 + Shape::kQueries, a.N), a.N, kKeys);
    const int num_tiles = keys.num_tiles(kKeys);

    // The warp has rows [row0, row1).
    const int row0 = q0 + warp * kWarpRows, row1 = min(row0 + kWarpRows, a.N);
    const float slope = kHasAlibi ? a.slopes[head] / a.scale : 0.0f;  // S is divided by the scale

    start_tile<HS, Shape::kQueries, kThreads>(q_tile, a.q, head, q0, a.N);
    if (num_tiles > 0) start_tile<HS, kKeys, kThreads>(k_tile, a.k, kv_head, keys.begin + (num_tiles - 1) * kKeys, a.N);
    commit_copies();

    float out[kRowBlocks][HS / 8][4];
    float maximum[kRowBlocks][2], total[kRowBlocks][2];  // total: over this lane's columns
    set_zero<kRowBlocks, HS / 8>(out);
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) maximum[m][half] = -INFINITY, total[m][half] = 0;

    for (int k0 = keys.begin + (num_tiles - 1) * kKeys; k0 >= keys.begin; k0 -= kKeys) {
        wait_for_copies<0>();
        __syncthreads();  // K has arrived, and all warps are done with the previous V
        start_tile<HS, kKeys, kThreads>(v_tile, a.v, kv_head, k0, a.N);
        commit_copies();

        // These are read again for each tile, from L1, since the registers are needed elsewhere.
        SeenByRows seen = {0, 0, 0, 0};
        if (row0 < row1) seen = seen_by_rows(a.first_key, a.end_key, opaque(row0), row1);
        const AlibiSide side = alibi_side(row0, row1, k0, k0 + kKeys);
        const bool is_seen = !seen.is_nothing_of(k0, k0 + kKeys);
        const bool is_compared = !seen.is_all_of(k0, k0 + kKeys) || (kHasAlibi && side.crosses_diagonal);
        float scores[kRowBlocks][kKeys / 8][4];
        if (!is_seen) {
            // The zeros are never read, but scores written on one path only would occupy registers in the whole loop.
            set_zero<kRowBlocks, kKeys / 8>(scores);
        } else {
            const MatrixLane<HS> rows_lane = rows_first<HS>(opaque(lane)), chunks_lane = chunks_first<HS>(opaque(lane));
#pragma unroll
            for (int d = 0; d < HS / 16; ++d) {
                uint32_t q[kRowBlocks][4];
#pragma unroll
                for (int m = 0; m < kRowBlocks; ++m)
                    load_matrices(q[m], rows_lane.at(q_tile, warp * kWarpRows + 16 * m, 2 * d));
#pragma unroll
                for (int n = 0; n < kKeys / 16; ++n) {
                    uint32_t k[4];
                    load_matrices(k, chunks_lane.at(k_tile, 16 * n, 2 * d));
                    if (d == 0) {
                        float start[2][4] = {};
                        if constexpr (kHasAlibi) {
                            const float step = static_cast<float>(side.sign) * slope;
                            const float base = step * static_cast<float>(fragment_column(opaque(lane), 0));
#pragma unroll
                            for (int side_by_side = 0; side_by_side < 2; ++side_by_side)
#pragma unroll
                                for (int e = 0; e < 4; ++e)
                                    start[side_by_side][e] =
                                        fmaf(step, static_cast<float>(16 * n + 8 * side_by_side + e % 2), base);
                        }
#pragma unroll
                        for (int m = 0; m < kRowBlocks; ++m) {
                            multiply_add<kType>(scores[m][2 * n], q[m], k[0], k[1], start[0]);
                            multiply_add<kType>(scores[m][2 * n + 1], q[m], k[2], k[3], start[1]);
                        }
                    } else {
#pragma unroll
                        for (int m = 0; m < kRowBlocks; ++m)
                            multiply_pair<kType>(scores[m][2 * n], scores[m][2 * n + 1], q[m], k);
                    }
                }
            }
        }

        wait_for_copies<0>();
        __syncthreads();  // V has arrived, and all warps are done with K
        if (k0 > keys.begin) {
            start_tile<HS, kKeys, kThreads>(k_tile, a.k, kv_head, k0 - kKeys, a.N);
            commit_copies();
        }
        if (!is_seen) continue;

        if (is_compared) {
#pragma unroll
            for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int i = row0 + 16 * m + fragment_row(opaque(lane), 2 * half);
                    // Offsets are columns of the tile, counted from this lane's first.
                    const int offset = k0 + fragment_column(opaque(lane), 0);
                    const int first = (i < a.N ? a.first_key[i] : 0) - offset;
                    const int end = (i < a.N ? a.end_key[i] : 0) - offset;
#pragma unroll
                    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
                        for (int e = 0; e < 2; ++e) {
                            float& score = scores[m][n][2 * half + e];
                            const int column = 8 * n + e;
                            if (kHasAlibi && side.crosses_diagonal)
                                score -= 2 * slope * static_cast<float>(max(column + offset - i, 0));
                            if (column < first || column >= end) score = -INFINITY;
                        }
                }
        }

        // The bias that depends on the query, in log 2: -+ slope (i - k0).
        const float row_step = kHasAlibi ? static_cast<float>(-side.sign) * slope * a.scale_log2 : 0.0f;
        const float row_base = row_step * static_cast<float>(row0 + fragment_row(opaque(lane), 0) - k0);
        const auto row_bias = [&](int m, int half) {
            return kHasAlibi ? fmaf(row_step, static_cast<float>(16 * m + 8 * half), row_base) : 0.0f;
        };
        bool grows = false;
        float largest[kRowBlocks][2];
#pragma unroll
        for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float most = scores[m][0][2 * half];
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n)
                    most = fmaxf(most, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
                most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
                most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
                largest[m][half] = fmaf(most, a.scale_log2, row_bias(m, half));
                grows = grows || largest[m][half] > maximum[m][half] + kMostAboveMaximum;
            }
        if (__any_sync(kAllLanes, grows)) {
#pragma unroll
            for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    // Each row by itself: a row's bits must not depend on what other rows of the warp see.
                    if (!(largest[m][half] > maximum[m][half] + kMostAboveMaximum)) continue;
                    const float shrink = exp2_fast(maximum[m][half] - largest[m][half]);
                    maximum[m][half] = largest[m][half];
                    total[m][half] *= shrink;
#pragma unroll
                    for (int n = 0; n < HS / 8; ++n)
#pragma unroll
                        for (int e = 0; e < 2; ++e) out[m][n][2 * half + e] *= shrink;
                }
        }
#pragma unroll
        for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                // A row that has seen no key so far keeps exponents finite or -inf, and probabilities of 0.
                const float finite = maximum[m][half] == -INFINITY ? 0.0f : maximum[m][half];
                const float shift = row_bias(m, half) - finite;
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        float& score = scores[m][n][2 * half + e];
                        score = exp2_fast(fmaf(score, a.scale_log2, shift));
                        total[m][half] += score;
                    }
            }

        const MatrixLane<HS> rows_lane = rows_first<HS>(opaque(lane));
#pragma unroll
        for (int step = 0; step < kKeys / 16; ++step) {
            uint32_t p[kRowBlocks][4];
#pragma unroll
            for (int m = 0; m < kRowBlocks; ++m)
                round_to_operand<kType>(p[m], scores[m][2 * step], scores[m][2 * step + 1]);
#pragma unroll
            for (int n = 0; n < HS / 16; ++n) {
                uint32_t v[4];
                load_matrices_transposed(v, rows_lane.at(v_tile, 16 * step, 2 * n));
#pragma unroll
                for (int m = 0; m < kRowBlocks; ++m) multiply_pair<kType>(out[m][2 * n], out[m][2 * n + 1], p[m], v);
            }
        }
    }

    float factors[kRowBlocks][2];
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = total[m][half];
            sum += __shfl_xor_sync(kAllLanes, sum, 1);
            sum += __shfl_xor_sync(kAllLanes, sum, 2);
            const bool sees_nothing = sum == 0.0f;  // false for NaN, which is passed on
            factors[m][half] = sees_nothing ? 0.0f : 1.0f / sum;
            const int i = row0 + 16 * m + fragment_row(lane, 2 * half);
            if (lane % 4 == 0 && i < a.N)
                a.lse[static_cast<int64_t>(head) * a.N + i] =
                    sees_nothing ? -INFINITY : maximum[m][half] * kLn2 + logf(sum);
        }
    // This warp's rows of Q, which no other warp reads, are free by now; without tiles their copy may be in flight.
    wait_for_copies<0>();
    __syncthreads();
    store_rows<kType, HS, kRowBlocks>(q_tile + static_cast<uint32_t>(warp * kWarpRows * HS * 2), a.out.head(head),
                                      a.out.token_stride, row0, a.N, lane, out, factors);
}

}  // namespace ingot::sm80
