#include <algorithm>
#include <cmath>

#include "kernels/adamw.h"
#include "kernels/core/parallel.h"

namespace ingot {

namespace {

template <typename T>
void adamw_cpu(const AdamW& a) {
    const StepSettings& settings = a.step->settings;
    const StepDecision& decision = a.step->decision;
    if (!decision.apply) return;
    const T lr = static_cast<T>(settings.lr), eps = static_cast<T>(settings.eps);
    const T beta1 = static_cast<T>(settings.beta1), beta2 = static_cast<T>(settings.beta2);
    const T one_minus_beta1 = static_cast<T>(1 - settings.beta1), one_minus_beta2 = static_cast<T>(1 - settings.beta2);
    const T factor = static_cast<T>(decision.gradient_factor);
    const T inverse_bias1 = static_cast<T>(1 / decision.bias_correction1);
    const T inverse_bias2 = static_cast<T>(1 / decision.bias_correction2);
    const T weight_decay = static_cast<T>(settings.weight_decay);
    const uint8_t* const decay_blocks = a.decay_blocks ? a.decay_blocks.get<uint8_t>() : nullptr;
    T *const weights = a.weights.get<T>(), *const m = a.m.get<T>(), *const v = a.v.get<T>();
    const T* const gradient = a.gradient.get<T>();
    const int64_t n = a.weights.shape[0];
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < (n + kDecayBlock - 1) / kDecayBlock; ++block) {
        const T decay = decay_blocks == nullptr || decay_blocks[block] != 0 ? weight_decay : T(0);
        const int64_t begin = block * kDecayBlock, end = std::min(n, begin + kDecayBlock);
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) {
            const T g = gradient[i] * factor;
            m[i] = beta1 * m[i] + one_minus_beta1 * g;
            v[i] = beta2 * v[i] + one_minus_beta2 * g * g;
            const T update = m[i] * inverse_bias1 / (std::sqrt(v[i] * inverse_bias2) + eps);
            weights[i] -= lr * (update + decay * weights[i]);
        }
    }
    if (a.compute && a.compute.data != a.weights.data) {
        for (int64_t i = 0; i < n; ++i) {
            const float w = static_cast<float>(weights[i]);
            if (a.compute.dtype == DType::bf16)
                a.compute.get<bf16>()[i] = to_bf16(w);
            else
                a.compute.get<f16>()[i] = to_f16(w);
        }
    }
}

template <typename T>
void add_squares(StepBlock* step, const T* gradient, int64_t n) {
    constexpr int64_t kBlocks = 256;
    double partial[kBlocks];
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < kBlocks; ++block) {
        const auto range = block_range(n, kBlocks, block);
        const int64_t begin = range.first, end = range.second;  // clang takes no structured bindings into a region
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = begin; i < end; ++i) {
            const double g = static_cast<double>(gradient[i]);
            sum += g * g;
        }
        partial[block] = sum;
    }
    for (int64_t block = 0; block < kBlocks; ++block) step->sums.squared_norm += partial[block];
}

}  // namespace

void adamw(const Device& device, const AdamW& a) {
    CHECK(a.weights.rank == 1, "adamw: weights are ", a.weights.describe(), ", they must be (n)");
    const int64_t n = a.weights.shape[0];
    const DType dtype = accumulation_dtype(a.weights.dtype);
    for (const auto& [name, tensor] :
         {std::pair{"weights", &a.weights}, {"m", &a.m}, {"v", &a.v}, {"gradient", &a.gradient}})
        check_tensor("adamw", name, *tensor, {n}, dtype, device.kind());
    if (a.compute && a.compute.data == a.weights.data) {  // fp32: the weights are their own copy
        check_tensor("adamw", "compute", a.compute, {n}, dtype, device.kind());
    } else if (a.compute) {
        CHECK(a.compute.dtype == DType::bf16 || a.compute.dtype == DType::f16, "adamw: the compute copy is ",
              a.compute.describe(), ", it must be bf16 or fp16");
        check_tensor("adamw", "compute", a.compute, {n}, a.compute.dtype, device.kind());
    }
    if (a.decay_blocks) {
        check_tensor("adamw", "decay_blocks", a.decay_blocks, {(n + kDecayBlock - 1) / kDecayBlock}, DType::u8,
                     device.kind());
    }
    if (!device.is_cpu()) return adamw_cuda(device, a);
    for_cpu_scalar(dtype, "adamw", [&](auto scalar) { adamw_cpu<decltype(scalar)>(a); });
}

void gradient_norm(const Device& device, const GradientNorm& a) {
    if (a.gradients.empty()) return;
    const DType dtype = a.gradients[0].dtype;
    for (const Tensor& gradient : a.gradients) {
        CHECK(gradient.rank == 1, "gradient_norm: a gradient is ", gradient.describe(), ", it must be (n)");
        check_tensor("gradient_norm", "gradient", gradient, {gradient.shape[0]}, dtype, device.kind());
    }
    check_workspace("gradient_norm", a.workspace, gradient_norm_workspace(device, a.gradients.size()), device.kind());
    if (!device.is_cpu()) return gradient_norm_cuda(device, a);
    for_cpu_scalar(dtype, "gradient_norm", [&](auto scalar) {
        for (const Tensor& gradient : a.gradients)
            add_squares(a.step, gradient.get<decltype(scalar)>(), gradient.shape[0]);
    });
}

size_t gradient_norm_workspace(const Device& device, size_t num_gradients) {
    return device.is_cpu() ? 0 : num_gradients * kGradientNormBlocks * sizeof(double);
}

}  // namespace ingot
