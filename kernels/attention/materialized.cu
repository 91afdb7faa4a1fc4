#include "kernels/attention/materialized.h"

#include "kernels/attention/launch.cuh"
#include "kernels/cuda/context.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vec.cuh"
#include "kernels/matmul/matmul.h"

namespace ingot {

namespace {

constexpr int kThreads = 256;

// Turns scores into probabilities in place; a block per query.
template <typename T>
__global__ void __launch_bounds__(kThreads) softmax_kernel(T* matrix, const int32_t* first_key, const int32_t* end_key,
                                                           int first_token, float scale, const float* slope) {
    __shared__ float sums[kThreads / kWarpSize], maxima[kThreads / kWarpSize];
    const int row = static_cast<int>(blockIdx.x), columns = static_cast<int>(gridDim.x);
    const int first = max(first_key[first_token + row] - first_token, 0);
    const int end = min(end_key[first_token + row] - first_token, columns);
    T* const scores = matrix + static_cast<int64_t>(row) * columns;
    const auto score = [&](int j) {
        const float bias = slope == nullptr ? 0 : -*slope * static_cast<float>(abs(row - j));
        return j >= first && j < end ? fmaf(scale, to_float(scores[j]), bias) : -INFINITY;
    };
    float highest = -INFINITY;
    for (int j = static_cast<int>(threadIdx.x); j < columns; j += kThreads) highest = fmaxf(highest, score(j));
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2)
        highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, distance));
    if (threadIdx.x % kWarpSize == 0) maxima[threadIdx.x / kWarpSize] = highest;
    __syncthreads();
    for (const float other : maxima) highest = fmaxf(highest, other);
    float sum = 0;
    for (int j = static_cast<int>(threadIdx.x); j < columns; j += kThreads)
        sum += first < end ? __expf(score(j) - highest) : 0;
    sum = block_sum(sum, sums);
    for (int j = static_cast<int>(threadIdx.x); j < columns; j += kThreads)
        scores[j] = from_float<T>(first < end ? __expf(score(j) - highest) / sum : 0);
}

// Overwrites dP by dS = scale P * (dP - sum(P dP)).
template <typename T>
__global__ void __launch_bounds__(kThreads) softmax_backward_kernel(T* gradient, const T* probabilities, float scale) {
    __shared__ float sums[kThreads / kWarpSize];
    const int columns = static_cast<int>(gridDim.x);
    const int64_t row = static_cast<int64_t>(blockIdx.x) * columns;
    float sum = 0;
    for (int j = static_cast<int>(threadIdx.x); j < columns; j += kThreads)
        sum += to_float(probabilities[row + j]) * to_float(gradient[row + j]);
    sum = block_sum(sum, sums);
    for (int j = static_cast<int>(threadIdx.x); j < columns; j += kThreads)
        gradient[row + j] =
            from_float<T>(scale * to_float(probabilities[row + j]) * (to_float(gradient[row + j]) - sum));
}

template <typename T>
__global__ void __launch_bounds__(kThreads) round_kernel(T* to, int64_t stride, const float* from, int columns) {
    for (int j = static_cast<int>(threadIdx.x); j < columns; j += kThreads)
        to[blockIdx.x * stride + j] = from_float<T>(from[static_cast<int64_t>(blockIdx.x) * columns + j]);
}

// Returns rows [first, first + T) of one head.
Tensor head_of(const Tensor& tensor, int64_t first, int64_t T, int64_t head) {
    Tensor rows = Tensor::contiguous(nullptr, tensor.dtype, {T, tensor.shape[2]}, tensor.device);
    rows.stride[0] = tensor.stride[0];
    rows.data =
        static_cast<char*>(tensor.data) + (first * tensor.stride[0] + head * tensor.stride[1]) * size_of(tensor.dtype);
    return rows;
}

// `from` is contiguous.
void round_rows(cudaStream_t stream, const Tensor& to, const float* from) {
    for_cuda_type(to.dtype, "MaterializedAttention", [&](auto element) {
        using E = decltype(element);
        round_kernel<<<static_cast<unsigned>(to.shape[0]), kThreads, 0, stream>>>(to.get<E>(), to.stride[0], from,
                                                                                  static_cast<int>(to.shape[1]));
        CUDA_CHECK_LAUNCH("materialized attention, rounding");
    });
}

}  // namespace

MaterializedAttention::MaterializedAttention(const Device& device, const Tensor& q, int64_t T) : device_(device) {
    CHECK(T >= 1 && q.shape[0] % T == 0, "MaterializedAttention: ", q.shape[0], " tokens are not whole rows of ", T);
    probabilities_ = tensor(q.dtype, {q.shape[0] / T * q.shape[1], T, T});
    gradient_ = tensor(q.dtype, {T, T});
    dk_ = tensor(DType::f32, {T, q.shape[2]});
    dv_ = tensor(DType::f32, {T, q.shape[2]});
}

Tensor MaterializedAttention::tensor(DType dtype, std::initializer_list<int64_t> shape) {
    Tensor result = Tensor::contiguous(nullptr, dtype, shape, device_.kind());
    memory_.push_back(device_.allocate(static_cast<size_t>(result.bytes())));
    result.data = memory_.back().get();
    bytes_ += static_cast<size_t>(result.bytes());
    return result;
}

Tensor MaterializedAttention::probabilities_of(int64_t matrix) const {
    Tensor result = gradient_;
    result.data = static_cast<char*>(probabilities_.data) + matrix * result.bytes();
    return result;
}

void MaterializedAttention::forward(const AttentionForward& a) {
    const int64_t T = gradient_.shape[0], NH = a.q.shape[1], G = NH / a.k.shape[1];
    const cudaStream_t stream = device_.context().stream;
    const float* const slopes = slopes_of(a.slopes);
    for (int64_t first = 0; first < a.q.shape[0]; first += T)
        for (int64_t h = 0; h < NH; ++h) {
            const Tensor matrix = probabilities_of(first / T * NH + h);
            matmul_forward(device_,
                           {.out = matrix, .x = head_of(a.q, first, T, h), .weight = head_of(a.k, first, T, h / G)});
            for_cuda_type(matrix.dtype, "MaterializedAttention", [&](auto element) {
                using E = decltype(element);
                softmax_kernel<<<static_cast<unsigned>(T), kThreads, 0, stream>>>(
                    matrix.get<E>(), a.mask.first_key.get<int32_t>(), a.mask.end_key.get<int32_t>(),
                    static_cast<int>(first), static_cast<float>(a.scale), slopes == nullptr ? nullptr : slopes + h);
                CUDA_CHECK_LAUNCH("materialized attention, softmax");
            });
            // out (T, HS) = probabilities (T, T) v (T, HS)
            matmul_backward_input(
                device_, {.dx = head_of(a.out, first, T, h), .dout = matrix, .weight = head_of(a.v, first, T, h / G)});
        }
}

void MaterializedAttention::backward(const AttentionBackward& a) {
    const int64_t T = gradient_.shape[0], NH = a.q.shape[1], G = NH / a.k.shape[1];
    const cudaStream_t stream = device_.context().stream;
    for (int64_t first = 0; first < a.q.shape[0]; first += T)
        for (int64_t h = 0; h < NH; ++h) {
            const Tensor matrix = probabilities_of(first / T * NH + h), dout = head_of(a.dout, first, T, h);
            const Tensor q = head_of(a.q, first, T, h), k = head_of(a.k, first, T, h / G);
            matmul_backward_weight(device_, {.dweight = dv_, .dout = matrix, .x = dout, .accumulate = h % G > 0});
            matmul_forward(device_, {.out = gradient_, .x = dout, .weight = head_of(a.v, first, T, h / G)});
            for_cuda_type(matrix.dtype, "MaterializedAttention", [&](auto element) {
                using E = decltype(element);
                softmax_backward_kernel<<<static_cast<unsigned>(T), kThreads, 0, stream>>>(
                    gradient_.get<E>(), matrix.get<E>(), static_cast<float>(a.scale));
                CUDA_CHECK_LAUNCH("materialized attention, softmax backward");
            });
            matmul_backward_input(device_, {.dx = head_of(a.dq, first, T, h), .dout = gradient_, .weight = k});
            matmul_backward_weight(device_, {.dweight = dk_, .dout = gradient_, .x = q, .accumulate = h % G > 0});
            if ((h + 1) % G > 0) continue;
            round_rows(stream, head_of(a.dk, first, T, h / G), dk_.get<float>());
            round_rows(stream, head_of(a.dv, first, T, h / G), dv_.get<float>());
        }
}

}  // namespace ingot
