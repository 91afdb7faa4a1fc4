#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/attention/decode.h"
#include "kernels/core/math.h"
#include "kernels/core/parallel.h"

namespace ingot {

namespace {

constexpr int64_t kTile = 128;
constexpr int64_t kMaxHeadSize = 256;

// A head is one task, whose sums run in index order, so that the bits do not depend on threads.
template <typename T>
void decode_cpu(const AttentionDecode& a) {
    const int64_t NH = a.q.shape[0], HS = a.q.shape[1], S = a.k.shape[0], G = NH / a.k.shape[1];
    const T scale = static_cast<T>(a.scale);
    const T *const all_q = a.q.get<T>(), *const all_k = a.k.get<T>(), *const all_v = a.v.get<T>();
    const T* const slopes = a.slopes ? a.slopes.get<T>() : nullptr;
    T* const all_out = a.out.get<T>();
#pragma omp parallel for schedule(static) if (is_worth_threads(2 * NH * S * HS))
    for (int64_t head = 0; head < NH; ++head) {
        const T* const q = all_q + head * a.q.stride[0];
        const T* const k = all_k + head / G * a.k.stride[1];
        const T* const v = all_v + head / G * a.v.stride[1];
        T* const out = all_out + head * a.out.stride[0];
        const T slope = slopes != nullptr ? slopes[head] : T(0);
        T scores[kTile], maximum = -std::numeric_limits<T>::infinity(), sum = 0;
        std::fill(out, out + HS, T(0));
        for (int64_t begin = 0; begin < S; begin += kTile) {
            const int64_t count = std::min(kTile, S - begin);
            T tile_maximum = maximum;
            for (int64_t c = 0; c < count; ++c) {
                const T* const key = k + (begin + c) * a.k.stride[0];
                T dot = 0;
#pragma omp simd reduction(+ : dot)
                for (int64_t d = 0; d < HS; ++d) dot += q[d] * key[d];
                scores[c] = scale * dot - slope * static_cast<T>(S - 1 - begin - c);
                tile_maximum = std::max(tile_maximum, scores[c]);
            }
            // Online softmax (Milakov and Gimelshein 2018): when the maximum grows, the partial sums are rescaled.
            const T shrink = fast_exp(maximum - tile_maximum);
            maximum = tile_maximum;
            sum *= shrink;
            for (int64_t d = 0; d < HS; ++d) out[d] *= shrink;
            for (int64_t c = 0; c < count; ++c) {
                const T weight = fast_exp(scores[c] - maximum);
                const T* const value = v + (begin + c) * a.v.stride[0];
                sum += weight;
#pragma omp simd
                for (int64_t d = 0; d < HS; ++d) out[d] += weight * value[d];
            }
        }
        const T inverse = 1 / sum;
        for (int64_t d = 0; d < HS; ++d) out[d] *= inverse;
    }
}

void append_cpu(const KvCacheAppend& a) {
    const size_t bytes = static_cast<size_t>(a.k.shape[2] * size_of(a.k.dtype));
    const auto at = [](const Tensor& tensor, int64_t i, int64_t h) {
        return static_cast<uint8_t*>(tensor.data) +
               (i * tensor.stride[0] + h * tensor.stride[1]) * size_of(tensor.dtype);
    };
    for (int64_t i = 0; i < a.k.shape[0]; ++i)
        for (int64_t h = 0; h < a.k.shape[1]; ++h) {
            std::memcpy(at(a.cache_k, i, h), at(a.k, i, h), bytes);
            std::memcpy(at(a.cache_v, i, h), at(a.v, i, h), bytes);
        }
}

}  // namespace

void attention_decode(const Device& device, const AttentionDecode& a) {
    CHECK(a.q.rank == 2 && a.k.rank == 3, "attention_decode: q is ", a.q.describe(), ", k is ", a.k.describe(),
          ", they must be (NH, HS) and (S, NKV, HS)");
    const int64_t NH = a.q.shape[0], HS = a.q.shape[1], S = a.k.shape[0], NKV = a.k.shape[1];
    CHECK(S >= 1, "attention_decode: the cache is empty, it must hold the query's own key");
    CHECK(NKV >= 1 && NH % NKV == 0, "attention_decode: ", NH, " query heads are not a multiple of ", NKV,
          " key/value heads");
    CHECK(HS >= 2 && HS % 2 == 0 && HS <= kMaxHeadSize, "attention_decode: head size ", HS,
          " is not supported: use an even one up to ", kMaxHeadSize);
    const DeviceKind kind = device.kind();
    check_view("attention_decode", "q", a.q, {NH, HS}, a.q.dtype, kind);
    check_output_view("attention_decode", "out", a.out, {NH, HS}, a.q.dtype, kind);
    check_view("attention_decode", "k", a.k, {S, NKV, HS}, a.q.dtype, kind);
    check_view("attention_decode", "v", a.v, {S, NKV, HS}, a.q.dtype, kind);
    if (a.slopes) check_tensor("attention_decode", "slopes", a.slopes, {NH}, accumulation_dtype(a.q.dtype), kind);
    if (!device.is_cpu()) return attention_decode_cuda(device, a);
    for_cpu_scalar(a.q.dtype, "attention_decode", [&](auto scalar) { decode_cpu<decltype(scalar)>(a); });
}

void kv_cache_append(const Device& device, const KvCacheAppend& a) {
    CHECK(a.k.rank == 3, "kv_cache_append: k is ", a.k.describe(), ", it must be (n, NKV, HS)");
    const int64_t n = a.k.shape[0], NKV = a.k.shape[1], HS = a.k.shape[2];
    for (const auto& [name, tensor] : {std::pair{"k", &a.k}, {"v", &a.v}})
        check_view("kv_cache_append", name, *tensor, {n, NKV, HS}, a.k.dtype, device.kind());
    for (const auto& [name, tensor] : {std::pair{"cache_k", &a.cache_k}, {"cache_v", &a.cache_v}})
        check_output_view("kv_cache_append", name, *tensor, {n, NKV, HS}, a.k.dtype, device.kind());
    if (!device.is_cpu()) return kv_cache_append_cuda(device, a);
    append_cpu(a);
}

}  // namespace ingot
