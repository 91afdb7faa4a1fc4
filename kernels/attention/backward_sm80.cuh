// The backward kernels on tensor cores. backward_sm80.cu includes this file, and so does the test that runs them on the
// CPU.
//
// With P = e^(S - lse) and delta = rowsum(dout * out):
//
//   dS = P * (dout V^T - delta),   dQ = scale dS K,   dK = scale dS^T Q,   dV = P^T dout
//
//   prepare   a block per 64 queries of a head:  delta, lse in log 2; the order of the key tiles
//   main      a block per tile of keys of a key/value head, over the queries that see it and the group's query heads
//   finish    a block per 64 queries of a head:  dQ scaled and rounded
//
// main computes S and dP transposed, a row for each key. A warp has 16 or 32 keys to itself, and its registers hold P^T
// and dS^T as the GEMMs for dV and dK take their first operand. Only dS passes through shared memory, for dQ. dK and dV
// stay in registers over all queries and heads of the group, so that they need no atomics.
//
// dQ is the sum over key tiles, added in global memory in fp32. In deterministic mode each tile of dQ has a turn: how
// many key tiles have added, in the order of policy.h. A block reads the turn while its GEMMs run, adds (the first one
// stores), and passes the turn on after its next barrier, when the additions have long arrived. Otherwise blocks add in
// any order, to zeros that prepare has written.
//
// As in the forward pass, S is initialised with the part of ALiBi's bias that depends on the key, and the query's part
// joins its lse.
#pragma once

#include "kernels/attention/backward_common.cuh"

namespace ingot::sm80 {

using namespace tiles;

template <int HS>
struct BackwardShape {
    // The accumulators of dK and dV take 2 HS registers of a lane where a warp has 32 keys. Up to HS = 64 that fits,
    // and each operand that a warp loads then serves twice the keys: four warps, two blocks to a multiprocessor.
    // Beyond, 16 keys, eight warps, and V in registers instead of shared memory.
    static constexpr bool kIsWide = HS > 64;
    static constexpr int kRowBlocks = kIsWide ? 1 : 2;  // of 16 keys, of a warp
    static constexpr int kWarps = kIsWide ? 8 : 4, kThreads = 32 * kWarps;
    static constexpr int kBlocks = kIsWide ? 1 : 2;         // on a multiprocessor, by registers
    static constexpr int kKeys = 16 * kRowBlocks * kWarps;  // 128
    static constexpr int kQueries = 64;
    static constexpr bool kKeepsV = kIsWide;
    // A warp's part of dQ's tile: 16 kDqRowBlocks queries, HS / kDqColumnWarps columns.
    static constexpr int kDqColumnWarps = HS == 128 ? 4 : 2;
    static constexpr int kDqRowBlocks = kQueries / 16 * kDqColumnWarps / kWarps;
    static constexpr int kDqColumns = HS / kDqColumnWarps;
    static_assert(kDqColumns % 16 == 0 && kDqRowBlocks >= 1);
};

template <int HS>
struct alignas(128) BackwardShared {
    using Shape = BackwardShape<HS>;
    uint16_t k[Shape::kKeys * HS];
    uint16_t q[2][Shape::kQueries * HS];  // the next tile is copied during this one's GEMMs
    uint16_t dout[Shape::kQueries * HS];
    uint16_t ds[Shape::kKeys * Shape::kQueries];         // (keys, queries)
    uint16_t v[Shape::kKeepsV ? 8 : Shape::kKeys * HS];  // nothing, if it is kept in registers
    float lse[2][Shape::kQueries], delta[Shape::kQueries];
    int adders[2][4];                   // of each stage's queries, as prepare wrote them
    int seen[Shape::kWarps][4];         // SeenByRows of each warp's keys
    int tile, head, begin, split, end;  // of keys; of keys and values; the walk through the queries that see the tile
    int turn;                           // this block's turn at the tile of queries
    // V passes through dout and ds, which lie side by side, into registers.
    static_assert(!Shape::kKeepsV || sizeof(dout) + sizeof(ds) >= Shape::kKeys * HS * 2);
};

// ---- prepare ----

template <DType kType, int HS>
__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(const __grid_constant__ BackwardArgs a) {
    prepare<kType, HS, BackwardShape<HS>::kQueries, BackwardShape<HS>::kKeys>(a);
}

// ---- main ----

// Starts the copy of a tile's statistics (one float a query) to shared memory, in chunks of 16 bytes.
template <int kQueries>
__device__ void start_statistics(uint32_t to, const float* statistics) {
    const int thread = opaque(static_cast<int>(threadIdx.x));
    if (thread < kQueries / 4) start_copy(to + static_cast<uint32_t>(thread * 16), statistics + thread * 4, true);
}

template <DType kType, int HS, bool kHasAlibi>
__global__ void __launch_bounds__(BackwardShape<HS>::kThreads, BackwardShape<HS>::kBlocks)
    backward_kernel(const __grid_constant__ BackwardArgs a) {
    using Shape = BackwardShape<HS>;
    using Shared = BackwardShared<HS>;
    constexpr int kKeys = Shape::kKeys, kQueries = Shape::kQueries, kThreads = Shape::kThreads;
    constexpr int kRowBlocks = Shape::kRowBlocks, kWarpKeys = 16 * kRowBlocks;
    const uint32_t shared = shared_memory();
    const uint32_t k_tile = shared + static_cast<uint32_t>(offsetof(Shared, k));
    const uint32_t q_tiles = shared + static_cast<uint32_t>(offsetof(Shared, q));
    const uint32_t dout_tile = shared + static_cast<uint32_t>(offsetof(Shared, dout));
    const uint32_t ds_tile = shared + static_cast<uint32_t>(offsetof(Shared, ds));
    const uint32_t v_tile = Shape::kKeepsV ? dout_tile : shared + static_cast<uint32_t>(offsetof(Shared, v));
    const uint32_t lse_rows = shared + static_cast<uint32_t>(offsetof(Shared, lse));
    const uint32_t delta_row = shared + static_cast<uint32_t>(offsetof(Shared, delta));
    constexpr uint32_t kQTileBytes = sizeof(Shared::q[0]), kLseBytes = sizeof(Shared::lse[0]);
    const auto place = [](int* lane, int* warp) {
        const auto thread = static_cast<unsigned>(opaque(static_cast<int>(threadIdx.x)));
        *lane = static_cast<int>(thread % 32), *warp = static_cast<int>(thread / 32);
    };
    // tell() publishes a value to the block. known() reads it into a uniform register, as there are no others left;
    // known_alone() is for code that not all lanes run.
    const auto known_alone = [&](size_t offset) {
        return static_cast<int>(load_shared(shared + static_cast<uint32_t>(offset)));
    };
    const auto known = [&](size_t offset) { return uniform(known_alone(offset)); };
    const auto tell = [&](size_t offset, int value) {
        store_shared(shared + static_cast<uint32_t>(offset), static_cast<uint32_t>(value));
    };
    if (threadIdx.x == 0) {
        const KeyTicket mine =
            key_ticket(atomicAdd(a.counter, 1), (a.N + kKeys - 1) / kKeys, a.NH / a.G, a.heads_per_section);
        const int tile = a.order[mine.rank];
        const QueryWalk walk = query_walk(a.first_query, a.end_query, tile, a.N, kQueries, kKeys);
        tell(offsetof(Shared, tile), tile);
        tell(offsetof(Shared, head), mine.head);
        tell(offsetof(Shared, begin), walk.begin);
        tell(offsetof(Shared, split), walk.split);
        tell(offsetof(Shared, end), walk.end);
    }
    __syncthreads();
    if (threadIdx.x < Shape::kWarps) {
        const int key0 = known_alone(offsetof(Shared, tile)) * kKeys + static_cast<int>(threadIdx.x) * kWarpKeys;
        // No query sees keys past the end, so indices must be compared there: with a score of 0 such a key would have
        // P = e^-lse, which may be infinity, and infinity times the zeros of K is NaN.
        SeenByRows seen = {0, 0, 0, 0};
        if (key0 + kWarpKeys <= a.N) seen = seen_by_rows(a.first_query, a.end_query, key0, key0 + kWarpKeys);
        const size_t to = offsetof(Shared, seen) + threadIdx.x * 16;
        tell(to, seen.lowest_first), tell(to + 4, seen.highest_first);
        tell(to + 8, seen.lowest_end), tell(to + 12, seen.highest_end);
    }
    const int tile = known(offsetof(Shared, tile)), first_key = tile * kKeys, kv_head = known(offsetof(Shared, head));
    const QueryWalk walk = {known(offsetof(Shared, begin)), known(offsetof(Shared, split)),
                            known(offsetof(Shared, end))};
    int head = kv_head * a.G, q0 = walk.begin < walk.end ? walk.first(kQueries) : -1;

    const auto start_q = [&](int head, int q0, int stage) {
        start_tile<HS, kQueries, kThreads>(q_tiles + static_cast<uint32_t>(stage) * kQTileBytes, a.q, head, q0, a.N);
        start_statistics<kQueries>(lse_rows + static_cast<uint32_t>(stage) * kLseBytes,
                                   a.lse_log2 + static_cast<int64_t>(opaque(head)) * a.padded_N + q0);
        if (threadIdx.x == 0)
            start_copy(shared + static_cast<uint32_t>(offsetof(Shared, adders)) + static_cast<uint32_t>(stage * 16),
                       a.adders + static_cast<unsigned>(q0) / kQueries * 4, true);
    };
    const auto start_dout = [&](int head, int q0) {
        start_tile<HS, kQueries, kThreads>(dout_tile, a.dout, head, q0, a.N);
        start_statistics<kQueries>(delta_row, a.delta + static_cast<int64_t>(opaque(head)) * a.padded_N + q0);
    };

    float dk[kRowBlocks][HS / 8][4], dv[kRowBlocks][HS / 8][4];
    set_zero<kRowBlocks, HS / 8>(dk);
    set_zero<kRowBlocks, HS / 8>(dv);
    uint32_t v_operand[Shape::kKeepsV ? HS / 16 : 1][kRowBlocks][4];

    if (q0 >= 0) {
        start_tile<HS, kKeys, kThreads>(v_tile, a.v, kv_head, first_key, a.N);
        commit_copies();
        start_tile<HS, kKeys, kThreads>(k_tile, a.k, kv_head, first_key, a.N);
        start_q(head, q0, 0);
        commit_copies();
        if constexpr (Shape::kKeepsV) {
            wait_for_copies<1>();
            __syncthreads();
            int lane, warp;
            place(&lane, &warp);
            const MatrixLane<HS> rows_lane = rows_first<HS>(lane);
#pragma unroll
            for (int d = 0; d < HS / 16; ++d)
#pragma unroll
                for (int m = 0; m < kRowBlocks; ++m)
                    load_matrices(v_operand[d][m], rows_lane.at(v_tile, warp * kWarpKeys + 16 * m, 2 * d));
            __syncthreads();  // V is in registers: dout and dS may overwrite it
        }
        start_dout(head, q0);
        commit_copies();
        wait_for_copies<1>();
        __syncthreads();  // K and Q have arrived (dout may not have)
    }

    const auto turn_at = [&](int at_head, int at_q0) {
        return a.turns + static_cast<int64_t>(at_head) * a.num_query_tiles + static_cast<unsigned>(at_q0) / kQueries;
    };
    // Lets the next block add to a tile, once this one's additions are behind a barrier.
    const auto pass_turn = [&](int at_head, int at_q0) {
        store_release(turn_at(at_head, at_q0), known_alone(offsetof(Shared, turn)) + 1);
    };
    int last_head = -1, last_q0 = -1;
    for (int stage = 0; q0 >= 0; stage ^= 1) {
        const uint32_t q_tile = q_tiles + static_cast<uint32_t>(stage) * kQTileBytes;
        const uint32_t lse_row = lse_rows + static_cast<uint32_t>(stage) * kLseBytes;
        const bool is_last_of_group = head + 1 == (kv_head + 1) * a.G;
        const int next_head = is_last_of_group ? kv_head * a.G : head + 1;
        const int next_q0 = is_last_of_group ? walk.after(q0, kQueries) : q0;
        if (next_q0 >= 0) start_q(next_head, next_q0, stage ^ 1);
        commit_copies();

        // ---- P^T = 2^(scale_log2 K Q^T - lse) ----
        // Recompute lane offsets per GEMM, so that the compiler does not keep one GEMM's addresses in registers across
        // the others.
        int lane, warp;
        place(&lane, &warp);
        // key0 is the warp's first key.
        const int key0 = first_key + warp * kWarpKeys;
        const AlibiSide side = alibi_side(q0, q0 + kQueries, key0, key0 + kWarpKeys);
        const uint4 s = load_shared_vector(shared + static_cast<uint32_t>(offsetof(Shared, seen)) +
                                           static_cast<uint32_t>(warp * 16));
        const SeenByRows seen = {static_cast<int>(s.x), static_cast<int>(s.y), static_cast<int>(s.z),
                                 static_cast<int>(s.w)};
        const bool is_compared = !seen.is_all_of(q0, q0 + kQueries) || (kHasAlibi && side.crosses_diagonal);

        float p[kRowBlocks][kQueries / 8][4];
        {
            const MatrixLane<HS> rows_lane = rows_first<HS>(lane), chunks_lane = chunks_first<HS>(lane);
            float start[kRowBlocks][4] = {};
            const float slope = kHasAlibi ? a.slopes[head] / a.scale : 0.0f;  // S is divided by the scale
            if constexpr (kHasAlibi)
#pragma unroll
                for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
                    for (int e = 0; e < 4; ++e)
                        start[m][e] = static_cast<float>(side.sign) * slope *
                                      static_cast<float>(warp * kWarpKeys + 16 * m + fragment_row(lane, e));
#pragma unroll
            for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
                for (int n = 0; n < kQueries / 8; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) p[m][n][e] = start[m][e];
            const auto load_k = [&](int d, uint32_t(&k)[kRowBlocks][4]) {
#pragma unroll
                for (int m = 0; m < kRowBlocks; ++m)
                    load_matrices(k[m], rows_lane.at(k_tile, warp * kWarpKeys + 16 * m, 2 * d));
            };
            const auto load_q = [&](int d, int n, uint32_t(&q)[4]) {
                load_matrices(q, chunks_lane.at(q_tile, 16 * n, 2 * d));
            };
            if constexpr (Shape::kIsWide) {
                // Each operand is reloaded as soon as it is used, for the next 16 of HS, so that a load has a whole
                // step to arrive.
                uint32_t k[kRowBlocks][4], q[kQueries / 16][4];
                load_k(0, k);
#pragma unroll
                for (int n = 0; n < kQueries / 16; ++n) load_q(0, n, q[n]);
#pragma unroll 2
                for (int d = 0; d < HS / 16; ++d) {
                    const int next = d + 1 < HS / 16 ? d + 1 : 0;  // the last step loads operands that nothing uses
#pragma unroll
                    for (int n = 0; n < kQueries / 16; ++n) {
#pragma unroll
                        for (int m = 0; m < kRowBlocks; ++m)
                            multiply_pair<kType>(p[m][2 * n], p[m][2 * n + 1], k[m], q[n]);
                        load_q(next, n, q[n]);
                    }
                    load_k(next, k);
                }
            } else {
                // Loops that index no registers are unrolled in part: unrolled fully, they load so far ahead that other
                // registers spill.
#pragma unroll 2
                for (int d = 0; d < HS / 16; ++d) {
                    uint32_t k[kRowBlocks][4];
                    load_k(d, k);
#pragma unroll
                    for (int n = 0; n < kQueries / 16; ++n) {
                        uint32_t q[4];
                        load_q(d, n, q);
#pragma unroll
                        for (int m = 0; m < kRowBlocks; ++m)
                            multiply_pair<kType>(p[m][2 * n], p[m][2 * n + 1], k[m], q);
                    }
                }
            }
        }
        place(&lane, &warp);
        if (kHasAlibi && side.crosses_diagonal) {
            const float slope = a.slopes[head] / a.scale;
            const int above0 = first_key + warp * kWarpKeys - q0;
#pragma unroll
            for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
                for (int n = 0; n < kQueries / 8; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const int above = above0 + 16 * m + fragment_row(lane, e) - 8 * n - fragment_column(lane, e);
                        p[m][n][e] -= 2 * slope * static_cast<float>(max(above, 0));
                    }
        }
        const float slope_log2 = kHasAlibi ? a.slopes[head] * static_cast<float>(kLog2E) : 0.0f;
        const int distance = kHasAlibi ? q0 - first_key : 0;
#pragma unroll
        for (int n = 0; n < kQueries / 8; ++n) {
            const int column = 8 * n + fragment_column(lane, 0);
            float2 lse = load_shared_floats(lse_row + static_cast<uint32_t>(column * 4));
            if constexpr (kHasAlibi) {
                // The query's part of the bias, in log 2: -+ slope (i - k0).
                const float row_step = static_cast<float>(side.sign) * slope_log2;
                lse.x = fmaf(row_step, static_cast<float>(distance + column), lse.x);
                lse.y = fmaf(row_step, static_cast<float>(distance + column + 1), lse.y);
            }
#pragma unroll
            for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    p[m][n][e] = exp2_fast(fmaf(p[m][n][e], a.scale_log2, e % 2 == 0 ? -lse.x : -lse.y));
        }
        place(&lane, &warp);
        if (is_compared) {
#pragma unroll
            for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int j = first_key + warp * kWarpKeys + 16 * m + fragment_row(lane, 2 * half);
                    // Offsets are columns of the tile, counted from this lane's first.
                    const int offset = q0 + fragment_column(lane, 0);
                    const int first = (j < a.N ? a.first_query[j] : 0) - offset;
                    const int end = (j < a.N ? a.end_query[j] : 0) - offset;
#pragma unroll
                    for (int n = 0; n < kQueries / 8; ++n)
#pragma unroll
                        for (int e = 0; e < 2; ++e)
                            if (8 * n + e < first || 8 * n + e >= end) p[m][n][2 * half + e] = 0;
                }
        }

        wait_for_copies<1>();
        __syncthreads();  // dout has arrived, and all warps have added to the previous tile of dQ
        if (a.is_deterministic && threadIdx.x == 32 && last_q0 >= 0) pass_turn(last_head, last_q0);

        // ---- dV += P^T dout ----
        place(&lane, &warp);
        {
            const MatrixLane<HS> rows_lane = rows_first<HS>(lane);
#pragma unroll
            for (int i = 0; i < kQueries / 16; ++i) {
                uint32_t p_operand[kRowBlocks][4];
#pragma unroll
                for (int m = 0; m < kRowBlocks; ++m)
                    round_to_operand<kType>(p_operand[m], p[m][2 * i], p[m][2 * i + 1]);
#pragma unroll
                for (int n = 0; n < HS / 16; ++n) {
                    uint32_t dout[4];
                    load_matrices_transposed(dout, rows_lane.at(dout_tile, 16 * i, 2 * n));
#pragma unroll
                    for (int m = 0; m < kRowBlocks; ++m)
                        multiply_pair<kType>(dv[m][2 * n], dv[m][2 * n + 1], p_operand[m], dout);
                }
            }
        }

        // ---- dS^T = P^T * (V dout^T - delta), dK += dS^T Q ----
        // Part of the queries at a time, so that registers never hold a whole dP or dS.
        constexpr int kPart = 16 * (kRowBlocks == 1 ? 2 : 1);
#pragma unroll
        for (int part = 0; part < kQueries; part += kPart) {
            place(&lane, &warp);
            const MatrixLane<HS> chunks_lane = chunks_first<HS>(lane);
            uint32_t ds[kRowBlocks][kPart / 16][4];
            float dp[kRowBlocks][kPart / 8][4];
            set_zero<kRowBlocks, kPart / 8>(dp);
#pragma unroll(Shape::kKeepsV ? HS / 16 : 2)
            for (int d = 0; d < HS / 16; ++d) {
                uint32_t v[kRowBlocks][4];
#pragma unroll
                for (int m = 0; m < kRowBlocks; ++m) {
                    if constexpr (Shape::kKeepsV) {
#pragma unroll
                        for (int e = 0; e < 4; ++e) v[m][e] = v_operand[d][m][e];
                    } else {
                        load_matrices(v[m], rows_first<HS>(lane).at(v_tile, warp * kWarpKeys + 16 * m, 2 * d));
                    }
                }
#pragma unroll
                for (int n = 0; n < kPart / 16; ++n) {
                    uint32_t dout[4];
                    load_matrices(dout, chunks_lane.at(dout_tile, part + 16 * n, 2 * d));
#pragma unroll
                    for (int m = 0; m < kRowBlocks; ++m)
                        multiply_pair<kType>(dp[m][2 * n], dp[m][2 * n + 1], v[m], dout);
                }
            }
#pragma unroll
            for (int n = 0; n < kPart / 8; ++n) {
                const float2 delta = load_shared_floats(
                    delta_row + static_cast<uint32_t>((part + 8 * n + fragment_column(lane, 0)) * 4));
#pragma unroll
                for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float(&probabilities)[4] = p[m][part / 8 + n];
                        const uint32_t pair =
                            pack<kType>(probabilities[2 * half] * (dp[m][n][2 * half] - delta.x),
                                        probabilities[2 * half + 1] * (dp[m][n][2 * half + 1] - delta.y));
                        ds[m][n / 2][n % 2 * 2 + half] = pair;
                        const int row = warp * kWarpKeys + 16 * m + fragment_row(lane, 2 * half);
                        store_shared(ds_tile + tile_offset<kQueries>(row, part / 8 + n) +
                                         static_cast<uint32_t>(fragment_column(lane, 0) * 2),
                                     pair);
                    }
            }
            place(&lane, &warp);
            const MatrixLane<HS> rows_lane = rows_first<HS>(lane);
#pragma unroll
            for (int i = 0; i < kPart / 16; ++i)
#pragma unroll
                for (int n = 0; n < HS / 16; ++n) {
                    uint32_t q[4];
                    load_matrices_transposed(q, rows_lane.at(q_tile, part + 16 * i, 2 * n));
#pragma unroll
                    for (int m = 0; m < kRowBlocks; ++m)
                        multiply_pair<kType>(dk[m][2 * n], dk[m][2 * n + 1], ds[m][i], q);
                }
        }
        // The load of the turn takes long, so it starts here; its result is needed only after the barrier.
        int turn_seen = 0;
        if (a.is_deterministic && threadIdx.x == 0) turn_seen = load_relaxed(turn_at(head, q0));
        __syncthreads();  // dS is complete, and all warps are done with dout
        if (next_q0 >= 0) start_dout(next_head, next_q0);
        commit_copies();

        // ---- dQ += dS K, in memory ----
        place(&lane, &warp);
        if (a.is_deterministic && warp == 0) {
            const size_t at = offsetof(Shared, adders) + static_cast<size_t>(stage * 16);
            const Adders adders = {known(at), known(at + 4), known(at + 8) != 0};
            int turn = tile - adders.first;
            if (!adders.is_in_row_order) {
                turn = adders_before(adders, a.ranks, tile, lane, 32);
#pragma unroll
                for (int distance = 16; distance > 0; distance /= 2) turn += __shfl_xor_sync(kAllLanes, turn, distance);
            }
            if (lane == 0) {
                tell(offsetof(Shared, turn), turn);
                if (turn_seen != turn) wait_for_turn(turn_at(head, q0), turn);
            }
        }
        {
            const int row_block = warp / Shape::kDqColumnWarps * Shape::kDqRowBlocks;
            const int first_column = warp % Shape::kDqColumnWarps * Shape::kDqColumns;
            const MatrixLane<kQueries> ds_lane = chunks_first<kQueries>(lane);
            const MatrixLane<HS> rows_lane = rows_first<HS>(lane);
            float dq[Shape::kDqRowBlocks][Shape::kDqColumns / 8][4];
            set_zero<Shape::kDqRowBlocks, Shape::kDqColumns / 8>(dq);
#pragma unroll 2
            for (int j = 0; j < kKeys / 16; ++j) {
                uint32_t ds[Shape::kDqRowBlocks][4];
#pragma unroll
                for (int m = 0; m < Shape::kDqRowBlocks; ++m)
                    load_matrices_transposed(ds[m], ds_lane.at(ds_tile, 16 * j, 2 * (row_block + m)));
#pragma unroll
                for (int n = 0; n < Shape::kDqColumns / 16; ++n) {
                    uint32_t k[4];
                    load_matrices_transposed(k, rows_lane.at(k_tile, 16 * j, first_column / 8 + 2 * n));
#pragma unroll
                    for (int m = 0; m < Shape::kDqRowBlocks; ++m)
                        multiply_pair<kType>(dq[m][2 * n], dq[m][2 * n + 1], ds[m], k);
                }
            }
            wait_for_copies<1>();
            __syncthreads();  // it is our turn, the next Q has arrived, all warps are done with this Q and with dS
            // A fragment is 16 x 8; each 16 queries have HS / 8 of them.
            float* const dq_memory = a.dq_accumulator +
                                     (static_cast<int64_t>(head) * a.padded_N + q0 + 16 * row_block) * HS +
                                     first_column / 8 * 128 + fragment_float(lane, 0);
            const auto for_fragments = [&](auto&& work) {
#pragma unroll
                for (int m = 0; m < Shape::kDqRowBlocks; ++m)
#pragma unroll
                    for (int n = 0; n < Shape::kDqColumns / 8; ++n) work(dq_memory + 16 * m * HS + n * 128, dq[m][n]);
            };
            if (a.is_deterministic && known(offsetof(Shared, turn)) == 0)
                for_fragments([](float* to, const float(&values)[4]) { set_fragment(to, values); });
            else
                for_fragments([](float* to, const float(&values)[4]) { add_fragment(to, values); });
        }
        last_head = head, last_q0 = q0;
        head = next_head, q0 = next_q0;
    }

    wait_for_copies<0>();
    __syncthreads();  // all warps have added, and are done with K
    if (a.is_deterministic && threadIdx.x == 32 && last_q0 >= 0) pass_turn(last_head, last_q0);
    int lane, warp;
    place(&lane, &warp);
    float ones[kRowBlocks][2], scales[kRowBlocks][2];
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) ones[m][half] = 1, scales[m][half] = a.scale;
    const uint32_t rows = k_tile + static_cast<uint32_t>(warp * kWarpKeys * HS * 2);
    store_rows<kType, HS, kRowBlocks>(rows, a.dk.head(kv_head), a.dk.token_stride, first_key + warp * kWarpKeys, a.N,
                                      lane, dk, scales);
    __syncwarp();
    store_rows<kType, HS, kRowBlocks>(rows, a.dv.head(kv_head), a.dv.token_stride, first_key + warp * kWarpKeys, a.N,
                                      lane, dv, ones);
}

// ---- finish ----

template <DType kType, int HS>
__global__ void __launch_bounds__(32 * kFinishWarps) finish_kernel(const __grid_constant__ BackwardArgs a) {
    finish<kType, HS, BackwardShape<HS>::kQueries>(a);
}

}  // namespace ingot::sm80
