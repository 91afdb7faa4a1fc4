// RoPE on CUDA runs in place and is bound by memory. A thread turns the same pairs of up to kHeads heads of a token, 16
// bytes of the first half and 16 of the second at a time, so that it reads its sines and cosines once. Head sizes,
// strides or pointers that are no multiples of 16 bytes take the scalar version of the same kernel.
#include "kernels/cuda/context.h"
#include "kernels/cuda/vec.cuh"
#include "kernels/rope.h"

namespace ingot {

namespace {

constexpr int kThreads = 256;
constexpr int kHeads = 4;

template <typename T>
struct Args {
    T* x;
    const int32_t* positions;
    const float* table;
    int64_t token_stride, head_stride, table_rows;
    // A token has heads_apart * chunks threads. Its heads h, h + heads_apart, ... belong to one of them: neighbouring
    // threads have neighbouring heads.
    uint32_t num_threads, chunks, heads_apart, num_heads;
    int half;
    float direction;
};

template <typename T, bool kIsVector>
__global__ void __launch_bounds__(kThreads) rope_kernel(const __grid_constant__ Args<T> a) {
    using C = Chunk<T, kIsVector>;
    const uint32_t thread = blockIdx.x * kThreads + threadIdx.x;
    if (thread >= a.num_threads) return;
    const uint32_t row = thread / a.chunks, token = row / a.heads_apart;
    const uint32_t first_head = row - token * a.heads_apart;
    const int d = static_cast<int>(thread - row * a.chunks) * C::kSize;
    const int32_t position = a.positions[token];
    if (position < 0 || position >= a.table_rows) __trap();
    T* const x = a.x + token * a.token_stride + d;
    typename C::Packed low[kHeads], high[kHeads];
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
        const uint32_t head = first_head + i * a.heads_apart;
        if (head >= a.num_heads) continue;
        low[i] = C::fetch(x + head * a.head_stride);
        high[i] = C::fetch(x + head * a.head_stride + a.half);
    }
    float cosines[C::kSize], sines[C::kSize];
    const float* const angles = a.table + position * int64_t{2 * a.half} + d;
    load_floats(angles, cosines);
    load_floats(angles + a.half, sines);
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
        const uint32_t head = first_head + i * a.heads_apart;
        if (head >= a.num_heads) continue;
        float first[C::kSize], second[C::kSize];
        C::unpack(low[i], first);
        C::unpack(high[i], second);
#pragma unroll
        for (int e = 0; e < C::kSize; ++e) {
            const float s = a.direction * sines[e], turned = first[e] * cosines[e] - second[e] * s;
            second[e] = second[e] * cosines[e] + first[e] * s;
            first[e] = turned;
        }
        C::store(x + head * a.head_stride, first);
        C::store(x + head * a.head_stride + a.half, second);
    }
}

template <typename T>
bool fits_vectors(const Rope& a) {
    const int64_t size = Vec<T>::kSize;
    return a.x.shape[2] / 2 % size == 0 && a.x.stride[0] % size == 0 && a.x.stride[1] % size == 0 &&
           is_aligned(a.x.data) && is_aligned(a.table.data);
}

}  // namespace

void rope_cuda(const Device& device, const Rope& a, int direction) {
    const int64_t N = a.x.shape[0], H = a.x.shape[1], half = a.x.shape[2] / 2;
    CHECK(H < (int64_t{1} << 20) && half < (int64_t{1} << 20), "rope on CUDA: x is ", a.x.describe(),
          ": at most 2^20 heads of 2^21 elements");
    for_cuda_type(a.x.dtype, "rope", [&](auto element) {
        using T = decltype(element);
        const bool fits = fits_vectors<T>(a);
        const int64_t chunks = half / (fits ? Vec<T>::kSize : 1), heads_apart = (H + kHeads - 1) / kHeads;
        for_row_parts("rope", N, heads_apart * chunks, [&](int64_t first, int64_t count) {
            const Args<T> args = {.x = a.x.get<T>() + first * a.x.stride[0],
                                  .positions = a.positions.get<int32_t>() + first,
                                  .table = a.table.get<float>(),
                                  .token_stride = a.x.stride[0],
                                  .head_stride = a.x.stride[1],
                                  .table_rows = a.table.shape[0],
                                  .num_threads = static_cast<uint32_t>(count * heads_apart * chunks),
                                  .chunks = static_cast<uint32_t>(chunks),
                                  .heads_apart = static_cast<uint32_t>(heads_apart),
                                  .num_heads = static_cast<uint32_t>(H),
                                  .half = static_cast<int>(half),
                                  .direction = static_cast<float>(direction)};
            const auto kernel = fits ? rope_kernel<T, true> : rope_kernel<T, false>;
            const auto blocks = static_cast<uint32_t>((int64_t{args.num_threads} + kThreads - 1) / kThreads);
            kernel<<<blocks, kThreads, 0, device.context().stream>>>(args);
            CUDA_CHECK_LAUNCH("rope");
        });
    });
}

}  // namespace ingot
