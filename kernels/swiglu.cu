// SwiGLU on CUDA is bound by memory; each thread has 16 bytes of out. The scalar version of the kernels takes widths
// that are no multiple of 16 bytes.
#include "kernels/cuda/context.h"
#include "kernels/cuda/sigmoid.cuh"
#include "kernels/cuda/vec.cuh"
#include "kernels/swiglu.h"

namespace ingot {

namespace {

constexpr int kThreads = 256;

// A thread's chunk is at element f of token n. num_chunks and chunks_per_row count chunks.
struct Grid {
    uint32_t num_chunks, chunks_per_row;
};

template <typename T, bool kIsVector>
__global__ void __launch_bounds__(kThreads) forward_kernel(T* out, const T* gate_up, Grid grid) {
    using C = Chunk<T, kIsVector>;
    const uint32_t chunk = blockIdx.x * kThreads + threadIdx.x;
    if (chunk >= grid.num_chunks) return;
    const int64_t F = int64_t{grid.chunks_per_row} * C::kSize;
    const uint32_t n = chunk / grid.chunks_per_row;
    const int64_t f = int64_t{chunk - n * grid.chunks_per_row} * C::kSize;
    float gate[C::kSize], up[C::kSize];
    C::load(gate_up + n * 2 * F + f, gate);
    C::load(gate_up + n * 2 * F + F + f, up);
#pragma unroll
    for (int e = 0; e < C::kSize; ++e) gate[e] *= sigmoid<T>(gate[e]) * up[e];
    C::store(out + n * F + f, gate);
}

// With kWritesOut it also writes the forward's out, with the same bits.
template <typename T, bool kIsVector, bool kWritesOut>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(T* dgate_up, T* out, const T* dout, const T* gate_up, Grid grid) {
    using C = Chunk<T, kIsVector>;
    const uint32_t chunk = blockIdx.x * kThreads + threadIdx.x;
    if (chunk >= grid.num_chunks) return;
    const int64_t F = int64_t{grid.chunks_per_row} * C::kSize;
    const uint32_t n = chunk / grid.chunks_per_row;
    const int64_t f = int64_t{chunk - n * grid.chunks_per_row} * C::kSize;
    float gate[C::kSize], up[C::kSize], d[C::kSize], again[C::kSize];
    C::load(gate_up + n * 2 * F + f, gate);
    C::load(gate_up + n * 2 * F + F + f, up);
    C::load(dout + n * F + f, d);
#pragma unroll
    for (int e = 0; e < C::kSize; ++e) {
        const float s = sigmoid<T>(gate[e]);
        const float dup = d[e] * gate[e] * s;
        if constexpr (kWritesOut) again[e] = gate[e] * (s * up[e]);
        gate[e] = d[e] * up[e] * s * (1 + gate[e] * (1 - s));
        up[e] = dup;
    }
    C::store(dgate_up + n * 2 * F + f, gate);
    C::store(dgate_up + n * 2 * F + F + f, up);
    if constexpr (kWritesOut) C::store(out + n * F + f, again);
}

// Calls launch(first_row, grid, blocks) over parts of the rows.
template <typename T, typename Launch>
void for_grids(const Tensor& out, bool fits_vectors, Launch&& launch) {
    const int64_t per_row = out.shape[1] / (fits_vectors ? Vec<T>::kSize : 1);
    for_row_parts("swiglu", out.shape[0], per_row, [&](int64_t first, int64_t count) {
        const int64_t chunks = count * per_row;
        launch(first, Grid{static_cast<uint32_t>(chunks), static_cast<uint32_t>(per_row)},
               static_cast<uint32_t>((chunks + kThreads - 1) / kThreads));
    });
}

template <typename T>
bool fits_vectors(int64_t F, std::initializer_list<const Tensor*> tensors) {
    bool fits = F % Vec<T>::kSize == 0;
    for (const Tensor* tensor : tensors) fits = fits && is_aligned(tensor->data);
    return fits;
}

}  // namespace

void swiglu_forward_cuda(const Device& device, const SwigluForward& a) {
    const cudaStream_t stream = device.context().stream;
    for_cuda_type(a.out.dtype, "swiglu", [&](auto element) {
        using T = decltype(element);
        const int64_t F = a.out.shape[1];
        const bool fits = fits_vectors<T>(F, {&a.out, &a.gate_up});
        for_grids<T>(a.out, fits, [&](int64_t first, Grid grid, uint32_t blocks) {
            const auto kernel = fits ? forward_kernel<T, true> : forward_kernel<T, false>;
            kernel<<<blocks, kThreads, 0, stream>>>(a.out.get<T>() + first * F, a.gate_up.get<T>() + first * 2 * F,
                                                    grid);
            CUDA_CHECK_LAUNCH("swiglu_forward");
        });
    });
}

void swiglu_backward_cuda(const Device& device, const SwigluBackward& a) {
    const cudaStream_t stream = device.context().stream;
    for_cuda_type(a.dout.dtype, "swiglu", [&](auto element) {
        using T = decltype(element);
        const int64_t F = a.dout.shape[1];
        const bool fits = fits_vectors<T>(F, {&a.dgate_up, &a.out, &a.dout, &a.gate_up});
        T* const out = a.out ? a.out.get<T>() : nullptr;
        for_grids<T>(a.dout, fits, [&](int64_t first, Grid grid, uint32_t blocks) {
            const auto kernel = out == nullptr
                                    ? (fits ? backward_kernel<T, true, false> : backward_kernel<T, false, false>)
                                    : (fits ? backward_kernel<T, true, true> : backward_kernel<T, false, true>);
            kernel<<<blocks, kThreads, 0, stream>>>(
                a.dgate_up.get<T>() + first * 2 * F, out == nullptr ? nullptr : out + first * F,
                a.dout.get<T>() + first * F, a.gate_up.get<T>() + first * 2 * F, grid);
            CUDA_CHECK_LAUNCH("swiglu_backward");
        });
    });
}

}  // namespace ingot
