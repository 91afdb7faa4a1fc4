#include "kernels/core/math.h"
#include "kernels/core/parallel.h"
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

}  // namespace

void swiglu_forward(const Device& device, const SwigluForward& a) {
    check(device, "out", a.out, "gate_up", a.gate_up);
    if (!device.is_cpu()) return swiglu_forward_cuda(device, a);
    for_cpu_scalar(a.out.dtype, "swiglu", [&](auto scalar) { forward_cpu<decltype(scalar)>(a); });
}

void swiglu_backward(const Device& device, const SwigluBackward& a) {
    check(device, "dout", a.dout, "gate_up", a.gate_up);
    check(device, "dout", a.dout, "dgate_up", a.dgate_up);
    if (a.out) check(device, "out", a.out, "gate_up", a.gate_up);
    if (!device.is_cpu()) return swiglu_backward_cuda(device, a);
    for_cpu_scalar(a.dout.dtype, "swiglu", [&](auto scalar) { backward_cpu<decltype(scalar)>(a); });
}

}  // namespace ingot
