// The layout of Hopper's backward kernel (backward_sm90.cuh): its shape, its shared memory and barriers, its arguments,
// and the steps that a block goes through.
#pragma once

#include "kernels/attention/alibi_sm90.cuh"
#include "kernels/attention/backward_common.cuh"
#include "kernels/attention/operands_sm90.h"
#include "kernels/cuda/mma_sm90.cuh"

namespace ingot::sm90 {

using tiles::uniform;

template <int HS>
struct BackwardShape {
    static_assert(HS == 64 || HS == 128);
    static constexpr int kKeys = 128, kGroupKeys = 64;
    static constexpr int kQueries = HS == 64 ? 128 : 64;
    static constexpr int kStages = 2;  // of Q, dO and dS
    static constexpr int kThreads = 128 * 3;
    // True if a warp group's half of dQ has all columns and half the queries.
    static constexpr bool kSplitsQueries = kQueries == 128;
    // S of the next step starts while dQ of this one is being computed, and runs while dQ is handed on.
    static constexpr bool kScoresAhead = true;
    // dV starts before dS is computed, which takes registers for its operand beside those for P.
    static constexpr bool kValuesFirst = HS == 128;
    // Warp groups start with equal shares of 65,536 registers, multiples of 8, and pass them on. A consumer's thread
    // holds accumulators in 192 registers and operands in 32 more (HS 128), or up to 64.
    static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
    static_assert(kProducerRegisters + 2 * kConsumerRegisters <= 3 * (65536 / kThreads / 8 * 8));
};

template <int HS>
struct alignas(1024) BackwardShared {
    using Shape = BackwardShape<HS>;
    uint16_t k[Shape::kKeys * HS], v[Shape::kKeys * HS];
    uint16_t q[Shape::kStages][Shape::kQueries * HS], dout[Shape::kStages][Shape::kQueries * HS];
    uint16_t ds[Shape::kStages][Shape::kKeys * Shape::kQueries];  // (keys, queries); in the end dV
    uint16_t dk[2][Shape::kGroupKeys * HS];
    float dq[Shape::kQueries * HS];  // in the order of memory
    uint16_t alibi[alibi_elements(Shape::kQueries)];
    float lse[Shape::kStages][Shape::kQueries], delta[Shape::kStages][Shape::kQueries];
    // The block's current work: kv_head (-1: no more), key tile, 0, 0, and the walk through the queries.
    alignas(16) int32_t work[8];
    uint64_t work_full, work_empty, k_full, k_empty, v_full, v_empty, dq_full, dq_empty;
    uint64_t q_full[Shape::kStages], q_empty[Shape::kStages], dout_full[Shape::kStages], dout_empty[Shape::kStages];
    static_assert(sizeof(ds) >= sizeof(dk) && sizeof(dq) == 32768);
};

// Named barriers of some warps (0 is the block's own). Each consumer has one of its own from kOutput on.
enum BackwardBarrier : int { kPair = 1, kOutput = 2 };

struct BackwardArgs {
    TensorMap q, k, v, dout, dk, dv;  // (heads, HS / 64, N, 64); boxes of a tile, of 64 keys for dk and dv
    tiles::BackwardArgs common;
    int total_tiles;      // of keys, of all key/value heads
    float inverse_scale;  // 1 / scale
};

// Addresses of BackwardShared's members.
template <int HS>
struct BackwardPlaces {
    uint32_t base;
    using Shared = BackwardShared<HS>;
    static constexpr uint32_t kKeyTileBytes = sizeof(Shared::k), kQueryTileBytes = sizeof(Shared::q[0]);
    static constexpr uint32_t kDsBytes = sizeof(Shared::ds[0]), kDkBytes = sizeof(Shared::dk[0]);
    static constexpr uint32_t kDqBytes = sizeof(Shared::dq), kStatisticsBytes = sizeof(Shared::lse[0]);
    INGOT_PLACE(k)
    INGOT_PLACE(v)
    INGOT_PLACE(q)
    INGOT_PLACE(dout)
    INGOT_PLACE(ds)
    INGOT_PLACE(dk)
    INGOT_PLACE(dq)
    INGOT_PLACE(alibi)
    INGOT_PLACE(lse)
    INGOT_PLACE(delta)
    INGOT_PLACE(work)
    INGOT_PLACE(work_full)
    INGOT_PLACE(work_empty)
    INGOT_PLACE(k_full)
    INGOT_PLACE(k_empty)
    INGOT_PLACE(v_full)
    INGOT_PLACE(v_empty)
    INGOT_PLACE(dq_full)
    INGOT_PLACE(dq_empty)
    INGOT_PLACE(q_full)
    INGOT_PLACE(q_empty)
    INGOT_PLACE(dout_full)
    INGOT_PLACE(dout_empty)
};

// A block's step through a key tile: a tile of queries that see it, and one head of the group.
struct BackwardStep {
    int q0, head;  // -1: none; of the group
};
template <int kQueries>
__device__ BackwardStep first_step(const QueryWalk& walk) {
    return {walk.begin < walk.end ? walk.first(kQueries) : -1, 0};
}
template <int kQueries>
__device__ BackwardStep step_after(const BackwardStep& step, const QueryWalk& walk, int G) {
    if (step.head + 1 < G) return {step.q0, step.head + 1};
    return {walk.after(step.q0, kQueries), 0};
}

// The pipeline stage of a step and the parity of its barriers' phase, from how many steps the block has done.
struct BackwardStage {
    uint32_t index, parity;
    __device__ explicit BackwardStage(uint32_t count) : index(count % 2), parity(count / 2 % 2) {}
    __device__ uint32_t of(uint32_t first, uint32_t bytes) const { return first + index * bytes; }
    __device__ uint32_t barrier(uint32_t first) const { return of(first, sizeof(uint64_t)); }
};

struct BackwardWork {
    int kv_head, tile;
    QueryWalk walk;
};
// Whole warps call this: one lane reads the record, and then releases it to be overwritten.
template <int HS>
__device__ BackwardWork receive_work(const BackwardPlaces<HS>& shared, uint32_t parity, int lane) {
    wait(shared.work_full(), parity);
    int4 what = make_int4(0, 0, 0, 0), walk = what;
    if (lane == 0) {
        what = load_shared(shared.work()), walk = load_shared(shared.work() + 16);
        arrive(shared.work_empty());
    }
    return {uniform(what.x), uniform(what.y), {uniform(walk.x), uniform(walk.y), uniform(walk.z)}};
}

}  // namespace ingot::sm90
