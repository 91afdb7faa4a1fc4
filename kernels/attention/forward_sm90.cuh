// The forward kernel for Hopper: TMA loads and warp-group GEMMs (wgmma; Shah et al. 2024, FlashAttention-3).
// forward_sm90.cu includes this file, and so does the test that runs it on the CPU.
//
// A block is a producer warp group, one thread of which starts all loads, and kConsumers warp groups that multiply. A
// consumer's unit of work is 64 queries of one head. The units of a block are neighbours in (row of queries, head of
// the group), so that they share the key/value head and its tiles: three heads of one group, or 192 rows of a head
// without a group. The grid is persistent, and blocks take work by ticket; the producer already loads the next work's
// tiles while consumers store the last one's rows.
//
// Two overlaps hide the softmax, which takes as long as the GEMMs do. Within a consumer, S of the next tile starts
// before P V of this one, and its softmax runs meanwhile. Between consumers a turn goes round: one starts its GEMMs
// while another is in its softmax.
//
// Scores are in the domain of log 2, and the running maximum moves rarely: forward_sm80.cuh. The exponents are taken
// against the running maximum as it is and compared afterwards, so that only a row that moves must know its largest
// score.
//
// The part of ALiBi's bias that depends on the key is a GEMM too (alibi_sm90.cuh), with keys counted from the tile's
// first one; the part that depends on the query joins the running maximum.
#pragma once

#include "kernels/attention/alibi_sm90.cuh"
#include "kernels/attention/operands_sm90.h"
#include "kernels/attention/policy.h"
#include "kernels/attention/tiles.cuh"
#include "kernels/cuda/mma_sm90.cuh"

namespace ingot::sm90 {

using tiles::exp2_fast, tiles::fragment_column, tiles::fragment_row, tiles::pack, tiles::uniform;
using tiles::kAllLanes, tiles::kLn2, tiles::kLog2E, tiles::kMostAboveMaximum;

template <int HS>
struct ForwardShape {
    static_assert(HS == 64 || HS == 128);
    static constexpr int kUnitRows = 64, kKeys = 128;
    static constexpr int kConsumers = HS == 64 ? 3 : 2;
    static constexpr int kStages = HS == 64 ? 4 : 2;  // of K, and of V
    static constexpr int kThreads = 128 * (1 + kConsumers);
    // Warp groups start with equal shares of 65,536 registers, multiples of 8, and pass them on; scores, accumulators
    // and probabilities take 160 of a consumer's thread (HS 128), or 128.
    static constexpr int kProducerRegisters = kConsumers == 2 ? 40 : 32;
    static constexpr int kConsumerRegisters = kConsumers == 2 ? 232 : 160;
    static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <=
                  (1 + kConsumers) * (65536 / kThreads / 8 * 8));
};

template <int HS>
struct alignas(1024) ForwardShared {
    using Shape = ForwardShape<HS>;
    uint16_t q[Shape::kConsumers][Shape::kUnitRows * HS];
    uint16_t k[Shape::kStages][Shape::kKeys * HS];
    uint16_t v[Shape::kStages][Shape::kKeys * HS];
    uint16_t alibi[alibi_elements(Shape::kKeys)];
    uint16_t out[Shape::kConsumers][Shape::kUnitRows * HS];
    // The block's current work: first_unit (-1: no more), kv_head, first key, number of tiles.
    alignas(16) int32_t work[4];
    uint64_t work_full, work_empty, q_full, q_empty;
    uint64_t k_full[Shape::kStages], k_empty[Shape::kStages], v_full[Shape::kStages], v_empty[Shape::kStages];
};

// Named barriers of some warps (0 is the block's own). Each consumer has one of its own from these on.
enum NamedBarrier : int { kTurn = 1, kOutput = 4 };

struct ForwardArgs {
    TensorMap q, k, v, out;  // (heads, HS / 64, N, 64); boxes of a unit, a tile of keys, a tile of keys, a unit
    float* lse;              // (NH, N)
    const float* slopes;     // (NH), with ALiBi
    const int32_t *first_key, *end_key;
    int* tickets;  // how many tickets were taken beyond each block's first; 0 before and after the launch
    int N, NKV, G;
    int blocks_per_head, total_blocks;  // blocks of work: per key/value head, in all
    float inverse_scale, scale_log2;    // 1 / scale, which is > 0; scale log2(e)
};

// A block's work: the units from first_unit on of the key/value head `kv_head`. Under a causal mask the last rows see
// the most keys: those of all heads go first. (Taking a few heads at a time, whose K and V stay in the L2 cache, gains
// less than it loses at the end, where a head's longest rows meet its neighbour's shortest.)
struct ForwardWork {
    int first_unit, kv_head;
};
INGOT_HD inline ForwardWork forward_work(int ticket, int blocks_per_head, int NKV, int consumers) {
    return {(blocks_per_head - 1 - ticket / NKV) * consumers, ticket % NKV};
}

// The next buffer of a ring, and the parity of its barriers' phase.
template <int kStages>
struct Stage {
    int index = 0;
    uint32_t parity = 0;
    __device__ void advance() {
        if (++index == kStages) index = 0, parity ^= 1;
    }
    __device__ uint32_t of(uint32_t first, uint32_t bytes) const {
        return first + static_cast<uint32_t>(index) * bytes;
    }
    __device__ uint32_t barrier(uint32_t first) const { return of(first, sizeof(uint64_t)); }
};

// Addresses of ForwardShared's members.
template <int HS>
struct ForwardPlaces {
    uint32_t base;
    using Shared = ForwardShared<HS>;
    static constexpr uint32_t kUnitBytes = sizeof(Shared::q[0]), kTileBytes = sizeof(Shared::k[0]);
    INGOT_PLACE(q)
    INGOT_PLACE(k)
    INGOT_PLACE(v)
    INGOT_PLACE(out)
    INGOT_PLACE(alibi)
    INGOT_PLACE(work)
    INGOT_PLACE(work_full)
    INGOT_PLACE(work_empty)
    INGOT_PLACE(q_full)
    INGOT_PLACE(q_empty)
    INGOT_PLACE(k_full)
    INGOT_PLACE(k_empty)
    INGOT_PLACE(v_full)
    INGOT_PLACE(v_empty)
};

// ---- The producer: one thread ----

template <int HS>
__device__ void produce(const ForwardArgs& a, const ForwardPlaces<HS>& shared) {
    using Shape = ForwardShape<HS>;
    constexpr int kKeys = Shape::kKeys, kConsumers = Shape::kConsumers;
    Stage<Shape::kStages> k_stage, v_stage;
    uint32_t work_parity = 0, q_parity = 0;
    for (int ticket = static_cast<int>(blockIdx.x);;) {
        const bool has_work = ticket < a.total_blocks;
        ForwardWork work = {-1, 0};
        TileRange keys = {0, 0};
        if (has_work) {
            work = forward_work(ticket, a.blocks_per_head, a.NKV, kConsumers);
            const int begin = work.first_unit / a.G * Shape::kUnitRows;
            const int end = min(((work.first_unit + kConsumers - 1) / a.G + 1) * Shape::kUnitRows, a.N);
            keys = reached_tiles(a.first_key, a.end_key, begin, end, a.N, kKeys);
        }
        const int num_tiles = keys.num_tiles(kKeys);
        wait(shared.work_empty(), work_parity ^ 1);
        store_shared(shared.work(), make_int4(work.first_unit, work.kv_head, keys.begin, num_tiles));
        arrive(shared.work_full());
        work_parity ^= 1;
        if (!has_work) return;
        // The last of the total_blocks tickets resets the counter to 0.
        const int next = static_cast<int>(
            gridDim.x + atomicInc(reinterpret_cast<unsigned*>(a.tickets), static_cast<unsigned>(a.total_blocks - 1)));

        const auto load = [&](uint32_t to, const TensorMap& map, int token, int head, uint32_t barrier,
                              uint64_t policy) { start_load(to, &map, 0, token, 0, head, barrier, policy); };
        const auto load_v = [&](int tile) {
            wait(v_stage.barrier(shared.v_empty()), v_stage.parity ^ 1);
            const uint32_t full = v_stage.barrier(shared.v_full());
            arrive_expecting(full, shared.kTileBytes);
            load(v_stage.of(shared.v(), shared.kTileBytes), a.v, keys.begin + tile * kKeys, work.kv_head, full,
                 kUsedAgain);
            v_stage.advance();
        };
        for (int tile = num_tiles - 1; tile >= 0; --tile) {
            wait(k_stage.barrier(shared.k_empty()), k_stage.parity ^ 1);
            const uint32_t full = k_stage.barrier(shared.k_full());
            arrive_expecting(full, shared.kTileBytes);
            load(k_stage.of(shared.k(), shared.kTileBytes), a.k, keys.begin + tile * kKeys, work.kv_head, full,
                 kUsedAgain);
            k_stage.advance();
            if (tile == num_tiles - 1) {
                wait(shared.q_empty(), q_parity ^ 1);
                arrive_expecting(shared.q_full(), kConsumers * shared.kUnitBytes);
                for (int consumer = 0; consumer < kConsumers; ++consumer) {
                    const int unit = work.first_unit + consumer;
                    load(shared.q() + static_cast<uint32_t>(consumer) * shared.kUnitBytes, a.q,
                         unit / a.G * Shape::kUnitRows, work.kv_head * a.G + unit % a.G, shared.q_full(), kUsedOnce);
                }
                q_parity ^= 1;
            } else {
                load_v(tile + 1);  // K is always one tile ahead
            }
        }
        if (num_tiles > 0) load_v(0);
        ticket = next;
    }
}

// ---- A consumer ----

// A thread's two rows of queries, and its warp's sixteen.
struct QueryRows {
    int row;  // the other row is row + 8
    int first[2], end[2];
    SeenByRows seen;
    bool is_inside;    // some of the warp's rows are below N
    bool sees_future;  // some of them see later keys: |i - j| has two sides
    float slope;       // divided by the scale, as S is
};

// ---- S ----

// Starts S of a tile, initialised with ALiBi's part: +- slope (j - k0), with the sign in `slope`.
template <DType kType, int HS, bool kHasAlibi>
__device__ __forceinline__ void start_scores(float (&scores)[64], uint64_t q, uint32_t k_tile, uint64_t alibi,
                                             const uint32_t (&slope)[4]) {
    const uint64_t k = descriptor_over_columns(k_tile);
    begin_gemm();
    if constexpr (kHasAlibi) multiply_over_rows<DType::bf16>(scores, slope, alibi, false);
#pragma unroll
    for (int d = 0; d < HS / 16; ++d) {
        const uint64_t a = q + step_over_columns(d, ForwardShape<HS>::kUnitRows);
        const uint64_t b = k + step_over_columns(d, ForwardShape<HS>::kKeys);
        if (d == 0 && !kHasAlibi)
            multiply_over_columns<kType, false>(scores, a, b);
        else
            multiply_over_columns<kType, true>(scores, a, b);
    }
    end_batch();
}

// ---- Softmax ----

// The part of the bias that all scores of a row in a tile have in common, in log 2: -+ slope (i - k0).
template <bool kHasAlibi>
__device__ float row_bias(const QueryRows& rows, int half, const AlibiSide& side, int k0, float scale_log2) {
    const float step = static_cast<float>(-side.sign) * rows.slope * scale_log2;
    return kHasAlibi ? step * static_cast<float>(rows.row + 8 * half - k0) : 0.0f;
}

// The largest score of a row. All lanes of the warp call it.
__device__ __forceinline__ float largest_of_row(const float (&scores)[64], int half) {
    float largest = scores[2 * half];
#pragma unroll
    for (int n = 0; n < 16; ++n)
        largest = fmaxf(largest, fmaxf(scores[4 * n + 2 * half], scores[4 * n + 2 * half + 1]));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    return fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
}

// Turns S into P in place: applies the mask, updates running maximum and row sums. The caller multiplies the
// accumulator by `shrink`. The first tile in which a row sees a key sets the row's running maximum, whether or not it
// is the warp's first tile.
template <bool kHasAlibi, bool kIsFirst>
__device__ __forceinline__ void to_probabilities(float (&scores)[64], float (&maximum)[2], float (&total)[2],
                                                 float (&shrink)[2], const QueryRows& rows, int k0, int lane,
                                                 float scale_log2) {
    constexpr int kKeys = 128;
    const int column0 = fragment_column(lane, 0), warp_row0 = rows.row - fragment_row(lane, 0);
    const AlibiSide side = alibi_side(warp_row0, warp_row0 + 16, k0, k0 + kKeys);
    if (kHasAlibi && side.crosses_diagonal && rows.sees_future) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int offset = k0 + column0 - rows.row - 8 * half;
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    scores[4 * n + 2 * half + e] -= 2 * rows.slope * static_cast<float>(max(8 * n + e + offset, 0));
        }
    }
    if (rows.is_inside && !rows.seen.is_all_of(k0, k0 + kKeys)) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int first = rows.first[half] - k0 - column0, end = rows.end[half] - k0 - column0;
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    if (8 * n + e < first || 8 * n + e >= end) scores[4 * n + 2 * half + e] = -INFINITY;
        }
    }

    // Each row by itself: a row's bits must not depend on what other rows of the warp see.
    const float bias[2] = {row_bias<kHasAlibi>(rows, 0, side, k0, scale_log2),
                           row_bias<kHasAlibi>(rows, 1, side, k0, scale_log2)};
    if (kIsFirst || __any_sync(kAllLanes, maximum[0] == -INFINITY || maximum[1] == -INFINITY)) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float largest = fmaf(largest_of_row(scores, half), scale_log2, bias[half]);
            if (maximum[half] == -INFINITY) maximum[half] = largest;
        }
    }
    bool may_move = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        // A row that has seen no key so far has exponents of -inf and probabilities of 0.
        const float shift = maximum[half] == -INFINITY ? 0.0f : bias[half] - maximum[half];
        float largest = -INFINITY;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
            float &left = scores[4 * n + 2 * half], &right = scores[4 * n + 2 * half + 1];
            left = fmaf(left, scale_log2, shift);
            right = fmaf(right, scale_log2, shift);
            largest = largest_if_positive(largest, left, right);
        }
        may_move = may_move || largest > kMostAboveMaximum;
        shrink[half] = 1;
    }
    if (!kIsFirst && __any_sync(kAllLanes, may_move)) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float above = largest_of_row(scores, half);
            if (!(above > kMostAboveMaximum)) continue;
            shrink[half] = exp2_fast(-above);
            maximum[half] += above;
            total[half] *= shrink[half];
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e) scores[4 * n + 2 * half + e] -= above;
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float& score = scores[4 * n + 2 * half + e];
                score = exp2_fast(score);
                total[half] += score;
            }
}

template <DType kType, int HS>
__device__ __forceinline__ void start_accumulation(float (&out)[HS / 2], const uint32_t (&p)[8][4], uint32_t v_tile,
                                                   bool is_first) {
    const uint64_t v = descriptor_over_rows(v_tile, ForwardShape<HS>::kKeys);
    begin_gemm();
#pragma unroll
    for (int step = 0; step < 8; ++step)
        multiply_over_rows<kType>(out, p[step], v + step_over_rows(step), step > 0 || !is_first);
    end_batch();
}

template <DType kType>
__device__ __forceinline__ void round_p(uint32_t (&p)[8][4], const float (&scores)[64]) {
#pragma unroll
    for (int step = 0; step < 8; ++step)
#pragma unroll
        for (int i = 0; i < 4; ++i) p[step][i] = pack<kType>(scores[8 * step + 2 * i], scores[8 * step + 2 * i + 1]);
}

template <DType kType, int HS, bool kHasAlibi>
__device__ void consume(const ForwardArgs& a, const ForwardPlaces<HS>& shared, int consumer) {
    using Shape = ForwardShape<HS>;
    constexpr int kKeys = Shape::kKeys, kConsumers = Shape::kConsumers;
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = uniform(static_cast<int>(threadIdx.x) / 32 % 4);
    const uint32_t q_tile = shared.q() + static_cast<uint32_t>(consumer) * shared.kUnitBytes;
    const uint32_t out_tile = shared.out() + static_cast<uint32_t>(consumer) * shared.kUnitBytes;
    const uint64_t q = descriptor_over_columns(q_tile), alibi = alibi_descriptor(shared.alibi());
    const auto leave = [&](uint32_t barrier) {  // this warp is done with what the barrier guards
        if (lane == 0) arrive(barrier);
    };
    const auto await_turn = [&] { meet(kTurn + consumer, 256); };
    const auto pass_turn = [&] { announce(kTurn + (consumer + 1) % kConsumers, 256); };
    if (consumer == kConsumers - 1) pass_turn();

    Stage<Shape::kStages> k_stage, v_stage;
    uint32_t work_parity = 0, q_parity = 0;
    for (;;) {
        wait(shared.work_full(), work_parity);
        // One lane reads the record, and then releases it to be overwritten.
        int4 work = make_int4(0, 0, 0, 0);
        if (lane == 0) work = load_shared(shared.work());
        leave(shared.work_empty());
        work = make_int4(uniform(work.x), uniform(work.y), uniform(work.z), uniform(work.w));
        work_parity ^= 1;
        if (work.x < 0) break;
        const int unit = work.x + consumer, head = work.y * a.G + unit % a.G, begin = work.z, num_tiles = work.w;
        const int row0 = unit / a.G * Shape::kUnitRows, warp_row0 = row0 + 16 * warp;

        QueryRows rows;
        rows.row = warp_row0 + fragment_row(lane, 0);
        rows.slope = kHasAlibi && warp_row0 < a.N ? a.slopes[head] * a.inverse_scale : 0.0f;
        rows.is_inside = warp_row0 < a.N;
        rows.seen = {0, 0, 0, 0};
        if (rows.is_inside) rows.seen = seen_by_rows(a.first_key, a.end_key, warp_row0, min(warp_row0 + 16, a.N));
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int i = rows.row + 8 * half;
            rows.first[half] = i < a.N ? a.first_key[i] : 0;
            rows.end[half] = i < a.N ? a.end_key[i] : 0;
        }
        rows.sees_future = kHasAlibi && __any_sync(kAllLanes, rows.end[0] > rows.row + 1 || rows.end[1] > rows.row + 9);

        uint32_t slope[4], signed_slope[4] = {};  // the same for all rows
        alibi_operand(slope, {0, 0}, rows.slope, lane);
        const auto start = [&](float(&scores)[64], int k0) {
            if constexpr (kHasAlibi) {
                const AlibiSide side = alibi_side(warp_row0, warp_row0 + 16, k0, k0 + kKeys);
                signed_slope[0] = signed_slope[1] = side.sign > 0 ? slope[0] : slope[0] ^ kBothSigns;
            }
            start_scores<kType, HS, kHasAlibi>(scores, q, k_stage.of(shared.k(), shared.kTileBytes), alibi,
                                               signed_slope);
        };

        float out[HS / 2], scores[64];
        uint32_t p[8][4];
        float maximum[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0}, shrink[2];
        if (num_tiles > 0) {
            int k0 = begin + (num_tiles - 1) * kKeys;
            wait(shared.q_full(), q_parity);
            q_parity ^= 1;
            wait(k_stage.barrier(shared.k_full()), k_stage.parity);
            start(scores, k0);
            await_batches<0>();
            settle(scores);
            leave(k_stage.barrier(shared.k_empty()));
            k_stage.advance();
            to_probabilities<kHasAlibi, true>(scores, maximum, total, shrink, rows, k0, lane, a.scale_log2);
            round_p<kType>(p, scores);

            for (int tile = num_tiles - 2; tile >= 0; --tile) {
                k0 -= kKeys;
                wait(k_stage.barrier(shared.k_full()), k_stage.parity);
                await_turn();
                start(scores, k0);
                wait(v_stage.barrier(shared.v_full()), v_stage.parity);
                start_accumulation<kType, HS>(out, p, v_stage.of(shared.v(), shared.kTileBytes), tile == num_tiles - 2);
                pass_turn();
                await_batches<1>();
                settle(scores);
                leave(k_stage.barrier(shared.k_empty()));
                k_stage.advance();
                to_probabilities<kHasAlibi, false>(scores, maximum, total, shrink, rows, k0, lane, a.scale_log2);
                await_batches<0>();
                settle(out);
                settle(scores);
                leave(v_stage.barrier(shared.v_empty()));
                v_stage.advance();
                round_p<kType>(p, scores);
                if (__any_sync(kAllLanes, shrink[0] != 1 || shrink[1] != 1)) {
#pragma unroll
                    for (int i = 0; i < HS / 2; ++i) out[i] *= shrink[i / 2 % 2];
                }
            }
            leave(shared.q_empty());
            wait(v_stage.barrier(shared.v_full()), v_stage.parity);
            start_accumulation<kType, HS>(out, p, v_stage.of(shared.v(), shared.kTileBytes), num_tiles == 1);
            await_batches<0>();
            settle(out);
            leave(v_stage.barrier(shared.v_empty()));
            v_stage.advance();
        } else {
#pragma unroll
            for (int i = 0; i < HS / 2; ++i) out[i] = 0;
        }

        float factors[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = total[half];
            sum += __shfl_xor_sync(kAllLanes, sum, 1);
            sum += __shfl_xor_sync(kAllLanes, sum, 2);
            const bool sees_nothing = sum == 0.0f;  // false for NaN, which is passed on
            factors[half] = sees_nothing ? 0.0f : 1.0f / sum;
            const int i = rows.row + 8 * half;
            if (lane % 4 == 0 && i < a.N)
                a.lse[static_cast<int64_t>(head) * a.N + i] =
                    sees_nothing ? -INFINITY : maximum[half] * kLn2 + logf(sum);
        }

        // The rows go through shared memory, which the last unit's store must have read. TMA does not write rows past
        // the end.
        const bool is_first_thread = static_cast<int>(threadIdx.x) % 128 == 0;
        if (is_first_thread) await_stores_read();
        meet(kOutput + consumer, 128);
#pragma unroll
        for (int n = 0; n < HS / 16; ++n) {
            const auto pair = [&](int fragment, int half) {
                return pack<kType>(out[4 * fragment + 2 * half] * factors[half],
                                   out[4 * fragment + 2 * half + 1] * factors[half]);
            };
            store_matrices(out_tile + panel_offset(16 * warp + store_row(lane), store_chunk(lane, n), Shape::kUnitRows),
                           pair(2 * n, 0), pair(2 * n, 1), pair(2 * n + 1, 0), pair(2 * n + 1, 1));
        }
        publish_shared();
        meet(kOutput + consumer, 128);
        if (is_first_thread && row0 < a.N) start_store(&a.out, 0, row0, 0, head, out_tile);
    }
    // The block may end only when its stores have read shared memory.
    if (static_cast<int>(threadIdx.x) % 128 == 0) await_stores_read();
}

template <DType kType, int HS, bool kHasAlibi>
__global__ void __launch_bounds__(ForwardShape<HS>::kThreads, 1) forward_kernel(const __grid_constant__ ForwardArgs a) {
    using Shape = ForwardShape<HS>;
    const ForwardPlaces<HS> shared = {shared_memory()};
    const int group = uniform(static_cast<int>(threadIdx.x) / 128);
    if (threadIdx.x == 0) {
        constexpr uint32_t kConsumerWarps = 4 * Shape::kConsumers;
        init_barrier(shared.work_full(), 1);
        init_barrier(shared.work_empty(), kConsumerWarps);
        init_barrier(shared.q_full(), 1);
        init_barrier(shared.q_empty(), kConsumerWarps);
        for (uint32_t stage = 0; stage < Shape::kStages; ++stage) {
            init_barrier(shared.k_full() + 8 * stage, 1);
            init_barrier(shared.k_empty() + 8 * stage, kConsumerWarps);
            init_barrier(shared.v_full() + 8 * stage, 1);
            init_barrier(shared.v_empty() + 8 * stage, kConsumerWarps);
        }
        publish_barriers();
    }
    if constexpr (kHasAlibi)
        write_alibi_tile(shared.alibi(), Shape::kKeys, static_cast<int>(threadIdx.x), Shape::kThreads);
    __syncthreads();
    if (group == 0) {
        give_back_registers<Shape::kProducerRegisters>();
        if (threadIdx.x == 0) produce<HS>(a, shared);
    } else {
        take_registers<Shape::kConsumerRegisters>();
        consume<kType, HS, kHasAlibi>(a, shared, group - 1);
    }
}

}  // namespace ingot::sm90
