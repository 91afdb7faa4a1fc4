// The backward kernels for Hopper: TMA loads and warp-group GEMMs (wgmma; Shah et al. 2024, FlashAttention-3).
// backward_sm90.cu includes this file, and so does the test that runs it on the CPU. backward_sm80.cuh has the formulas
// of the gradients, backward_common.cuh the kernels before and after the main one.
//
// The grid is persistent, and blocks take key tiles by ticket. A tile is 128 keys of a key/value head; the block goes
// through the queries that see them and the group's query heads. Two warp groups multiply, each with 64 keys. S and dP
// are computed transposed, a row for each key, so that P^T and dS^T lie in registers as the GEMMs for dV and dK take
// them, and the accumulators of dK and dV stay in registers over all queries and heads. Only dS passes through shared
// memory, for dQ = dS K, of which each group computes half: half the queries, or (HS 128) half the columns. ALiBi's
// bias is a GEMM too, which initialises S (alibi_sm90.cuh).
//
// In the third group one thread loads, and one warp writes dQ: a step's partial sums lie in shared memory in the order
// of dQ's fragments, and TMA adds them to global memory. In deterministic mode the warp waits for the step's turn
// (policy.h) while the others go on with the next step, and passes the turn on when its additions have arrived.
#pragma once

#include <type_traits>

#include "kernels/attention/backward_layout_sm90.cuh"

namespace ingot::sm90 {

using tiles::exp2_fast, tiles::fragment_column, tiles::fragment_row, tiles::load_shared_floats, tiles::opaque,
    tiles::pack, tiles::uniform;
using tiles::kAllLanes, tiles::kLog2E, tiles::kPrepareThreads, tiles::kFinishWarps;

// ---- The producer: one warp, so that counts lie in uniform registers; one thread of it starts the loads ----

template <int HS>
__device__ void produce(const BackwardArgs& args, const BackwardPlaces<HS>& shared) {
    using Shape = BackwardShape<HS>;
    constexpr int kKeys = Shape::kKeys, kQueries = Shape::kQueries;
    const tiles::BackwardArgs& a = args.common;
    const bool is_first_lane = static_cast<int>(threadIdx.x) % 32 == 0;
    uint32_t count = 0;
    for (uint32_t work_parity = 0;; work_parity ^= 1) {
        const int ticket = uniform(is_first_lane ? atomicAdd(a.counter, 1) : 0);
        const bool has_work = ticket < args.total_tiles;
        BackwardWork work = {-1, 0, {0, 0, 0}};
        if (has_work) {
            const KeyTicket taken = key_ticket(ticket, (a.N + kKeys - 1) / kKeys, a.NH / a.G, a.heads_per_section);
            work.kv_head = taken.head;
            work.tile = uniform(a.order[taken.rank]);
            const QueryWalk walk = query_walk(a.first_query, a.end_query, work.tile, a.N, kQueries, kKeys);
            work.walk = {uniform(walk.begin), uniform(walk.split), uniform(walk.end)};
        }
        wait(shared.work_empty(), work_parity ^ 1);
        if (is_first_lane) {
            store_shared(shared.work(), make_int4(work.kv_head, work.tile, 0, 0));
            store_shared(shared.work() + 16, make_int4(work.walk.begin, work.walk.split, work.walk.end, 0));
            arrive(shared.work_full());
        }
        if (!has_work) return;

        const auto load_keys = [&](uint32_t to, const TensorMap& map, uint32_t full, uint32_t empty) {
            wait(empty, work_parity ^ 1);
            if (!is_first_lane) return;
            arrive_expecting(full, shared.kKeyTileBytes);
            start_load(to, &map, 0, work.tile * kKeys, 0, work.kv_head, full, kUsedOnce);
        };
        load_keys(shared.k(), args.k, shared.k_full(), shared.k_empty());
        load_keys(shared.v(), args.v, shared.v_full(), shared.v_empty());
        for (BackwardStep step = first_step<kQueries>(work.walk); step.q0 >= 0;
             step = step_after<kQueries>(step, work.walk, a.G)) {
            const BackwardStage stage(count++);
            const int head = work.kv_head * a.G + step.head;
            const int64_t at = static_cast<int64_t>(head) * a.padded_N + step.q0;
            const auto load_queries = [&](uint32_t to, const TensorMap& map, uint32_t to_row, const float* statistics,
                                          uint32_t full, uint32_t empty) {
                wait(stage.barrier(empty), stage.parity ^ 1);
                if (!is_first_lane) return;
                arrive_expecting(stage.barrier(full), shared.kQueryTileBytes + shared.kStatisticsBytes);
                start_load(stage.of(to, shared.kQueryTileBytes), &map, 0, step.q0, 0, head, stage.barrier(full),
                           kUsedAgain);
                start_load_bytes(stage.of(to_row, shared.kStatisticsBytes), statistics + at, shared.kStatisticsBytes,
                                 stage.barrier(full));
            };
            load_queries(shared.q(), args.q, shared.lse(), a.lse_log2, shared.q_full(), shared.q_empty());
            load_queries(shared.dout(), args.dout, shared.delta(), a.delta, shared.dout_full(), shared.dout_empty());
            __syncwarp();  // a lane that lags behind could mistake a barrier's phase for the one two before
        }
    }
}

// ---- Writing dQ to global memory: one warp ----

template <int HS>
__device__ void add_dq(const BackwardArgs& args, const BackwardPlaces<HS>& shared) {
    constexpr int kQueries = BackwardShape<HS>::kQueries;
    const tiles::BackwardArgs& a = args.common;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    uint32_t parity = 0;
    for (uint32_t work_parity = 0;; work_parity ^= 1) {
        const BackwardWork work = receive_work<HS>(shared, work_parity, lane);
        if (work.kv_head < 0) break;
        for (BackwardStep step = first_step<kQueries>(work.walk); step.q0 >= 0;
             step = step_after<kQueries>(step, work.walk, a.G)) {
            const int head = work.kv_head * a.G + step.head, query_tile = step.q0 / kQueries;
            int turn = 0;
            if (a.is_deterministic) {
                const int4 at = *reinterpret_cast<const int4*>(a.adders + query_tile * 4);
                turn = work.tile - at.x;
                if (at.z == 0) {  // the ranks are not in the row's order: adders_before(), with few registers
                    turn = 0;
                    const int mine = a.ranks[work.tile];
#pragma unroll 1
                    for (int t = at.x + lane; t <= at.y; t += 32) turn += a.ranks[t] < mine;
#pragma unroll
                    for (int distance = 16; distance > 0; distance /= 2)
                        turn += __shfl_xor_sync(kAllLanes, turn, distance);
                }
            }
            wait(shared.dq_full(), parity);
            parity ^= 1;
            if (lane == 0) {
                int* const turn_at = a.turns + static_cast<int64_t>(head) * a.num_query_tiles + query_tile;
                float* const to = a.dq_accumulator + (static_cast<int64_t>(head) * a.padded_N + step.q0) * HS;
                if (a.is_deterministic) {
                    tiles::wait_for_turn(turn_at, turn);
                    order_copies();
                }
                // The first one stores instead of adding.
                if (a.is_deterministic && turn == 0)
                    start_store_floats(to, shared.dq(), shared.kDqBytes);
                else
                    start_add_floats(to, shared.dq(), shared.kDqBytes);
                await_stores_read();
                arrive(shared.dq_empty());
                if (a.is_deterministic) {
                    await_stores();
                    tiles::store_release(turn_at, turn + 1);
                }
            }
            __syncwarp();
        }
    }
    if (lane == 0) await_stores();
}

// ---- A consumer ----

// Recomputes this thread's lane at each call, so that addresses that depend on it do not occupy registers in between.
__device__ inline int lane_now() {
    return static_cast<int>(static_cast<unsigned>(opaque(static_cast<int>(threadIdx.x))) % 32);
}

// A warp's sixteen keys: which queries see them.
struct KeyRows {
    SeenByRows seen;
    bool sees_past;  // some of them are seen by earlier queries: |i - j| has two sides
};

// Turns S^T into P^T in place. `key0` is the warp's first key; `slope` is divided by the scale, as S is.
template <bool kHasAlibi, int kQueries>
__device__ __forceinline__ void to_probabilities(float (&p)[kQueries / 2], const tiles::BackwardArgs& a,
                                                 const KeyRows& rows, int q0, int key0, uint32_t lse_row, float slope) {
    const int lane = lane_now(), row = key0 + fragment_row(lane, 0);  // a thread has this key, and that 8 further
    const float scale_log2 = a.scale_log2;
    const int column0 = fragment_column(lane, 0);
    if constexpr (kHasAlibi) {
        if (alibi_side(q0, q0 + kQueries, key0, key0 + 16).crosses_diagonal && rows.sees_past) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int above = row + 8 * half - q0 - column0;
#pragma unroll
                for (int n = 0; n < kQueries / 8; ++n)
#pragma unroll
                    for (int e = 0; e < 2; ++e)
                        p[4 * n + 2 * half + e] -= 2 * slope * static_cast<float>(max(above - 8 * n - e, 0));
            }
        }
    }
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
        const float2 lse = load_shared_floats(lse_row + static_cast<uint32_t>((8 * n + column0) * 4));
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int e = 0; e < 2; ++e)
                p[4 * n + 2 * half + e] =
                    exp2_fast(fmaf(p[4 * n + 2 * half + e], scale_log2, e == 0 ? -lse.x : -lse.y));
    }
    if (!rows.seen.is_all_of(q0, q0 + kQueries)) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int j = row + 8 * half, offset = q0 + column0;
            const int first = (j < a.N ? a.first_query[j] : 0) - offset, end = (j < a.N ? a.end_query[j] : 0) - offset;
#pragma unroll
            for (int n = 0; n < kQueries / 8; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    if (8 * n + e < first || 8 * n + e >= end) p[4 * n + 2 * half + e] = 0;
        }
    }
}

// Starts S^T or dP^T: 64 rows of a tile of keys times a transposed tile of queries. With kAdds, `begin` starts a GEMM
// first, to whose result it is added.
template <DType kType, int HS, bool kAdds = false, typename Begin>
__device__ __forceinline__ void start_scores(float (&scores)[BackwardShape<HS>::kQueries / 2], uint32_t rows,
                                             uint32_t queries, const Begin& begin) {
    const uint64_t a = descriptor_over_columns(rows), b = descriptor_over_columns(queries);
    begin_gemm();
    begin();
#pragma unroll
    for (int d = 0; d < HS / 16; ++d) {
        const uint64_t a_step = a + step_over_columns(d, BackwardShape<HS>::kKeys);
        const uint64_t b_step = b + step_over_columns(d, BackwardShape<HS>::kQueries);
        if (d == 0)
            multiply_over_columns<kType, kAdds>(scores, a_step, b_step);
        else
            multiply_over_columns<kType, true>(scores, a_step, b_step);
    }
    end_batch();
}

// accumulator += a (64 keys x queries) times the tile of queries: dV with a = P^T, dK with a = dS^T.
template <DType kType, int HS>
__device__ __forceinline__ void start_accumulation(float (&accumulator)[HS / 2],
                                                   const uint32_t (&a)[BackwardShape<HS>::kQueries / 16][4],
                                                   uint32_t queries, bool is_first) {
    constexpr int kQueries = BackwardShape<HS>::kQueries;
    const uint64_t b = descriptor_over_rows(queries, kQueries);
    begin_gemm();
#pragma unroll
    for (int step = 0; step < kQueries / 16; ++step)
        multiply_over_rows<kType>(accumulator, a[step], b + step_over_rows(step), step > 0 || !is_first);
    end_batch();
}

// Starts a consumer's half of dQ = dS K.
template <DType kType, int HS>
__device__ __forceinline__ void start_dq(float (&dq)[32], uint32_t ds_tile, uint32_t k_tile, int consumer) {
    using Shape = BackwardShape<HS>;
    const uint32_t half = static_cast<uint32_t>(consumer) * Shape::kKeys * kPanelRowBytes;  // a panel
    const uint64_t a = descriptor_over_rows(ds_tile + (Shape::kSplitsQueries ? half : 0), Shape::kKeys);
    const uint64_t b = descriptor_over_rows(k_tile + (Shape::kSplitsQueries ? 0 : half), Shape::kKeys);
    begin_gemm();
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
        if (step == 0)
            multiply_rows_over_rows<kType, false>(dq, a, b);
        else
            multiply_rows_over_rows<kType, true>(dq, a + step_over_rows(step), b + step_over_rows(step));
    }
    end_batch();
}

// Multiplies a warp's 16 rows by `factor`, rounds them and stores them into a tile of `tile_rows` rows.
template <DType kType, int kSums>
__device__ __forceinline__ void store_fragments(uint32_t tile, int row, int tile_rows, const float (&sums)[kSums],
                                                float factor) {
    const int lane = lane_now();
#pragma unroll
    for (int n = 0; n < kSums / 8; ++n) {
        const auto pair = [&](int i) { return pack<kType>(sums[8 * n + i] * factor, sums[8 * n + i + 1] * factor); };
        store_matrices(tile + panel_offset(row + store_row(lane), store_chunk(lane, n), tile_rows), pair(0), pair(2),
                       pair(4), pair(6));
    }
}

template <DType kType, int HS, bool kHasAlibi>
__device__ void consume(const BackwardArgs& args, const BackwardPlaces<HS>& shared, int consumer) {
    using Shape = BackwardShape<HS>;
    constexpr int kKeys = Shape::kKeys, kQueries = Shape::kQueries;
    const tiles::BackwardArgs& a = args.common;
    const int warp = uniform(static_cast<int>(threadIdx.x) / 32 % 4);
    const auto is_first_thread = [] { return opaque(static_cast<int>(threadIdx.x)) % 128 == 0; };
    const int group_row = Shape::kGroupKeys * consumer, warp_row = group_row + 16 * warp;
    const uint32_t k_rows = shared.k() + static_cast<uint32_t>(group_row) * kPanelRowBytes;
    const uint32_t v_rows = shared.v() + static_cast<uint32_t>(group_row) * kPanelRowBytes;
    const uint32_t dk_tile = shared.dk() + static_cast<uint32_t>(consumer) * shared.kDkBytes;
    const uint32_t dv_tile = shared.ds() + static_cast<uint32_t>(consumer) * shared.kDkBytes;
    // This warp's fragments among those of dQ's tile.
    const int row_block = Shape::kSplitsQueries ? 4 * consumer + warp : warp;
    const int fragment = row_block * (HS / 8) + (Shape::kSplitsQueries ? 0 : 8 * consumer);
    const uint32_t dq_fragments = shared.dq() + static_cast<uint32_t>(fragment * 512);
    const auto leave = [&](uint32_t barrier) {  // this warp is done with what the barrier guards
        if (lane_now() == 0) arrive(barrier);
    };

    uint32_t count = 0;
    for (uint32_t work_parity = 0;; work_parity ^= 1) {
        const BackwardWork work = receive_work<HS>(shared, work_parity, lane_now());
        if (work.kv_head < 0) break;
        const int k0 = work.tile * kKeys, key0 = k0 + warp_row;
        KeyRows rows;
        // No query sees keys past the end: the index comparisons mask them.
        rows.seen = {0, a.N, 0, 0};
        rows.sees_past = false;
        if (key0 + 16 <= a.N) {
            rows.seen = {uniform(a.first_query[key0]), uniform(a.first_query[key0 + 15]), uniform(a.end_query[key0]),
                         uniform(a.end_query[key0 + 15])};
        }
        if constexpr (kHasAlibi) {
            const auto is_seen_early = [&](int j) { return j < a.N && a.first_query[j] < j; };
            const int row = key0 + fragment_row(lane_now(), 0);
            rows.sees_past = __any_sync(kAllLanes, is_seen_early(row) || is_seen_early(row + 8));
        }

        float dk[HS / 2], dv[HS / 2], p[kQueries / 2];
        BackwardStep step = first_step<kQueries>(work.walk);
        wait(shared.k_full(), work_parity);
        if (step.q0 < 0) {
#pragma unroll
            for (int i = 0; i < HS / 2; ++i) dk[i] = dv[i] = 0;
            leave(shared.k_empty());
            wait(shared.v_full(), work_parity);
            leave(shared.v_empty());
        }
        const auto slope_of = [&](const BackwardStep& at) {
            return a.slopes[work.kv_head * a.G + at.head] * args.inverse_scale;
        };
        // The initial value of S is +- slope ((j - q0) - (i - q0)).
        uint32_t bias[4];
        const auto prepare_bias = [&](const BackwardStep& at) {
            if constexpr (kHasAlibi) {
                const AlibiSide side = alibi_side(at.q0, at.q0 + kQueries, key0, key0 + 16);
                const float slope = static_cast<float>(side.sign) * slope_of(at);
                const int lane = lane_now(), distance = key0 + fragment_row(lane, 0) - at.q0;
                alibi_operand(bias, {slope * static_cast<float>(distance), slope * static_cast<float>(distance + 8)},
                              -slope, lane);
            }
        };
        const auto start_s = [&](const BackwardStage& stage) {
            wait(stage.barrier(shared.q_full()), stage.parity);
            start_scores<kType, HS, kHasAlibi>(p, k_rows, stage.of(shared.q(), shared.kQueryTileBytes), [&] {
                if constexpr (kHasAlibi)
                    multiply_over_rows<DType::bf16>(p, bias, alibi_descriptor(shared.alibi()), false);
            });
        };
        // Computes one step, and S of the next one if there is one.
        const auto multiply = [&](bool is_first, auto has_next, const BackwardStep& next) {
            const BackwardStage stage(count);
            const uint32_t q_tile = stage.of(shared.q(), shared.kQueryTileBytes);
            const uint32_t dout_tile = stage.of(shared.dout(), shared.kQueryTileBytes);
            const uint32_t ds_tile = stage.of(shared.ds(), shared.kDsBytes);

            if constexpr (!Shape::kScoresAhead) {
                prepare_bias(step);
                start_s(stage);
            }
            if (is_first) wait(shared.v_full(), work_parity);
            wait(stage.barrier(shared.dout_full()), stage.parity);
            float dp[kQueries / 2];
            start_scores<kType, HS>(dp, v_rows, dout_tile, [] {});
            if constexpr (!Shape::kScoresAhead) {
                await_batches<1>();
                settle(p);
            }
            to_probabilities<kHasAlibi, kQueries>(p, a, rows, step.q0, key0,
                                                  stage.of(shared.lse(), shared.kStatisticsBytes),
                                                  kHasAlibi ? slope_of(step) : 0.0f);
            uint32_t p_operand[kQueries / 16][4], ds[kQueries / 16][4];
            const auto round_p = [&] {
#pragma unroll
                for (int i = 0; i < kQueries / 4; ++i) p_operand[i / 4][i % 4] = pack<kType>(p[2 * i], p[2 * i + 1]);
            };
            if constexpr (Shape::kValuesFirst) {
                round_p();
                start_accumulation<kType, HS>(dv, p_operand, dout_tile, is_first);
                await_batches<1>();
            } else {
                await_batches<0>();
            }
            settle(dp);
            if constexpr (!decltype(has_next)::value) leave(shared.v_empty());
            const uint32_t delta_row = stage.of(shared.delta(), shared.kStatisticsBytes) +
                                       static_cast<uint32_t>(fragment_column(lane_now(), 0) * 4);
#pragma unroll
            for (int n = 0; n < kQueries / 8; ++n) {
                const float2 delta = load_shared_floats(delta_row + static_cast<uint32_t>(8 * n * 4));
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int i = 4 * n + 2 * half;
                    ds[n / 2][n % 2 * 2 + half] =
                        pack<kType>(p[i] * (dp[i] - delta.x), p[i + 1] * (dp[i + 1] - delta.y));
                }
            }
            if (is_first) {  // the store of the last tile's dV has read dS's memory
                if (is_first_thread()) await_stores_read();
                meet(kPair, 256);
            }
            {
                const int lane = lane_now();
#pragma unroll
                for (int n = 0; n < kQueries / 16; ++n)
                    store_matrices(ds_tile + panel_offset(warp_row + store_row(lane), store_chunk(lane, n), kKeys),
                                   ds[n][0], ds[n][1], ds[n][2], ds[n][3]);
            }
            publish_shared();
            if constexpr (!Shape::kValuesFirst) {
                round_p();
                start_accumulation<kType, HS>(dv, p_operand, dout_tile, is_first);
            }
            start_accumulation<kType, HS>(dk, ds, q_tile, is_first);
            constexpr bool kIsAhead = Shape::kScoresAhead && decltype(has_next)::value;
            if constexpr (kIsAhead) prepare_bias(next);
            meet(kPair, 256);  // all of dS has been written, and the other stage's dS is no longer read

            float dq[32];
            start_dq<kType, HS>(dq, ds_tile, shared.k(), consumer);
            await_batches<1>();  // dV and dK
            arrive_for_warp(stage.barrier(shared.dout_empty()), lane_now());
            arrive_for_warp(stage.barrier(shared.q_empty()), lane_now());
            if constexpr (kIsAhead) start_s(BackwardStage(count + 1));
            await_batches<kIsAhead ? 1 : 0>();
            settle(dq);
            if constexpr (!decltype(has_next)::value) leave(shared.k_empty());
            wait(shared.dq_empty(), count % 2 ^ 1);
            const uint32_t dq_at = dq_fragments + static_cast<uint32_t>(lane_now() * 16);
#pragma unroll
            for (int n = 0; n < 8; ++n)
                store_shared(dq_at + static_cast<uint32_t>(512 * n),
                             make_float4(dq[4 * n], dq[4 * n + 1], dq[4 * n + 2], dq[4 * n + 3]));
            publish_shared();
            __syncwarp();
            leave(shared.dq_full());
            if constexpr (kIsAhead) {
                await_batches<0>();
                settle(p);
            }
            ++count;
        };
        if (step.q0 >= 0) {
            if constexpr (Shape::kScoresAhead) {
                prepare_bias(step);
                start_s(BackwardStage(count));
                await_batches<0>();
                settle(p);
            }
            bool is_first = true;
            for (;;) {
                const BackwardStep next = step_after<kQueries>(step, work.walk, a.G);
                if (next.q0 < 0) break;
                multiply(is_first, std::true_type{}, next);
                is_first = false;
                step = next;
            }
            multiply(is_first, std::false_type{}, step);
        }
        settle(dk);
        settle(dv);

        // dK and dV go through shared memory, which the last tile's stores must have read. TMA does not write rows past
        // the end.
        if (is_first_thread()) await_stores_read();
        meet(kPair, 256);  // both groups are done with dS, whose memory dV takes
        store_fragments<kType>(dv_tile, 16 * warp, Shape::kGroupKeys, dv, 1.0f);
        store_fragments<kType>(dk_tile, 16 * warp, Shape::kGroupKeys, dk, a.scale);
        publish_shared();
        meet(kOutput + consumer, 128);
        if (is_first_thread() && k0 + group_row < a.N) {
            start_store(&args.dv, 0, k0 + group_row, 0, work.kv_head, dv_tile);
            start_store(&args.dk, 0, k0 + group_row, 0, work.kv_head, dk_tile);
        }
    }
    // The block may end only when its stores have read shared memory.
    if (is_first_thread()) await_stores_read();
}

// ---- The kernels ----

template <DType kType, int HS>
__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(const __grid_constant__ tiles::BackwardArgs a) {
    tiles::prepare<kType, HS, BackwardShape<HS>::kQueries, BackwardShape<HS>::kKeys>(a);
}

template <DType kType, int HS, bool kHasAlibi>
__global__ void __launch_bounds__(BackwardShape<HS>::kThreads, 1)
    backward_kernel(const __grid_constant__ BackwardArgs a) {
    using Shape = BackwardShape<HS>;
    const BackwardPlaces<HS> shared = {shared_memory()};
    const int group = uniform(static_cast<int>(threadIdx.x) / 128);
    if (threadIdx.x == 0) {
        constexpr uint32_t kConsumerWarps = 8;
        init_barrier(shared.work_full(), 1);
        init_barrier(shared.work_empty(), kConsumerWarps + 1);
        init_barrier(shared.k_full(), 1);
        init_barrier(shared.k_empty(), kConsumerWarps);
        init_barrier(shared.v_full(), 1);
        init_barrier(shared.v_empty(), kConsumerWarps);
        init_barrier(shared.dq_full(), kConsumerWarps);
        init_barrier(shared.dq_empty(), 1);
        for (uint32_t stage = 0; stage < Shape::kStages; ++stage) {
            init_barrier(shared.q_full() + 8 * stage, 1);
            init_barrier(shared.q_empty() + 8 * stage, kConsumerWarps * kArrivalsOfWarp);
            init_barrier(shared.dout_full() + 8 * stage, 1);
            init_barrier(shared.dout_empty() + 8 * stage, kConsumerWarps * kArrivalsOfWarp);
        }
        publish_barriers();
    }
    if constexpr (kHasAlibi)
        write_alibi_tile(shared.alibi(), Shape::kQueries, static_cast<int>(threadIdx.x), Shape::kThreads);
    __syncthreads();
    if (group == 0) {
        give_back_registers<Shape::kProducerRegisters>();
        const int warp = uniform(static_cast<int>(threadIdx.x) / 32);
        if (warp == 0) produce<HS>(a, shared);
        if (warp == 1) add_dq<HS>(a, shared);
    } else {
        take_registers<Shape::kConsumerRegisters>();
        consume<kType, HS, kHasAlibi>(a, shared, group - 1);
    }
}

template <DType kType, int HS>
__global__ void __launch_bounds__(32 * kFinishWarps) finish_kernel(const __grid_constant__ tiles::BackwardArgs a) {
    tiles::finish<kType, HS, BackwardShape<HS>::kQueries>(a);
}

}  // namespace ingot::sm90
