// Attention of one token on CUDA. It is bound by reading keys and values, so that fp32 arithmetic without tensor cores
// is fast enough. A block computes one query head: its warps take kBatch keys at a time in turn, each with an online
// softmax of its own, and their results are merged in the order of the warps. Lane l has the elements l, l + 32, ...
#include <algorithm>

#include "kernels/attention/decode.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vec.cuh"

namespace ingot {

namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kBatch = 4;  // keys of a warp whose loads are in flight at once

template <typename T>
struct DecodeArgs {
    T* out;
    const T *q, *k, *v;
    const float* slopes;                                            // or null
    int64_t out_head, q_head, k_token, k_head, v_token, v_head, S;  // strides in elements; tokens
    int G, HS;
    float scale;
};

// Loads the lane's elements of a head, zeros past its end.
template <typename T, int kPerLane>
__device__ void load_head(float (&values)[kPerLane], const T* head, int HS) {
#pragma unroll
    for (int c = 0; c < kPerLane; ++c) {
        const int d = threadIdx.x % kWarpSize + c * kWarpSize;
        values[c] = d < HS ? to_float(__ldg(head + d)) : 0.0f;
    }
}

// Heads of up to kPerLane * 32 elements.
template <typename T, int kPerLane>
__global__ void __launch_bounds__(kThreads) decode_kernel(const __grid_constant__ DecodeArgs<T> a) {
    __shared__ float maxima[kWarps], totals[kWarps], sums[kWarps][kPerLane * kWarpSize];
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    const int head = blockIdx.x, kv_head = head / a.G;
    const T *const k = a.k + kv_head * a.k_head, *const v = a.v + kv_head * a.v_head;
    const float slope = a.slopes != nullptr ? a.slopes[head] : 0.0f;
    float q[kPerLane];
    load_head(q, a.q + head * a.q_head, a.HS);

    float maximum = -INFINITY, total = 0, sum[kPerLane] = {};
    for (int64_t first = int64_t{warp} * kBatch; first < a.S; first += kWarps * kBatch) {
        float scores[kBatch], values[kBatch][kPerLane];
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
            const int64_t token = min(first + u, a.S - 1);  // past the end the last one again, with a probability of 0
            float key[kPerLane];
            load_head(key, k + token * a.k_token, a.HS);
            load_head(values[u], v + token * a.v_token, a.HS);
            scores[u] = 0;
#pragma unroll
            for (int c = 0; c < kPerLane; ++c) scores[u] += q[c] * key[c];
        }
        float new_maximum = maximum;
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
            scores[u] = a.scale * group_sum<kWarpSize>(scores[u]) - slope * static_cast<float>(a.S - 1 - first - u);
            if (first + u >= a.S) scores[u] = -INFINITY;
            new_maximum = fmaxf(new_maximum, scores[u]);
        }
        // Online softmax (Milakov and Gimelshein 2018): when the maximum grows, the partial sums are rescaled.
        const float shrink = expf(maximum - new_maximum);
        maximum = new_maximum;
        total *= shrink;
#pragma unroll
        for (int c = 0; c < kPerLane; ++c) sum[c] *= shrink;
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
            const float weight = expf(scores[u] - maximum);
            total += weight;
#pragma unroll
            for (int c = 0; c < kPerLane; ++c) sum[c] += weight * values[u][c];
        }
    }
    if (lane == 0) {
        maxima[warp] = maximum;
        totals[warp] = total;
    }
#pragma unroll
    for (int c = 0; c < kPerLane; ++c) sums[warp][lane + c * kWarpSize] = sum[c];
    __syncthreads();

    const int d = threadIdx.x;
    if (d >= a.HS) return;
    float largest = maxima[0];  // the first warp has a key
    for (int w = 1; w < kWarps; ++w) largest = fmaxf(largest, maxima[w]);
    float whole = 0, result = 0;
    for (int w = 0; w < kWarps; ++w) {
        const float shrink = expf(maxima[w] - largest);  // 0 for a warp that had no key
        whole += totals[w] * shrink;
        result += sums[w][d] * shrink;
    }
    a.out[head * a.out_head + d] = from_float<T>(result / whole);
}

// (n, NKV, HS) views: strides of their first two axes, in elements.
template <typename T>
struct AppendView {
    T* data;
    int64_t token_stride, head_stride;
    __device__ T& at(int64_t token, int64_t head, int64_t d) const {
        return data[token * token_stride + head * head_stride + d];
    }
};

template <typename T>
struct AppendArgs {
    AppendView<T> cache_k, cache_v;
    AppendView<const T> k, v;
    int64_t count, NKV, HS;  // count: elements of k
};

// Copies bits, whatever the type.
template <typename T>
__global__ void __launch_bounds__(kThreads) append_kernel(const __grid_constant__ AppendArgs<T> a) {
    const int64_t stride = int64_t{gridDim.x} * kThreads;
    for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < a.count; i += stride) {
        const int64_t row = i / a.HS, d = i % a.HS, token = row / a.NKV, head = row % a.NKV;
        a.cache_k.at(token, head, d) = a.k.at(token, head, d);
        a.cache_v.at(token, head, d) = a.v.at(token, head, d);
    }
}

template <typename T>
AppendView<T> view_of(const Tensor& tensor) {
    return {tensor.get<std::remove_const_t<T>>(), tensor.stride[0], tensor.stride[1]};
}

// The smallest of the compiled sizes that holds a head.
template <typename T>
auto kernel_for(int64_t HS) {
    if (HS <= 64) return decode_kernel<T, 2>;
    if (HS <= 128) return decode_kernel<T, 4>;
    CHECK(HS <= 256, "attention_decode: head size ", HS);
    return decode_kernel<T, 8>;
}

}  // namespace

void attention_decode_cuda(const Device& device, const AttentionDecode& a) {
    const int64_t NH = a.q.shape[0], HS = a.q.shape[1];
    if (NH == 0) return;
    for_cuda_type(a.q.dtype, "attention_decode", [&](auto element) {
        using T = decltype(element);
        const DecodeArgs<T> args = {.out = a.out.get<T>(),
                                    .q = a.q.get<T>(),
                                    .k = a.k.get<T>(),
                                    .v = a.v.get<T>(),
                                    .slopes = a.slopes ? a.slopes.get<float>() : nullptr,
                                    .out_head = a.out.stride[0],
                                    .q_head = a.q.stride[0],
                                    .k_token = a.k.stride[0],
                                    .k_head = a.k.stride[1],
                                    .v_token = a.v.stride[0],
                                    .v_head = a.v.stride[1],
                                    .S = a.k.shape[0],
                                    .G = static_cast<int>(NH / a.k.shape[1]),
                                    .HS = static_cast<int>(HS),
                                    .scale = static_cast<float>(a.scale)};
        kernel_for<T>(HS)<<<static_cast<unsigned>(NH), kThreads, 0, device.context().stream>>>(args);
        CUDA_CHECK_LAUNCH("attention_decode");
    });
}

void kv_cache_append_cuda(const Device& device, const KvCacheAppend& a) {
    const int64_t count = a.k.numel();
    if (count == 0) return;
    for_cuda_type(a.k.dtype, "kv_cache_append", [&](auto element) {
        using T = decltype(element);
        const AppendArgs<T> args = {.cache_k = view_of<T>(a.cache_k),
                                    .cache_v = view_of<T>(a.cache_v),
                                    .k = view_of<const T>(a.k),
                                    .v = view_of<const T>(a.v),
                                    .count = count,
                                    .NKV = a.k.shape[1],
                                    .HS = a.k.shape[2]};
        constexpr int64_t kMaxBlocks = 4096;  // threads loop over the keys of a long prompt
        const auto blocks = static_cast<unsigned>(std::min((count + kThreads - 1) / kThreads, kMaxBlocks));
        append_kernel<T><<<blocks, kThreads, 0, device.context().stream>>>(args);
        CUDA_CHECK_LAUNCH("kv_cache_append");
    });
}

}  // namespace ingot
