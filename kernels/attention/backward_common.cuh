// The backward kernels of sm80 and of Hopper share this: their arguments, and the kernels before and after the main
// one. Before it, prepare() computes delta, lse in log 2, and the order of the key tiles and of their turns; after it,
// finish() scales and rounds dQ, which is accumulated in fp32.
#pragma once

#include "kernels/attention/policy.h"
#include "kernels/attention/sm80.h"
#include "kernels/attention/tiles.cuh"

namespace ingot::tiles {

struct BackwardArgs {
    View dq, dk, dv, dout, out, q, k, v;
    const float *lse, *slopes;  // (NH, N); (NH) with ALiBi
    // Scratch memory (sm80.h). Rows of the statistics and of dQ's accumulator are padded to whole tiles of queries.
    float *dq_accumulator, *lse_log2, *delta;
    int *turns, *counter;
    int *order, *ranks;  // the key tile of a rank, the rank of a key tile
    int* adders;         // four for each tile of queries: first, last, is_in_row_order, 0
    const int32_t *first_query, *end_query;
    int N, padded_N, num_query_tiles, NH, G, heads_per_section;
    float scale, scale_log2;  // > 0; times log2(e)
    bool is_deterministic;
};

// ---- On the host ----

// Returns how many key/value heads a section has (key_ticket()). Few heads keep what they read in the L2 cache; but a
// section must fill all multiprocessors a few times over, since key tiles of one document and head wait for each other.
// The result divides the number of heads: a short last section would end with too few short blocks.
inline int heads_per_section(int64_t blocks_at_once, int64_t key_tiles, int kv_heads) {
    constexpr int kRounds = 3;
    for (int heads = 1; heads < kv_heads; ++heads)
        if (kv_heads % heads == 0 && heads * key_tiles >= kRounds * blocks_at_once) return heads;
    return kv_heads;
}

// Returns the arguments for tiles of `key_tile` keys, and a GPU that runs `blocks_at_once` blocks. The workspace is
// aligned to 16 bytes.
inline BackwardArgs backward_args(const AttentionBackward& a, int key_tile, int64_t blocks_at_once) {
    const int64_t N = a.q.shape[0], NH = a.q.shape[1], NKV = a.k.shape[1];
    const AttentionWorkspaceSm80 parts(N, NH, a.q.shape[2]);
    char* const memory = static_cast<char*>(a.workspace.data);
    const auto floats = [&](size_t at) { return reinterpret_cast<float*>(memory + at); };
    const auto ints = [&](size_t at) { return reinterpret_cast<int*>(memory + at); };
    return {
        .dq = view_of(a.dq),
        .dk = view_of(a.dk),
        .dv = view_of(a.dv),
        .dout = view_of(a.dout),
        .out = view_of(a.out),
        .q = view_of(a.q),
        .k = view_of(a.k),
        .v = view_of(a.v),
        .lse = a.lse.get<float>(),
        .slopes = a.slopes ? a.slopes.get<float>() : nullptr,
        .dq_accumulator = floats(parts.dq),
        .lse_log2 = floats(parts.stats),
        .delta = floats(parts.stats) + NH * parts.padded_tokens,
        .turns = ints(parts.turns),
        .counter = ints(parts.counter),
        .order = ints(parts.order),
        .ranks = ints(parts.ranks),
        .adders = ints(parts.adders),
        .first_query = a.mask.first_query.get<int32_t>(),
        .end_query = a.mask.end_query.get<int32_t>(),
        .N = static_cast<int>(N),
        .padded_N = static_cast<int>(parts.padded_tokens),
        .num_query_tiles = static_cast<int>(parts.num_query_tiles),
        .NH = static_cast<int>(NH),
        .G = static_cast<int>(NH / NKV),
        .heads_per_section = heads_per_section(blocks_at_once, (N + key_tile - 1) / key_tile, static_cast<int>(NKV)),
        .scale = static_cast<float>(a.scale),
        .scale_log2 = static_cast<float>(a.scale * kLog2E),
        .is_deterministic = a.options.is_deterministic,
    };
}

// ---- Before: a block of kPrepareThreads per kQueries queries of a head ----

constexpr int kPrepareThreads = 256;

template <DType kType, int HS, int kQueries, int kKeys>
__device__ void prepare(const BackwardArgs& a) {
    constexpr int kLanes = HS <= 32 ? 4 : HS <= 64 ? 8 : 16;  // lanes of a row; with HS 96 only 12 have elements
    const int head = static_cast<int>(blockIdx.y), q0 = static_cast<int>(blockIdx.x) * kQueries;
    const int thread = static_cast<int>(threadIdx.x), part = thread % kLanes;
    for (int row = thread / kLanes; row < kQueries; row += kPrepareThreads / kLanes) {
        const int i = q0 + row;
        float sum = 0;
        if (i < a.N && part * 8 < HS) {
            const uint4 x = *reinterpret_cast<const uint4*>(a.out.head(head) + i * a.out.token_stride + part * 8);
            const uint4 y = *reinterpret_cast<const uint4*>(a.dout.head(head) + i * a.dout.token_stride + part * 8);
            const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float2 left = unpack<kType>(xs[e]), right = unpack<kType>(ys[e]);
                sum = fmaf(left.x, right.x, fmaf(left.y, right.y, sum));
            }
        }
#pragma unroll
        for (int distance = kLanes / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
        if (part == 0) {
            const int64_t at = static_cast<int64_t>(head) * a.padded_N + i;
            const float lse = i < a.N ? a.lse[static_cast<int64_t>(head) * a.N + i] : -INFINITY;
            // For a query that sees no key or does not exist, every 2^(s - inf) is 0.
            a.lse_log2[at] = lse == -INFINITY ? INFINITY : lse * static_cast<float>(kLog2E);
            a.delta[at] = sum;
        }
    }
    if (!a.is_deterministic) {
        float4* const sums =
            reinterpret_cast<float4*>(a.dq_accumulator + (static_cast<int64_t>(head) * a.padded_N + q0) * HS);
        for (int n = thread; n < kQueries * HS / 4; n += kPrepareThreads) sums[n] = make_float4(0, 0, 0, 0);
    }
    if (thread == 0) a.turns[static_cast<int64_t>(head) * a.num_query_tiles + q0 / kQueries] = 0;
    if (head > 0 || thread >= 32) return;
    // The rest is the same for all heads.
    if (thread == 0) {
        const Adders adders = adders_of(a.first_query, a.end_query, q0, a.N, kQueries, kKeys);
        int* const to = a.adders + static_cast<int64_t>(blockIdx.x) * 4;
        to[0] = adders.first, to[1] = adders.last, to[2] = adders.is_in_row_order, to[3] = 0;
        if (blockIdx.x == 0) *a.counter = 0;
    }
    const int tile = static_cast<int>(blockIdx.x);
    if (tile * kKeys >= a.N) return;
    int rank = tiles_before(a.first_query, a.end_query, tile, a.N, kQueries, kKeys, thread, 32);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) rank += __shfl_xor_sync(kAllLanes, rank, distance);
    if (thread == 0) a.ranks[tile] = rank, a.order[rank] = tile;
}

// ---- Between ----

// Spins until it is this block's turn, and fails the launch far beyond any wait that ends: the mask is invalid then.
// The load need not be an acquire, since this block does not read what others wrote, but adds to it in the L2 cache,
// behind a barrier.
__device__ inline void wait_for_turn(const int* turn, int mine) {
    constexpr int kMostLooks = 1 << 24;
    for (int look = 0; load_relaxed(turn) != mine; ++look)
        if (look >= kMostLooks) give_up();
}

// ---- After: a block per 64 queries of a head, a warp for 16 of them ----

constexpr int kFinishWarps = 4, kFinishRows = 16 * kFinishWarps;

template <DType kType, int HS, int kQueries>
__device__ void finish(const BackwardArgs& a) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int head = static_cast<int>(blockIdx.y);
    const int q0 = (static_cast<int>(blockIdx.x) * kFinishWarps + warp) * 16;
    const float* const sums = a.dq_accumulator + (static_cast<int64_t>(head) * a.padded_N + q0) * HS;
    // Rows that no key tile adds to were never written.
    static_assert(kQueries % kFinishRows == 0);
    const int* const adders = a.adders + static_cast<int64_t>(blockIdx.x / (kQueries / kFinishRows)) * 4;
    const bool is_written = !a.is_deterministic || adders[0] <= adders[1];
    float dq[1][HS / 8][4];
#pragma unroll
    for (int n = 0; n < HS / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) dq[0][n][e] = is_written ? sums[n * 128 + fragment_float(lane, e)] : 0;
    const float scales[1][2] = {{a.scale, a.scale}};
    store_rows<kType, HS, 1>(shared_memory() + static_cast<uint32_t>(warp * 16 * HS * 2), a.dq.head(head),
                             a.dq.token_stride, q0, a.N, lane, dq, scales);
}

}  // namespace ingot::tiles
