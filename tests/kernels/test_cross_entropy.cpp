// Seen to catch: the sum run up to VP; z-loss's factor 1 instead of 2; ignored rows left as logits.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <limits>

#include "kernels/cross_entropy.h"
#include "tests/support/finite_difference.h"
#include "tests/support/tensors.h"

namespace ingot::test {
namespace {

const Device cpu = Device::cpu();
const double kNaN = std::numeric_limits<double>::quiet_NaN();

// (n, V) values in rows of VP, the padding NaN.
std::vector<double> padded(const std::vector<double>& values, int64_t V, int64_t VP, double padding = kNaN) {
    const size_t n = values.size() / static_cast<size_t>(V);
    std::vector<double> result(n * static_cast<size_t>(VP), padding);
    for (size_t i = 0; i < n; ++i)
        for (int64_t v = 0; v < V; ++v)
            result[i * static_cast<size_t>(VP) + static_cast<size_t>(v)] =
                values[i * static_cast<size_t>(V) + static_cast<size_t>(v)];
    return result;
}

struct Expected {
    std::vector<double> losses, gradient;
    double sum = 0;
};

// The definition, in long double; gradient rows of VP with 0 as padding.
Expected reference(const std::vector<double>& logits, const std::vector<double>& targets, int64_t V, int64_t VP,
                   double z, double S) {
    Expected expected;
    for (size_t i = 0; i < targets.size(); ++i) {
        const double* const row = &logits[i * static_cast<size_t>(V)];
        const bool is_ignored = targets[i] < 0;
        long double maximum = row[0], total = 0;
        for (int64_t v = 0; v < V; ++v) maximum = std::max<long double>(maximum, row[v]);
        for (int64_t v = 0; v < V; ++v) total += std::exp(row[v] - maximum);
        const long double lse = maximum + std::log(total);
        expected.losses.push_back(is_ignored ? 0 : static_cast<double>(lse - row[static_cast<int64_t>(targets[i])]));
        expected.sum += expected.losses.back();
        for (int64_t v = 0; v < VP; ++v) {
            if (is_ignored || v >= V) {
                expected.gradient.push_back(0);
                continue;
            }
            const long double softmax = std::exp(row[v] - lse);
            expected.gradient.push_back(static_cast<double>(
                S * (softmax * (1 + 2 * z * lse) - (v == static_cast<int64_t>(targets[i]) ? 1 : 0))));
        }
    }
    return expected;
}

TEST(CrossEntropy, AgreesWithTheDefinition) {
    for (const auto& [V, VP] : {std::pair<int64_t, int64_t>{2, 2}, {11, 16}, {61, 128}, {1, 4}})
        for (const auto& [z, S] : {std::pair{0.0, 1.0}, {0.02, 1.0}, {0.02, 8.0}})
            for (const auto& [dtype, bound] : {std::pair{DType::f64, 1e-14}, {DType::f32, 1e-6}}) {
                const std::vector<double> targets = {0, -1, static_cast<double>(V - 1), static_cast<double>(V / 2), -1};
                const int64_t n = 5;
                const std::vector<double> x = rounded(normals(n * V, 1, 2), DType::f32);
                const Expected expected = reference(x, targets, V, VP, z, S);
                const Buffer logits(cpu, dtype, {n, VP}, padded(x, V, VP)), losses(cpu, dtype, {n});
                const Buffer target(cpu, DType::i32, {n}, targets);
                const double loss_scale = S;
                CrossEntropy a = {.logits = logits,
                                  .losses = losses,
                                  .targets = target,
                                  .vocab_size = V,
                                  .z_loss = z,
                                  .loss_scale = S == 1 ? nullptr : &loss_scale,
                                  .write_gradient = false};
                cross_entropy(cpu, a);
                // V = 1 has the loss 0 and, without z-loss, the gradient 0.
                if (V > 1)
                    EXPECT_TRUE(close(losses.values(), expected.losses, bound));
                else
                    EXPECT_LE(max_abs_error(losses.values(), expected.losses), bound);
                for (int64_t i = 0; i < n; ++i) {
                    const std::vector<double> all = logits.values();
                    for (int64_t v = 0; v < V; ++v)
                        ASSERT_EQ(all[static_cast<size_t>(i * VP + v)], x[static_cast<size_t>(i * V + v)]);
                }
                const std::vector<double> without = losses.values();
                a.write_gradient = true;
                cross_entropy(cpu, a);
                EXPECT_TRUE(same(losses.values(), without)) << "losses depend on write_gradient";
                EXPECT_LE(max_abs_error(logits.values(), expected.gradient), bound * S);
            }
}

TEST(CrossEntropy, GradientAgreesWithFiniteDifferences) {
    const int64_t n = 4, V = 9;
    const double z = 0.05;
    const std::vector<double> x = normals(n * V, 2), targets = {3, -1, 0, 8};
    const Buffer point(cpu, DType::f64, {n, V}, x), gradient(cpu, DType::f64, {n, V}, x), losses(cpu, DType::f64, {n});
    const Buffer target(cpu, DType::i32, {n}, targets);
    cross_entropy(cpu, {.logits = gradient, .losses = losses, .targets = target, .vocab_size = V, .z_loss = z});
    // The z-loss is differentiated but not reported: it is added here, from lse = loss + target logit.
    const auto loss = [&] {
        cross_entropy(cpu, {.logits = point,
                            .losses = losses,
                            .targets = target,
                            .vocab_size = V,
                            .z_loss = z,
                            .write_gradient = false});
        double sum = 0;
        for (int64_t i = 0; i < n; ++i) {
            const double token = losses.tensor().get<double>()[i];
            sum += token;
            if (targets[static_cast<size_t>(i)] < 0) continue;
            const double lse =
                token + point.tensor().get<double>()[i * V + static_cast<int64_t>(targets[static_cast<size_t>(i)])];
            sum += z * lse * lse;
        }
        return sum;
    };
    check_gradients(loss, {{"logits", point, gradient.values()}});
}

TEST(CrossEntropy, HugeLogitsStayFinite) {
    const int64_t V = 5, VP = 8;
    const std::vector<double> x = {1e4, -1e4, 0, 1e4, 3, -1e4, -1e4, -1e4, -1e4, -1e4}, targets = {1, 2};
    const Expected expected = reference(x, targets, V, VP, 1e-4, 1);
    for (const DType dtype : {DType::f32, DType::f64}) {
        const Buffer logits(cpu, dtype, {2, VP}, padded(x, V, VP)), losses(cpu, dtype, {2});
        const Buffer target(cpu, DType::i32, {2}, targets);
        cross_entropy(cpu, {.logits = logits, .losses = losses, .targets = target, .vocab_size = V, .z_loss = 1e-4});
        // lse near 1e4 keeps 2^-24 * 1e4 of the losses in fp32.
        EXPECT_LE(max_abs_error(losses.values(), expected.losses), dtype == DType::f32 ? 2e-3 : 1e-11);
        EXPECT_TRUE(close(logits.values(), expected.gradient, 1e-5));
    }
}

TEST(CrossEntropy, ANaNLogitIsSeen) {
    for (const int64_t where : {0, 2, 4}) {
        std::vector<double> x(5, 0.5);
        x[static_cast<size_t>(where)] = kNaN;
        const Buffer logits(cpu, DType::f32, {1, 5}, x), losses(cpu, DType::f32, {1}),
            target(cpu, DType::i32, {1}, {1});
        cross_entropy(cpu, {.logits = logits, .losses = losses, .targets = target, .vocab_size = 5});
        EXPECT_TRUE(std::isnan(losses.values()[0])) << "NaN at " << where;
    }
}

TEST(CrossEntropy, BitsDoNotDependOnThreads) {
    const int64_t n = 67, V = 50, VP = 64;
    const int threads = omp_get_max_threads();
    std::vector<double> gradients[2];
    double sums[2];
    for (const int count : {1, 2}) {
        omp_set_num_threads(count);
        std::vector<double> targets(static_cast<size_t>(n), 7);
        targets[5] = targets[66] = -1;
        const Buffer logits(cpu, DType::f32, {n, VP}, padded(normals(n * V, 3), V, VP)), losses(cpu, DType::f32, {n});
        const Buffer target(cpu, DType::i32, {n}, targets);
        cross_entropy(cpu, {.logits = logits, .losses = losses, .targets = target, .vocab_size = V});
        StepBlock step;
        loss_sum(cpu, {.step = &step, .losses = losses, .targets = target});
        gradients[count - 1] = logits.values();
        sums[count - 1] = step.sums.loss;
    }
    omp_set_num_threads(threads);
    EXPECT_TRUE(same(gradients[0], gradients[1]));
    EXPECT_EQ(sums[0], sums[1]);
}

TEST(LossSum, AddsLossesAndCountsTargets) {
    for (const int64_t N : {1, 63, 64, 65, 500})
        for (const DType dtype : {DType::f32, DType::f64}) {
            std::vector<double> values = rounded(normals(N, 4), dtype), targets(static_cast<size_t>(N));
            double sum = 10;
            int64_t count = 3;
            for (size_t i = 0; i < values.size(); ++i) {
                targets[i] = i % 3 == 1 ? -1 : static_cast<double>(i % 5);
                if (targets[i] < 0) values[i] = 0;
                sum += values[i];
                count += targets[i] >= 0;
            }
            StepBlock step;
            step.sums.loss = 10;
            step.sums.targets = 3;
            const Buffer losses(cpu, dtype, {N}, values), target(cpu, DType::i32, {N}, targets);
            loss_sum(cpu, {.step = &step, .losses = losses, .targets = target});
            EXPECT_NEAR(step.sums.loss, sum, 1e-11);
            EXPECT_EQ(step.sums.targets, count);
        }
}

TEST(CrossEntropy, Refuses) {
    const Buffer logits(cpu, DType::f32, {2, 8}, std::vector<double>(16)), losses(cpu, DType::f32, {2});
    const Buffer good(cpu, DType::i32, {2}, {0, 1}), late(cpu, DType::i32, {2}, {0, 5}),
        below(cpu, DType::i32, {2}, {0, -2});
    const Buffer wide(cpu, DType::f64, {2}), three(cpu, DType::f32, {3});
    const auto run = [&](const Tensor& l, const Tensor& out, const Tensor& t, int64_t V) {
        cross_entropy(cpu, {.logits = l, .losses = out, .targets = t, .vocab_size = V});
    };
    EXPECT_THROW(run(logits, losses, late, 5), Error);
    EXPECT_THROW(run(logits, losses, below, 5), Error);
    EXPECT_THROW(run(logits, losses, good, 9), Error);
    EXPECT_THROW(run(logits, losses, good, 0), Error);
    EXPECT_THROW(run(logits, wide, good, 5), Error);
    EXPECT_THROW(run(logits, three, good, 5), Error);
    EXPECT_THROW(run(logits.tensor().slice(1, 0, 6), losses, good, 5), Error);
    EXPECT_THROW(run(losses, losses, good, 2), Error);
    StepBlock step;
    EXPECT_THROW(loss_sum(cpu, {.step = &step, .losses = three, .targets = good}), Error);
    EXPECT_THROW(loss_sum(cpu, {.step = &step, .losses = logits, .targets = good}), Error);
}

}  // namespace
}  // namespace ingot::test
