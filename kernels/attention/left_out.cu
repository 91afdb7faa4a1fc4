// The kernels make one pass over memory: a thread has 16 bytes of a key/value head of a token, and the same elements of
// the G query heads of its group. The scalar version takes head sizes, strides or pointers that are no multiples of 16
// bytes.
#include "kernels/attention/left_out.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/vec.cuh"

namespace ingot {

namespace {

constexpr int kThreads = 256;

template <typename T>
struct View {
    T* data;
    int64_t token_stride, head_stride;
    __device__ T* at(uint32_t token, uint32_t head, uint32_t element) const {
        return data + token * token_stride + head * head_stride + element;
    }
};

// Threads are numbered by token, then key/value head, then chunk of the head.
struct Grid {
    uint32_t num_threads, chunks, num_groups, group_size;
};

struct Place {
    uint32_t token, group, element;
};
__device__ Place place_of(uint32_t thread, const Grid& grid, int chunk_size) {
    const uint32_t row = thread / grid.chunks, token = row / grid.num_groups;
    return {token, row - token * grid.num_groups, (thread - row * grid.chunks) * static_cast<uint32_t>(chunk_size)};
}

template <typename T, bool kIsVector>
__global__ void __launch_bounds__(kThreads) left_out_forward_kernel(View<T> out, View<T> v, Grid grid) {
    using C = Chunk<T, kIsVector>;
    const uint32_t thread = blockIdx.x * kThreads + threadIdx.x;
    if (thread >= grid.num_threads) return;
    const Place p = place_of(thread, grid, C::kSize);
    const typename C::Packed value = C::fetch(v.at(p.token, p.group, p.element));
    for (uint32_t g = 0; g < grid.group_size; ++g)
        C::put(out.at(p.token, p.group * grid.group_size + g, p.element), value);
}

template <typename T, bool kIsVector>
__global__ void __launch_bounds__(kThreads)
    left_out_backward_kernel(View<T> dq, View<T> dk, View<T> dv, View<T> dout, Grid grid) {
    using C = Chunk<T, kIsVector>;
    const uint32_t thread = blockIdx.x * kThreads + threadIdx.x;
    if (thread >= grid.num_threads) return;
    const Place p = place_of(thread, grid, C::kSize);
    const float zero[C::kSize] = {};
    float sum[C::kSize] = {};
    for (uint32_t g = 0; g < grid.group_size; ++g) {
        const uint32_t head = p.group * grid.group_size + g;
        float values[C::kSize];
        C::load(dout.at(p.token, head, p.element), values);
#pragma unroll
        for (int e = 0; e < C::kSize; ++e) sum[e] += values[e];
        C::store(dq.at(p.token, head, p.element), zero);
    }
    C::store(dk.at(p.token, p.group, p.element), zero);
    C::store(dv.at(p.token, p.group, p.element), sum);
}

template <typename T>
View<T> view_of(const Tensor& tensor, int64_t first_token) {
    return {tensor.get<T>() + first_token * tensor.stride[0], tensor.stride[0], tensor.stride[1]};
}

template <typename T>
bool fits_vectors(std::initializer_list<const Tensor*> tensors) {
    bool fits = true;
    for (const Tensor* tensor : tensors)
        for (const int64_t size : {tensor->shape[2], tensor->stride[0], tensor->stride[1]})
            fits = fits && size % Vec<T>::kSize == 0 && is_aligned(tensor->data);
    return fits;
}

// Calls launch(first_token, grid, blocks) over parts of the tokens.
template <typename T, typename Launch>
void for_grids(const Tensor& query, const Tensor& group, bool fits, Launch&& launch) {
    const int64_t chunks = query.shape[2] / (fits ? Vec<T>::kSize : 1), per_token = group.shape[1] * chunks;
    for_row_parts("attention_left_out", query.shape[0], per_token, [&](int64_t first, int64_t count) {
        const int64_t threads = count * per_token;
        launch(first,
               Grid{static_cast<uint32_t>(threads), static_cast<uint32_t>(chunks),
                    static_cast<uint32_t>(group.shape[1]), static_cast<uint32_t>(query.shape[1] / group.shape[1])},
               static_cast<uint32_t>((threads + kThreads - 1) / kThreads));
    });
}

}  // namespace

void attention_left_out_forward_cuda(const Device& device, const AttentionLeftOutForward& a) {
    const cudaStream_t stream = device.context().stream;
    for_cuda_type(a.out.dtype, "attention left out", [&](auto element) {
        using T = decltype(element);
        const bool fits = fits_vectors<T>({&a.out, &a.v});
        for_grids<T>(a.out, a.v, fits, [&](int64_t first, const Grid& grid, uint32_t blocks) {
            const auto kernel = fits ? left_out_forward_kernel<T, true> : left_out_forward_kernel<T, false>;
            kernel<<<blocks, kThreads, 0, stream>>>(view_of<T>(a.out, first), view_of<T>(a.v, first), grid);
            CUDA_CHECK_LAUNCH("attention_left_out_forward");
        });
    });
}

void attention_left_out_backward_cuda(const Device& device, const AttentionLeftOutBackward& a) {
    const cudaStream_t stream = device.context().stream;
    for_cuda_type(a.dout.dtype, "attention left out", [&](auto element) {
        using T = decltype(element);
        const bool fits = fits_vectors<T>({&a.dq, &a.dk, &a.dv, &a.dout});
        for_grids<T>(a.dout, a.dv, fits, [&](int64_t first, const Grid& grid, uint32_t blocks) {
            const auto kernel = fits ? left_out_backward_kernel<T, true> : left_out_backward_kernel<T, false>;
            kernel<<<blocks, kThreads, 0, stream>>>(view_of<T>(a.dq, first), view_of<T>(a.dk, first),
                                                    view_of<T>(a.dv, first), view_of<T>(a.dout, first), grid);
            CUDA_CHECK_LAUNCH("attention_left_out_backward");
        });
    });
}

}  // namespace ingot
