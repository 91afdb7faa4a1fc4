// Seen to catch: decay applied to the updated weight; eps inside the root; bias corrections swapped; apply ignored;
// the flag of the block before.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <limits>

#include "kernels/step.h"
#include "tests/kernels/adamw_case.h"

namespace ingot::test {
namespace {

const Device cpu = Device::cpu();

// The algorithm as published, in long double.
void reference(State& state, const std::vector<double>& gradient, const StepBlock& step, bool decays) {
    const StepSettings& s = step.settings;
    for (size_t i = 0; i < gradient.size(); ++i) {
        const long double g = static_cast<long double>(gradient[i]) * step.decision.gradient_factor;
        const long double m =
            s.beta1 * static_cast<long double>(state.m[i]) + (1 - static_cast<long double>(s.beta1)) * g;
        const long double v =
            s.beta2 * static_cast<long double>(state.v[i]) + (1 - static_cast<long double>(s.beta2)) * g * g;
        const long double m_hat = m / step.decision.bias_correction1, v_hat = v / step.decision.bias_correction2;
        const long double w = state.weights[i];
        state.weights[i] =
            static_cast<double>(w - s.lr * (m_hat / (std::sqrt(v_hat) + s.eps) + (decays ? s.weight_decay : 0) * w));
        state.m[i] = static_cast<double>(m);
        state.v[i] = static_cast<double>(v);
    }
}

// fp32: m and v round three and four times, the weight twice more, its update a tenth of it at most.
TEST(AdamW, AgreesWithAPlainLoop) {
    for (const int64_t n : {1, 7, 1000})
        for (const bool decays : {true, false})
            for (const auto& [dtype, bound] : {std::pair{DType::f64, 1e-15}, {DType::f32, 4 * 0x1p-24}}) {
                State expected = initial(n);
                const std::vector<double> gradient = rounded(normals(n, 4, 5), DType::f32);
                const Buffer weights(cpu, dtype, {n}, expected.weights), m(cpu, dtype, {n}, expected.m);
                const Buffer v(cpu, dtype, {n}, expected.v), g(cpu, dtype, {n}, gradient),
                    compute(cpu, DType::bf16, {n}), blocks = decay_everywhere(cpu, n, decays);
                for (int64_t update = 1; update <= 3; ++update) {
                    const StepBlock step = step_block(0.25, update);
                    reference(expected, gradient, step, decays);
                    adamw(cpu, {.weights = weights,
                                .m = m,
                                .v = v,
                                .gradient = g,
                                .compute = compute,
                                .step = &step,
                                .decay_blocks = blocks});
                }
                EXPECT_TRUE(close(weights.values(), expected.weights, bound));
                EXPECT_TRUE(close(m.values(), expected.m, 3 * bound));
                EXPECT_TRUE(close(v.values(), expected.v, 3 * bound));
                EXPECT_TRUE(same(compute.values(), rounded(weights.values(), DType::bf16)));
                EXPECT_TRUE(same(g.values(), gradient));
            }
}

TEST(AdamW, ComputeCopyRoundsToNearestEven) {
    // lr = 0 keeps the weights: ties to even, up, down, overflow to infinity, a subnormal of fp16.
    const std::vector<double> values = {1 + 0x1p-8, 1 + 3 * 0x1p-8, 1 + 0x1p-8 + 0x1p-20, -1 - 0x1p-9, 1e5, 0x1p-24};
    StepBlock step = step_block(1, 1);
    step.settings.lr = 0;
    for (const DType dtype : {DType::bf16, DType::f16}) {
        const Buffer weights(cpu, DType::f32, {6}, values), m(cpu, DType::f32, {6}, std::vector<double>(6));
        const Buffer v(cpu, DType::f32, {6}, std::vector<double>(6)), g(cpu, DType::f32, {6}, std::vector<double>(6));
        const Buffer compute(cpu, dtype, {6});
        adamw(cpu, {.weights = weights, .m = m, .v = v, .gradient = g, .compute = compute, .step = &step});
        const std::vector<double> expected =
            dtype == DType::bf16
                ? std::vector<double>{1, 1 + 0x1p-6, 1 + 0x1p-7, -1, 99840, 0x1p-24}
                : std::vector<double>{
                      1 + 0x1p-8, 1 + 3 * 0x1p-8, 1 + 0x1p-8, -1 - 0x1p-9, std::numeric_limits<double>::infinity(),
                      0x1p-24};
        EXPECT_TRUE(same(compute.values(), expected)) << name_of(dtype);
    }
}

// A space of several tensors in one call gives what a call for each gives.
TEST(AdamW, BlocksSayWhatDecays) {
    for (const int64_t n : {64, 200, 1000})
        for (const DType dtype : {DType::f32, DType::f64}) {
            const int64_t num_blocks = (n + kDecayBlock - 1) / kDecayBlock;
            std::vector<double> blocks;
            for (int64_t block = 0; block < num_blocks; ++block) blocks.push_back(block % 3 == 1 ? 0 : 1);
            const State start = initial(n);
            const std::vector<double> gradient = rounded(normals(n, 4, 5), DType::f32);
            const Buffer g(cpu, dtype, {n}, gradient), decay_blocks(cpu, DType::u8, {num_blocks}, blocks);
            const Buffer none = decay_everywhere(cpu, kDecayBlock, false);
            const StepBlock step = step_block(0.25, 2);
            const auto run = [&](bool in_one_call) {
                const Buffer weights(cpu, dtype, {n}, start.weights), m(cpu, dtype, {n}, start.m);
                const Buffer v(cpu, dtype, {n}, start.v);
                if (in_one_call)
                    adamw(cpu, {.weights = weights,
                                .m = m,
                                .v = v,
                                .gradient = g,
                                .step = &step,
                                .decay_blocks = decay_blocks});
                for (int64_t begin = 0; begin < n && !in_one_call; begin += kDecayBlock) {
                    const int64_t end = std::min(n, begin + kDecayBlock);
                    adamw(cpu,
                          {.weights = weights.tensor().slice(0, begin, end),
                           .m = m.tensor().slice(0, begin, end),
                           .v = v.tensor().slice(0, begin, end),
                           .gradient = g.tensor().slice(0, begin, end),
                           .step = &step,
                           .decay_blocks = blocks[static_cast<size_t>(begin / kDecayBlock)] != 0 ? Tensor{} : none});
                }
                return State{weights.values(), m.values(), v.values()};
            };
            const State whole = run(true), parts = run(false);
            EXPECT_TRUE(same(whole.weights, parts.weights)) << n;
            EXPECT_TRUE(same(whole.m, parts.m)) << n;
            EXPECT_TRUE(same(whole.v, parts.v)) << n;
        }
}

TEST(AdamW, ASkippedStepChangesNothing) {
    const int64_t n = 9;
    const State state = initial(n);
    const std::vector<double> old = normals(n, 5);
    StepBlock step = step_block(std::numeric_limits<double>::quiet_NaN(), 1);
    step.decision.apply = 0;
    const Buffer weights(cpu, DType::f32, {n}, state.weights), m(cpu, DType::f32, {n}, state.m);
    const Buffer v(cpu, DType::f32, {n}, state.v), compute(cpu, DType::bf16, {n}, old);
    const Buffer g(cpu, DType::f32, {n}, std::vector<double>(n, std::numeric_limits<double>::infinity()));
    adamw(cpu, {.weights = weights, .m = m, .v = v, .gradient = g, .compute = compute, .step = &step});
    EXPECT_TRUE(same(weights.values(), state.weights));
    EXPECT_TRUE(same(m.values(), state.m));
    EXPECT_TRUE(same(v.values(), state.v));
    EXPECT_TRUE(same(compute.values(), rounded(old, DType::bf16)));
}

TEST(GradientNorm, AddsSquaresInDouble) {
    const int threads = omp_get_max_threads();
    for (const int64_t n : {1, 255, 256, 1000})
        for (const DType dtype : {DType::f32, DType::f64}) {
            const std::vector<double> values = rounded(normals(n, 6, 1e20), dtype);
            long double expected = 1e40L;
            for (const double value : values) expected += static_cast<long double>(value) * value;
            double sums[2];
            for (const int count : {1, 2}) {
                omp_set_num_threads(count);
                StepBlock step;
                step.sums.squared_norm = 1e40;
                const Buffer gradient(cpu, dtype, {n}, values);
                gradient_norm(cpu, {.step = &step, .gradient = gradient});
                sums[count - 1] = step.sums.squared_norm;
            }
            EXPECT_NEAR(sums[0] / static_cast<double>(expected), 1, 1e-14);
            EXPECT_EQ(sums[0], sums[1]);
        }
    omp_set_num_threads(threads);
    StepBlock step;
    const Buffer broken(cpu, DType::f32, {3}, {1, std::numeric_limits<double>::quiet_NaN(), 2});
    gradient_norm(cpu, {.step = &step, .gradient = broken});
    EXPECT_TRUE(std::isnan(step.sums.squared_norm));
}

// begin, norm, decide and update together: clipping makes the step's gradient exactly grad_clip long.
TEST(AdamW, AStepFromEndToEnd) {
    const int64_t n = 50;
    const std::vector<double> gradient = normals(n, 7, 3);
    StepSettings settings;
    settings.lr = 1;
    settings.beta1 = settings.beta2 = 0;
    settings.eps = 1;
    settings.weight_decay = 0;
    settings.grad_clip = 0.5;
    StepBlock step;
    step.sums.loss = 99;
    step_begin(cpu, &step, settings);
    EXPECT_EQ(step.sums.loss, 0);
    step.sums.loss = 12;
    step.sums.targets = 4;
    const std::vector<double> zeros(static_cast<size_t>(n));
    const Buffer weights(cpu, DType::f64, {n}, zeros), m(cpu, DType::f64, {n}, zeros), v(cpu, DType::f64, {n}, zeros);
    const Buffer g(cpu, DType::f64, {n}, gradient);
    gradient_norm(cpu, {.step = &step, .gradient = g});
    step_decide(cpu, &step);
    EXPECT_EQ(step.decision.apply, 1);
    EXPECT_DOUBLE_EQ(step.decision.loss, 3);
    EXPECT_NEAR(step.decision.grad_norm, std::sqrt(step.sums.squared_norm) / 4, 1e-14);
    adamw(cpu, {.weights = weights, .m = m, .v = v, .gradient = g, .compute = {}, .step = &step});
    double square = 0;
    for (const double value : m.values()) square += value * value;  // beta1 = 0: m is the clipped gradient
    EXPECT_NEAR(std::sqrt(square), 0.5, 1e-14);
}

TEST(AdamW, Refuses) {
    const Buffer a(cpu, DType::f32, {4}), b(cpu, DType::f32, {5}), wide(cpu, DType::f64, {4}),
        half(cpu, DType::bf16, {4});
    const Buffer integers(cpu, DType::i32, {4}), matrix(cpu, DType::f32, {2, 2});
    const StepBlock step = step_block(1, 1);
    const auto run = [&](const Tensor& w, const Tensor& m, const Tensor& g, const Tensor& compute) {
        adamw(cpu, {.weights = w, .m = m, .v = a, .gradient = g, .compute = compute, .step = &step});
    };
    EXPECT_THROW(run(b, a, a, {}), Error);
    EXPECT_THROW(run(a, wide, a, {}), Error);
    EXPECT_THROW(run(a, a, half, {}), Error);
    EXPECT_THROW(run(half, a, a, {}), Error);
    EXPECT_THROW(run(a, a, a, integers), Error);
    EXPECT_THROW(run(a, a, a, b), Error);
    EXPECT_THROW(run(matrix, a, a, {}), Error);
    const Buffer two(cpu, DType::u8, {2}, {1, 1});
    EXPECT_THROW(adamw(cpu, {.weights = a, .m = a, .v = a, .gradient = a, .step = &step, .decay_blocks = two}), Error);
    EXPECT_THROW(adamw(cpu, {.weights = a, .m = a, .v = a, .gradient = a, .step = &step, .decay_blocks = a}), Error);
    StepBlock block;
    EXPECT_THROW(gradient_norm(cpu, {.step = &block, .gradient = half}), Error);
    EXPECT_THROW(gradient_norm(cpu, {.step = &block, .gradient = matrix}), Error);
    EXPECT_THROW(gradient_norm(cpu, {.step = &block, .gradient = {}}), Error);
}

}  // namespace
}  // namespace ingot::test
