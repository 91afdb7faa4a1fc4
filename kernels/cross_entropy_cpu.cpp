#include <cmath>

#include "kernels/core/math.h"
#include "kernels/core/parallel.h"
#include "kernels/cross_entropy.h"

namespace ingot {

namespace {

template <typename T>
void cross_entropy_cpu(const CrossEntropy& a) {
    const int64_t n = a.logits.shape[0], VP = a.logits.shape[1], V = a.vocab_size;
    T *const logits = a.logits.get<T>(), *const losses = a.losses.get<T>();
    const int32_t* const targets = a.targets.get<int32_t>();
    const T z_loss = static_cast<T>(a.z_loss);
    const T S = a.loss_scale != nullptr ? static_cast<T>(*a.loss_scale) : T(1);
    for (int64_t i = 0; i < n; ++i)
        CHECK(targets[i] >= -1 && targets[i] < V, "cross_entropy: target ", targets[i], " of token ", i,
              " is outside the vocabulary of ", V);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; ++i) {
        T* const row = logits + i * VP;
        if (targets[i] < 0) {
            losses[i] = 0;
            if (a.write_gradient)
                for (int64_t v = 0; v < VP; ++v) row[v] = 0;
            continue;
        }
        T maximum = row[0];
#pragma omp simd reduction(max : maximum)
        for (int64_t v = 0; v < V; ++v) maximum = row[v] > maximum ? row[v] : maximum;
        const T target_logit = row[targets[i]];
        T sum = 0;
        if (a.write_gradient) {
#pragma omp simd reduction(+ : sum)
            for (int64_t v = 0; v < V; ++v) sum += row[v] = fast_exp(row[v] - maximum);
        } else {
#pragma omp simd reduction(+ : sum)
            for (int64_t v = 0; v < V; ++v) sum += fast_exp(row[v] - maximum);
        }
        const T lse = maximum + std::log(sum);
        losses[i] = lse - target_logit;
        if (!a.write_gradient) continue;
        const T factor = S * (1 + 2 * z_loss * lse) / sum;
#pragma omp simd
        for (int64_t v = 0; v < V; ++v) row[v] *= factor;
        row[targets[i]] -= S;
        for (int64_t v = V; v < VP; ++v) row[v] = 0;
    }
}

template <typename T>
void loss_sum_cpu(const LossSum& a) {
    constexpr int64_t kBlocks = 64;
    const int64_t N = a.losses.shape[0];
    const T* const losses = a.losses.get<T>();
    const int32_t* const targets = a.targets.get<int32_t>();
    for (int64_t block = 0; block < kBlocks; ++block) {
        const auto [begin, end] = block_range(N, kBlocks, block);
        double sum = 0;
        int64_t count = 0;
        for (int64_t i = begin; i < end; ++i) {
            sum += static_cast<double>(losses[i]);
            count += targets[i] >= 0;
        }
        a.step->sums.loss += sum;
        a.step->sums.targets += count;
    }
}

}  // namespace

void cross_entropy(const Device& device, const CrossEntropy& a) {
    CHECK(a.logits.rank == 2, "cross_entropy: logits are ", a.logits.describe(), ", they must be (n, VP)");
    const int64_t n = a.logits.shape[0];
    check_tensor("cross_entropy", "logits", a.logits, {n, a.logits.shape[1]}, a.logits.dtype, device.kind());
    check_tensor("cross_entropy", "losses", a.losses, {n}, accumulation_dtype(a.logits.dtype), device.kind());
    check_tensor("cross_entropy", "targets", a.targets, {n}, DType::i32, device.kind());
    CHECK(a.vocab_size >= 1 && a.vocab_size <= a.logits.shape[1], "cross_entropy: a vocabulary of ", a.vocab_size,
          " in logits ", a.logits.describe());
    if (!device.is_cpu()) return cross_entropy_cuda(device, a);
    for_cpu_scalar(a.logits.dtype, "cross_entropy", [&](auto scalar) { cross_entropy_cpu<decltype(scalar)>(a); });
}

void loss_sum(const Device& device, const LossSum& a) {
    CHECK(a.losses.rank == 1, "loss_sum: losses are ", a.losses.describe(), ", they must be (N)");
    check_tensor("loss_sum", "losses", a.losses, {a.losses.shape[0]}, a.losses.dtype, device.kind());
    check_tensor("loss_sum", "targets", a.targets, {a.losses.shape[0]}, DType::i32, device.kind());
    if (!device.is_cpu()) return loss_sum_cuda(device, a);
    for_cpu_scalar(a.losses.dtype, "loss_sum", [&](auto scalar) { loss_sum_cpu<decltype(scalar)>(a); });
}

}  // namespace ingot
