// SIMT kernels of attention, without tensor cores (Flash attention: Dao et al. 2022; Dao 2023). Three share one
// pattern:
//
//   forward   a block per tile of queries, over the tiles of keys that they see:     out and lse, by online softmax
//   dq        a block per tile of queries, over the tiles of keys that they see:     dq
//   dkv       a block per tile of keys, over the heads of its group and the tiles of queries that see it:     dk, dv
//
// A block keeps its own tile, the rows, in shared memory and walks over the other side's tiles, the columns. Each warp
// has kWarpRows of the rows to itself. A tile's dot products stay in registers; the probabilities made of them go
// through shared memory, where only their own warp reads them, into the next multiplication. Each sum runs in an order
// that the shape and the mask fix, so that the bits are always the same.
//
// In the backward pass, with p = e^(s - lse) and delta = rowsum(dout * out), which a small kernel of its own computes:
//
//   ds = p * (dout . v - delta),   dq = scale * sum over j of ds * k,   dk = scale * sum over i of ds * q,
//   dv = sum over i of p * dout
#include "kernels/attention/launch.cuh"
#include "kernels/attention/policy.h"
#include "kernels/attention/simt.h"
#include "kernels/attention/simt_tiles.cuh"
#include "kernels/cuda/context.h"

namespace ingot {

namespace {

using namespace simt;

constexpr int kForwardRows = 64, kForwardThreads = kForwardRows / kWarpRows * kWarpSize;
constexpr int kBackwardRows = 32, kBackwardThreads = kBackwardRows / kWarpRows * kWarpSize;
constexpr int kBackwardBlocks = 3;  // shared memory of a Hopper SM allows as many, for the largest head

template <int HS>
struct ForwardShared {
    TileOf<HS, kForwardRows> q;
    TileOf<HS, kColumns> k, v;
    float probabilities[kForwardRows][kProbabilityPitch];
};
// Rows are queries for dq (a is q, b is dout) and keys for dkv (a is k, b is v); columns the other way round.
template <int HS>
struct BackwardShared {
    TileOf<HS, kBackwardRows> row_a, row_b;
    TileOf<HS, kColumns> column_a, column_b;
    float probabilities[kBackwardRows][kProbabilityPitch];
};
static_assert(sizeof(ForwardShared<128>) <= kMostSharedBytes && sizeof(BackwardShared<128>) <= kMostSharedBytes);

// The mask from one side: row r sees columns [first[r], end[r]).
struct Intervals {
    const int32_t *first, *end;
};

// scale * dot - slope * |i - j|
__device__ inline float score(float dot, float scale, float slope, int i, int j) {
    return scale * dot - slope * static_cast<float>(abs(i - j));
}

// ---- Forward ----

template <typename T>
struct ForwardArgs {
    View<T> out;
    float* lse;
    View<const T> q, k, v;
    const float* slopes;  // or null
    Intervals keys;
    int N, G;
    float scale;
    bool is_vector;
};

// Two blocks fit into the shared memory of a Hopper SM, for the largest head.
template <typename T, int HS>
__global__ void __launch_bounds__(kForwardThreads, 2) forward_kernel(const __grid_constant__ ForwardArgs<T> a) {
    extern __shared__ float4 memory[];
    auto& shared = *reinterpret_cast<ForwardShared<HS>*>(memory);
    const Lane lane;
    // Under a causal mask the last tiles see the most keys, so they go first.
    const int q0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kForwardRows, q1 = min(q0 + kForwardRows, a.N);
    const int head = blockIdx.y, kv_head = head / a.G;
    const float slope = a.slopes != nullptr ? a.slopes[head] : 0.0f;
    load_tile<T, HS, kForwardRows>(shared.q, a.q, head, q0, a.N, a.is_vector);

    int first[kLaneRows], end[kLaneRows];
    float maximum[kLaneRows], total[kLaneRows];  // total: of this lane's columns, as if the maximum had never moved
    Sums<HS> accumulator = {};
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
        const int query = q0 + lane.row(i);
        first[i] = query < q1 ? a.keys.first[query] : 0;
        end[i] = query < q1 ? a.keys.end[query] : 0;
        maximum[i] = -INFINITY;
        total[i] = 0;
    }
    const TileRange keys = reached_tiles(a.keys.first, a.keys.end, q0, q1, a.N, kColumns);
    for (int k0 = keys.begin; k0 < keys.end; k0 += kColumns) {
        __syncthreads();  // all are done with the previous tile
        load_tile<T, HS, kColumns>(shared.k, a.k, kv_head, k0, a.N, a.is_vector);
        load_tile<T, HS, kColumns>(shared.v, a.v, kv_head, k0, a.N, a.is_vector);
        __syncthreads();
        float probabilities[kLaneRows][kLaneColumns];
        multiply<HS, kForwardRows>(probabilities, shared.q, shared.k, lane);
#pragma unroll
        for (int i = 0; i < kLaneRows; ++i) {
            // Online softmax (Milakov and Gimelshein 2018): when the maximum grows, the partial sums are rescaled.
            float row_maximum = maximum[i];
#pragma unroll
            for (int j = 0; j < kLaneColumns; ++j) {
                const int key = k0 + lane.column(j);
                const bool is_visible = key >= first[i] && key < end[i];
                probabilities[i][j] =
                    is_visible ? score(probabilities[i][j], a.scale, slope, q0 + lane.row(i), key) : -INFINITY;
                row_maximum = fmaxf(row_maximum, probabilities[i][j]);
            }
#pragma unroll
            for (int distance = kLanesOfARow / 2; distance > 0; distance /= 2)
                row_maximum = fmaxf(row_maximum, __shfl_xor_sync(0xffffffffu, row_maximum, distance));
            // With no key seen so far every exponential must be 0, and its argument finite.
            const float reference = row_maximum == -INFINITY ? 0.0f : row_maximum;
            const float shrink = expf(maximum[i] - reference);
            maximum[i] = row_maximum;
            total[i] *= shrink;
#pragma unroll
            for (int j = 0; j < kLaneColumns; ++j) {
                probabilities[i][j] = expf(probabilities[i][j] - reference);
                total[i] += probabilities[i][j];
            }
#pragma unroll
            for (int f = 0; f < HS / 32; ++f)
#pragma unroll
                for (int e = 0; e < 4; ++e) accumulator[i][f][e] *= shrink;
        }
        share_probabilities(shared.probabilities, probabilities, lane);
        accumulate<HS>(accumulator, shared.probabilities, shared.v, lane);
    }
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
        const float sum = group_sum<kLanesOfARow>(total[i]);
        const bool sees_nothing = sum == 0.0f;  // false for NaN, which is passed on
        const int query = q0 + lane.row(i);
        if (query >= q1) continue;
        store_row<T, HS>(a.out.at(query, head), accumulator[i], sees_nothing ? 0.0f : 1.0f / sum, lane, a.is_vector);
        if (lane.eighth == 0)
            a.lse[static_cast<int64_t>(head) * a.N + query] = sees_nothing ? -INFINITY : maximum[i] + logf(sum);
    }
}

// ---- Backward ----

template <typename T>
struct BackwardArgs {
    View<T> dq, dk, dv;
    View<const T> dout, out, q, k, v;
    const float *lse, *slopes;
    float* delta;  // (NH, N)
    Intervals keys, queries;
    int N, G, HS;
    float scale;
    bool is_vector;
};

// delta = rowsum(dout * out), the term of the softmax's normalisation; a warp per query and head.
template <typename T>
__global__ void __launch_bounds__(kForwardThreads) delta_kernel(const __grid_constant__ BackwardArgs<T> a) {
    const int query = static_cast<int>(blockIdx.x * (kForwardThreads / kWarpSize) + threadIdx.x / kWarpSize);
    const int head = blockIdx.y;
    if (query >= a.N) return;
    const T *const dout = a.dout.at(query, head), *const out = a.out.at(query, head);
    float sum = 0;
    for (int d = threadIdx.x % kWarpSize; d < a.HS; d += kWarpSize) sum += to_float(dout[d]) * to_float(out[d]);
    sum = group_sum<kWarpSize>(sum);
    if (threadIdx.x % kWarpSize == 0) a.delta[static_cast<int64_t>(head) * a.N + query] = sum;
}

template <typename T, int HS>
__global__ void __launch_bounds__(kBackwardThreads, kBackwardBlocks)
    dq_kernel(const __grid_constant__ BackwardArgs<T> a) {
    extern __shared__ float4 memory[];
    auto& shared = *reinterpret_cast<BackwardShared<HS>*>(memory);
    const Lane lane;
    const int q0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kBackwardRows, q1 = min(q0 + kBackwardRows, a.N);
    const int head = blockIdx.y, kv_head = head / a.G;
    const float slope = a.slopes != nullptr ? a.slopes[head] : 0.0f;
    load_tile<T, HS, kBackwardRows>(shared.row_a, a.q, head, q0, a.N, a.is_vector);
    load_tile<T, HS, kBackwardRows>(shared.row_b, a.dout, head, q0, a.N, a.is_vector);

    int first[kLaneRows], end[kLaneRows];
    float lse[kLaneRows], delta[kLaneRows];
    Sums<HS> dq = {};
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
        const int query = q0 + lane.row(i);
        const bool is_inside = query < q1;
        const int64_t at = static_cast<int64_t>(head) * a.N + query;
        first[i] = is_inside ? a.keys.first[query] : 0;
        end[i] = is_inside ? a.keys.end[query] : 0;
        lse[i] = is_inside ? a.lse[at] : 0.0f;
        delta[i] = is_inside ? a.delta[at] : 0.0f;
    }
    const TileRange keys = reached_tiles(a.keys.first, a.keys.end, q0, q1, a.N, kColumns);
    for (int k0 = keys.begin; k0 < keys.end; k0 += kColumns) {
        __syncthreads();  // all are done with the previous tile
        load_tile<T, HS, kColumns>(shared.column_a, a.k, kv_head, k0, a.N, a.is_vector);
        load_tile<T, HS, kColumns>(shared.column_b, a.v, kv_head, k0, a.N, a.is_vector);
        __syncthreads();
        float s[kLaneRows][kLaneColumns], ds[kLaneRows][kLaneColumns];
        multiply<HS, kBackwardRows>(s, shared.row_a, shared.column_a, lane);
        multiply<HS, kBackwardRows>(ds, shared.row_b, shared.column_b, lane);
#pragma unroll
        for (int i = 0; i < kLaneRows; ++i)
#pragma unroll
            for (int j = 0; j < kLaneColumns; ++j) {
                const int key = k0 + lane.column(j);
                const bool is_visible = key >= first[i] && key < end[i];
                const float p = expf(score(s[i][j], a.scale, slope, q0 + lane.row(i), key) - lse[i]);
                ds[i][j] = is_visible ? p * (ds[i][j] - delta[i]) : 0.0f;
            }
        share_probabilities(shared.probabilities, ds, lane);
        accumulate<HS>(dq, shared.probabilities, shared.column_a, lane);
    }
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
        const int query = q0 + lane.row(i);
        if (query < q1) store_row<T, HS>(a.dq.at(query, head), dq[i], a.scale, lane, a.is_vector);
    }
}

template <typename T, int HS>
__global__ void __launch_bounds__(kBackwardThreads, kBackwardBlocks)
    dkv_kernel(const __grid_constant__ BackwardArgs<T> a) {
    extern __shared__ float4 memory[];
    auto& shared = *reinterpret_cast<BackwardShared<HS>*>(memory);
    const Lane lane;
    const int k0 = static_cast<int>(blockIdx.x) * kBackwardRows, k1 = min(k0 + kBackwardRows, a.N);
    const int kv_head = blockIdx.y;
    load_tile<T, HS, kBackwardRows>(shared.row_a, a.k, kv_head, k0, a.N, a.is_vector);
    load_tile<T, HS, kBackwardRows>(shared.row_b, a.v, kv_head, k0, a.N, a.is_vector);

    int first[kLaneRows], end[kLaneRows];
    Sums<HS> dk = {}, dv = {};
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
        const int key = k0 + lane.row(i);
        first[i] = key < k1 ? a.queries.first[key] : 0;
        end[i] = key < k1 ? a.queries.end[key] : 0;
    }
    const TileRange queries = reached_tiles(a.queries.first, a.queries.end, k0, k1, a.N, kColumns);
    for (int head = kv_head * a.G; head < (kv_head + 1) * a.G; ++head) {
        const float slope = a.slopes != nullptr ? a.slopes[head] : 0.0f;
        for (int q0 = queries.begin; q0 < queries.end; q0 += kColumns) {
            __syncthreads();  // all are done with the previous tile
            load_tile<T, HS, kColumns>(shared.column_a, a.q, head, q0, a.N, a.is_vector);
            load_tile<T, HS, kColumns>(shared.column_b, a.dout, head, q0, a.N, a.is_vector);
            __syncthreads();
            float p[kLaneRows][kLaneColumns], ds[kLaneRows][kLaneColumns];
            multiply<HS, kBackwardRows>(p, shared.row_a, shared.column_a, lane);
            multiply<HS, kBackwardRows>(ds, shared.row_b, shared.column_b, lane);
#pragma unroll
            for (int j = 0; j < kLaneColumns; ++j) {
                const int query = q0 + lane.column(j);
                const int64_t at = static_cast<int64_t>(head) * a.N + query;
                const float lse = query < a.N ? a.lse[at] : 0.0f, delta = query < a.N ? a.delta[at] : 0.0f;
#pragma unroll
                for (int i = 0; i < kLaneRows; ++i) {
                    const bool is_visible = query >= first[i] && query < end[i];
                    const float weight = expf(score(p[i][j], a.scale, slope, query, k0 + lane.row(i)) - lse);
                    p[i][j] = is_visible ? weight : 0.0f;
                    ds[i][j] = is_visible ? weight * (ds[i][j] - delta) : 0.0f;
                }
            }
            share_probabilities(shared.probabilities, p, lane);
            accumulate<HS>(dv, shared.probabilities, shared.column_b, lane);
            share_probabilities(shared.probabilities, ds, lane);
            accumulate<HS>(dk, shared.probabilities, shared.column_a, lane);
        }
    }
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
        const int key = k0 + lane.row(i);
        if (key >= k1) continue;
        store_row<T, HS>(a.dk.at(key, kv_head), dk[i], a.scale, lane, a.is_vector);
        store_row<T, HS>(a.dv.at(key, kv_head), dv[i], 1.0f, lane, a.is_vector);
    }
}

// ---- Launches ----

dim3 grid_of(int N, int rows, int64_t heads) {
    return dim3(static_cast<unsigned>((N + rows - 1) / rows), static_cast<unsigned>(heads));
}

template <typename T, int HS>
void launch_forward(const CudaContext& context, const ForwardArgs<T>& args, int64_t NH) {
    static SharedMemoryLimit limit;
    const auto kernel = forward_kernel<T, HS>;
    constexpr size_t kBytes = sizeof(ForwardShared<HS>);
    limit.raise(context, kernel, kBytes);
    kernel<<<grid_of(args.N, kForwardRows, NH), kForwardThreads, kBytes, context.stream>>>(args);
    CUDA_CHECK_LAUNCH("attention_forward");
}

template <typename T, int HS>
void launch_backward(const CudaContext& context, const BackwardArgs<T>& args, int64_t NH) {
    static SharedMemoryLimit dq_limit, dkv_limit;
    const auto dq = dq_kernel<T, HS>, dkv = dkv_kernel<T, HS>;
    constexpr size_t kBytes = sizeof(BackwardShared<HS>);
    dq_limit.raise(context, dq, kBytes);
    dkv_limit.raise(context, dkv, kBytes);
    delta_kernel<T><<<grid_of(args.N, kForwardThreads / kWarpSize, NH), kForwardThreads, 0, context.stream>>>(args);
    CUDA_CHECK_LAUNCH("attention_backward (delta)");
    dkv<<<grid_of(args.N, kBackwardRows, NH / args.G), kBackwardThreads, kBytes, context.stream>>>(args);
    CUDA_CHECK_LAUNCH("attention_backward (dk, dv)");
    dq<<<grid_of(args.N, kBackwardRows, NH), kBackwardThreads, kBytes, context.stream>>>(args);
    CUDA_CHECK_LAUNCH("attention_backward (dq)");
}

template <typename T>
View<T> view_of(const Tensor& tensor) {
    return {tensor.get<std::remove_const_t<T>>(), tensor.stride[0], tensor.stride[1]};
}

// True if every row of HS elements starts at a multiple of 16 bytes.
bool fits_vectors(std::initializer_list<const Tensor*> tensors) {
    bool fits = true;
    for (const Tensor* tensor : tensors) {
        const int64_t size = size_of(tensor->dtype);
        fits = fits && is_aligned(tensor->data) && tensor->stride[0] * size % 16 == 0 &&
               tensor->stride[1] * size % 16 == 0;
    }
    return fits;
}

}  // namespace

void attention_forward_simt_cuda(const Device& device, const AttentionForward& a) {
    check_size(a.q);
    const int64_t N = a.q.shape[0], NH = a.q.shape[1], HS = a.q.shape[2];
    if (N == 0 || NH == 0) return;
    for_cuda_type(a.q.dtype, "attention", [&](auto element) {
        using T = decltype(element);
        const ForwardArgs<T> args = {
            .out = view_of<T>(a.out),
            .lse = a.lse.get<float>(),
            .q = view_of<const T>(a.q),
            .k = view_of<const T>(a.k),
            .v = view_of<const T>(a.v),
            .slopes = slopes_of(a.slopes),
            .keys = {a.mask.first_key.get<int32_t>(), a.mask.end_key.get<int32_t>()},
            .N = static_cast<int>(N),
            .G = static_cast<int>(NH / a.k.shape[1]),
            .scale = static_cast<float>(a.scale),
            .is_vector = fits_vectors({&a.out, &a.q, &a.k, &a.v}),
        };
        with_head_size(HS, [&](auto size) { launch_forward<T, decltype(size)::value>(device.context(), args, NH); });
    });
}

void attention_backward_simt_cuda(const Device& device, const AttentionBackward& a) {
    check_size(a.q);
    const int64_t N = a.q.shape[0], NH = a.q.shape[1], HS = a.q.shape[2];
    if (N == 0 || NH == 0) return;
    for_cuda_type(a.q.dtype, "attention", [&](auto element) {
        using T = decltype(element);
        const BackwardArgs<T> args = {
            .dq = view_of<T>(a.dq),
            .dk = view_of<T>(a.dk),
            .dv = view_of<T>(a.dv),
            .dout = view_of<const T>(a.dout),
            .out = view_of<const T>(a.out),
            .q = view_of<const T>(a.q),
            .k = view_of<const T>(a.k),
            .v = view_of<const T>(a.v),
            .lse = a.lse.get<float>(),
            .slopes = slopes_of(a.slopes),
            .delta = static_cast<float*>(a.workspace.data),
            .keys = {a.mask.first_key.get<int32_t>(), a.mask.end_key.get<int32_t>()},
            .queries = {a.mask.first_query.get<int32_t>(), a.mask.end_query.get<int32_t>()},
            .N = static_cast<int>(N),
            .G = static_cast<int>(NH / a.k.shape[1]),
            .HS = static_cast<int>(HS),
            .scale = static_cast<float>(a.scale),
            .is_vector = fits_vectors({&a.dq, &a.dk, &a.dv, &a.dout, &a.q, &a.k, &a.v}),
        };
        with_head_size(HS, [&](auto size) { launch_backward<T, decltype(size)::value>(device.context(), args, NH); });
    });
}

}  // namespace ingot
