#include <cmath>
#include <vector>

#include "kernels/core/parallel.h"
#include "kernels/fp8.h"
#include "kernels/rmsnorm.h"

namespace ingot {

namespace {

// Rows of a (N, C) tensor, or of a (N, H, HS) view, one after the other.
template <typename T>
struct Rows {
    explicit Rows(const Tensor& tensor)
        : data(tensor.get<T>()),
          heads(tensor.rank == 3 ? tensor.shape[1] : 1),
          token_stride(tensor.stride[0]),
          head_stride(tensor.rank == 3 ? tensor.stride[1] : 0) {}
    T* operator[](int64_t row) const { return data + row / heads * token_stride + row % heads * head_stride; }
    T* data;
    int64_t heads, token_stride, head_stride;
};

int64_t num_rows(const Tensor& x) {
    return x.rank == 3 ? x.shape[0] * x.shape[1] : x.shape[0];
}
int64_t width(const Tensor& x) {
    return x.shape[x.rank - 1];
}

template <typename T>
void forward_cpu(const RmsNormForward& a) {
    const int64_t rows = num_rows(a.x), C = width(a.x);
    const Rows<T> out(a.out), x(a.x);
    T* const rstd = a.rstd.get<T>();
    const T* const weight = a.weight.get<T>();
    const T eps = static_cast<T>(a.eps);
#pragma omp parallel for schedule(static) if (is_worth_threads(2 * rows * C))
    for (int64_t row = 0; row < rows; ++row) {
        const T* const xr = x[row];
        T* const outr = out[row];
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < C; ++c) sum += xr[c] * xr[c];
        const T r = 1 / std::sqrt(sum / static_cast<T>(C) + eps);
        rstd[row] = r;
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) outr[c] = xr[c] * r * weight[c];
    }
}

// dweight is summed over a fixed number of row blocks, whatever the number of threads, and the blocks in index order.
constexpr int64_t kBlocks = 32;

template <typename T>
void backward_cpu(const RmsNormBackward& a) {
    const int64_t rows = num_rows(a.x), C = width(a.x);
    const Rows<T> dx(a.dx), dout(a.dout), x(a.x);
    const Rows<T> dresidual(a.dresidual ? a.dresidual : a.dx);
    const bool has_residual = static_cast<bool>(a.dresidual);
    const T* const rstd = a.rstd.get<T>();
    const T* const weight = a.weight.get<T>();
    T* const partial = static_cast<T*>(a.workspace.data);  // (kBlocks, C)
#pragma omp parallel for schedule(static) if (is_worth_threads(3 * rows * C))
    for (int64_t block = 0; block < kBlocks; ++block) {
        T* const dw = partial + block * C;
        for (int64_t c = 0; c < C; ++c) dw[c] = 0;
        const auto [begin, end] = block_range(rows, kBlocks, block);
        for (int64_t row = begin; row < end; ++row) {
            const T *const xr = x[row], *const dor = dout[row], *const resr = dresidual[row];
            T* const dxr = dx[row];
            const T r = rstd[row];
            T dot = 0;
#pragma omp simd reduction(+ : dot)
            for (int64_t c = 0; c < C; ++c) dot += dor[c] * weight[c] * xr[c];
            const T scale = dot * r * r / static_cast<T>(C);
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) {
                const T g = dor[c];
                dw[c] += g * xr[c] * r;
                const T d = r * (g * weight[c] - xr[c] * scale);
                dxr[c] = has_residual ? resr[c] + d : d;
            }
        }
    }
    T* const dweight = a.dweight.get<T>();
#pragma omp parallel for schedule(static) if (is_worth_threads(kBlocks * C))
    for (int64_t c = 0; c < C; ++c) {
        T sum = 0;
        for (int64_t block = 0; block < kBlocks; ++block) sum += partial[block * C + c];
        dweight[c] = a.accumulate ? dweight[c] + sum : sum;
    }
}

// Checks that `tensor` has the shape, (N, C) or (N, H, HS), and the dtype of `x`.
template <typename Check>
void check_rows(Check&& check, const Device& device, const char* name, const Tensor& tensor, const Tensor& x) {
    CHECK(x.rank == 2 || x.rank == 3, "rmsnorm: x is ", x.describe(), ", it must be (N, C) or (N, H, HS)");
    if (x.rank == 2)
        check("rmsnorm", name, tensor, {x.shape[0], x.shape[1]}, x.dtype, device.kind());
    else
        check("rmsnorm", name, tensor, {x.shape[0], x.shape[1], x.shape[2]}, x.dtype, device.kind());
}
void check_input(const Device& device, const char* name, const Tensor& tensor, const Tensor& x) {
    check_rows(check_view, device, name, tensor, x);
}
void check_output(const Device& device, const char* name, const Tensor& tensor, const Tensor& x) {
    check_rows(check_output_view, device, name, tensor, x);
}

void check_vectors(const Device& device, const Tensor& x, const Tensor& rstd, const Tensor& weight) {
    const DType stats = accumulation_dtype(x.dtype);
    check_tensor("rmsnorm", "weight", weight, {width(x)}, x.dtype, device.kind());
    if (x.rank == 2)
        check_tensor("rmsnorm", "rstd", rstd, {x.shape[0]}, stats, device.kind());
    else
        check_tensor("rmsnorm", "rstd", rstd, {x.shape[0], x.shape[1]}, stats, device.kind());
}

// The twin of the fp8 version computes everything, then rounds it.
void forward_fp8(const Device& device, const RmsNormForward& a) {
    CHECK(a.x.rank == 2 && !a.out, "rmsnorm to fp8: x is ", a.x.describe(), ", out ", a.out.describe());
    const int64_t N = a.x.shape[0], C = a.x.shape[1];
    check_tensor("rmsnorm", "x", a.x, {N, C}, a.x.dtype, device.kind());
    check_vectors(device, a.x, a.rstd, a.weight);
    check_fp8_operand("rmsnorm", "out", a.quantized, N, C, device.kind());
    if (!device.is_cpu()) return rmsnorm_forward_fp8_cuda(device, a);
    for_cpu_scalar(a.x.dtype, "rmsnorm", [&](auto scalar) {
        std::vector<decltype(scalar)> values(static_cast<size_t>(N * C));
        const Tensor out = Tensor::contiguous(values.data(), a.x.dtype, {N, C});
        rmsnorm_forward(device, {.out = out, .rstd = a.rstd, .x = a.x, .weight = a.weight, .eps = a.eps});
        fp8_quantize_cpu({.out = a.quantized, .in = out});
    });
}

}  // namespace

void rmsnorm_forward(const Device& device, const RmsNormForward& a) {
    if (a.quantized) return forward_fp8(device, a);
    check_input(device, "x", a.x, a.x);
    check_output(device, "out", a.out, a.x);
    check_vectors(device, a.x, a.rstd, a.weight);
    if (!device.is_cpu()) return rmsnorm_forward_cuda(device, a);
    for_cpu_scalar(a.x.dtype, "rmsnorm", [&](auto scalar) { forward_cpu<decltype(scalar)>(a); });
}

size_t rmsnorm_backward_workspace(const Device& device, const Tensor& x) {
    if (device.is_planned())
        return Device::Planned::num_multiprocessors * static_cast<size_t>(kRmsNormBackwardBlocks * width(x)) *
               sizeof(float);
    if (!device.is_cpu()) return rmsnorm_backward_workspace_cuda(device, x);
    return static_cast<size_t>(kBlocks * width(x) * size_of(accumulation_dtype(x.dtype)));
}

void rmsnorm_backward(const Device& device, const RmsNormBackward& a) {
    check_input(device, "x", a.x, a.x);
    check_output(device, "dx", a.dx, a.x);
    check_input(device, "dout", a.dout, a.x);
    if (a.dresidual) check_input(device, "dresidual", a.dresidual, a.x);
    check_vectors(device, a.x, a.rstd, a.weight);
    check_tensor("rmsnorm", "dweight", a.dweight, {width(a.x)}, accumulation_dtype(a.x.dtype), device.kind());
    check_workspace("rmsnorm_backward", a.workspace, rmsnorm_backward_workspace(device, a.x), device.kind());
    if (!device.is_cpu()) return rmsnorm_backward_cuda(device, a);
    for_cpu_scalar(a.x.dtype, "rmsnorm", [&](auto scalar) { backward_cpu<decltype(scalar)>(a); });
}

}  // namespace ingot
