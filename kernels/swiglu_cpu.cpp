#include <vector>

#include "kernels/core/math.h"
#include "kernels/core/parallel.h"
#include "kernels/fp8.h"
#include "kernels/swiglu.h"

namespace ingot {

namespace {

template <typename T>
void forward_cpu(const SwigluForward& a) {
    const int64_t N = a.out.shape[0], F = a.out.shape[1];
    T* const out = a.out.get<T>();
    const T* const gate_up = a.gate_up.get<T>();
#pragma omp parallel for schedule(static) if (is_worth_threads(3 * N * F))
    for (int64_t n = 0; n < N; ++n) {
        const T *const gate = gate_up + n * 2 * F, *const up = gate + F;
#pragma omp simd
        for (int64_t f = 0; f < F; ++f) out[n * F + f] = gate[f] / (1 + fast_exp(-gate[f])) * up[f];
    }
}

template <typename T>
void backward_cpu(const SwigluBackward& a) {
    const int64_t N = a.dout.shape[0], F = a.dout.shape[1];
    T* const dgate_up = a.dgate_up.get<T>();
    T* const out = a.out ? a.out.get<T>() : nullptr;
    const T *const dout = a.dout.get<T>(), *const gate_up = a.gate_up.get<T>();
#pragma omp parallel for schedule(static) if (is_worth_threads(5 * N * F))
    for (int64_t n = 0; n < N; ++n) {
        const T *const gate = gate_up + n * 2 * F, *const up = gate + F;
        T *const dgate = dgate_up + n * 2 * F, *const dup = dgate + F;
#pragma omp simd
        for (int64_t f = 0; f < F; ++f) {
            const T g = gate[f], u = up[f], d = dout[n * F + f];
            const T denominator = 1 + fast_exp(-g), sigmoid = 1 / denominator;
            dup[f] = d * g * sigmoid;
            dgate[f] = d * u * sigmoid * (1 + g * (1 - sigmoid));
            if (out != nullptr) out[n * F + f] = g / denominator * u;
        }
    }
}

// `out` (N, F) and `gate_up` (N, 2F), or their gradients, under the names of the direction.
void check(const Device& device, const char* out_name, const Tensor& out, const char* gate_up_name,
           const Tensor& gate_up) {
    CHECK(out.rank == 2, "swiglu: ", out_name, " is ", out.describe(), ", it must be (N, F)");
    check_tensor("swiglu", out_name, out, {out.shape[0], out.shape[1]}, out.dtype, device.kind());
    check_tensor("swiglu", gate_up_name, gate_up, {out.shape[0], 2 * out.shape[1]}, out.dtype, device.kind());
}

// The twins of the fp8 versions compute everything, then round it.
void forward_fp8(const Device& device, const SwigluForward& a) {
    CHECK(a.gate_up.rank == 2 && !a.out, "swiglu: gate_up is ", a.gate_up.describe(), ", out beside fp8 is ",
          a.out.describe());
    const int64_t N = a.gate_up.shape[0], F = a.gate_up.shape[1] / 2;
    check_tensor("swiglu", "gate_up", a.gate_up, {N, 2 * F}, a.gate_up.dtype, device.kind());
    check_fp8_operand("swiglu", "out", a.quantized, N, F, device.kind());
    if (!device.is_cpu()) return swiglu_forward_fp8_cuda(device, a);
    for_cpu_scalar(a.gate_up.dtype, "swiglu", [&](auto scalar) {
        std::vector<decltype(scalar)> values(static_cast<size_t>(N * F));
        const Tensor out = Tensor::contiguous(values.data(), a.gate_up.dtype, {N, F});
        swiglu_forward(device, {.out = out, .gate_up = a.gate_up});
        fp8_quantize_cpu({.out = a.quantized, .in = out});
    });
}

void backward_fp8(const Device& device, const SwigluBackward& a) {
    CHECK(!a.dgate_up && !a.out, "swiglu: dgate_up beside fp8 is ", a.dgate_up.describe(), ", out ", a.out.describe());
    check(device, "dout", a.dout, "gate_up", a.gate_up);
    const int64_t N = a.dout.shape[0], F = a.dout.shape[1];
    check_fp8_operand("swiglu", "dgate_up", a.quantized, N, 2 * F, device.kind());
    if (a.quantized_out) check_fp8_operand("swiglu", "out", a.quantized_out, N, F, device.kind());
    if (!device.is_cpu()) return swiglu_backward_fp8_cuda(device, a);
    for_cpu_scalar(a.dout.dtype, "swiglu", [&](auto scalar) {
        std::vector<decltype(scalar)> values(static_cast<size_t>(3 * N * F));
        const Tensor dgate_up = Tensor::contiguous(values.data(), a.dout.dtype, {N, 2 * F});
        const Tensor out = Tensor::contiguous(values.data() + 2 * N * F, a.dout.dtype, {N, F});
        swiglu_backward(device, {.dgate_up = dgate_up, .dout = a.dout, .gate_up = a.gate_up, .out = out});
        fp8_quantize_cpu({.out = a.quantized, .in = dgate_up});
        if (a.quantized_out) fp8_quantize_cpu({.out = a.quantized_out, .in = out});
    });
}

}  // namespace

void swiglu_forward(const Device& device, const SwigluForward& a) {
    if (a.quantized) return forward_fp8(device, a);
    check(device, "out", a.out, "gate_up", a.gate_up);
    if (!device.is_cpu()) return swiglu_forward_cuda(device, a);
    for_cpu_scalar(a.out.dtype, "swiglu", [&](auto scalar) { forward_cpu<decltype(scalar)>(a); });
}

void swiglu_backward(const Device& device, const SwigluBackward& a) {
    if (a.quantized) return backward_fp8(device, a);
    check(device, "dout", a.dout, "gate_up", a.gate_up);
    check(device, "dout", a.dout, "dgate_up", a.dgate_up);
    if (a.out) check(device, "out", a.out, "gate_up", a.gate_up);
    if (!device.is_cpu()) return swiglu_backward_cuda(device, a);
    for_cpu_scalar(a.dout.dtype, "swiglu", [&](auto scalar) { backward_cpu<decltype(scalar)>(a); });
}

}  // namespace ingot
