// The step's state on the device against the CPU twin, bit for bit.
// Seen to catch: a state that is not written back.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/step.h"
#include "tests/support/step_on.h"

namespace ingot::test {

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Equal bits, or both NaN: which NaN an operation gives is not specified by IEEE 754, and x86 and CUDA differ.
bool same_number(double a, double b) {
    return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof a) == 0;
}

void expect_same(const StepBlock& actual, const StepBlock& expected) {
    EXPECT_EQ(actual.state.updates_applied, expected.state.updates_applied);
    EXPECT_TRUE(same_number(actual.state.loss_scale, expected.state.loss_scale));
    EXPECT_EQ(actual.state.good_steps, expected.state.good_steps);
    EXPECT_EQ(actual.state.consecutive_skips, expected.state.consecutive_skips);
    EXPECT_EQ(actual.decision.apply, expected.decision.apply);
    EXPECT_EQ(actual.decision.nonfinite, expected.decision.nonfinite);
    EXPECT_TRUE(same_number(actual.decision.gradient_factor, expected.decision.gradient_factor));
    EXPECT_TRUE(same_number(actual.decision.bias_correction1, expected.decision.bias_correction1));
    EXPECT_TRUE(same_number(actual.decision.bias_correction2, expected.decision.bias_correction2));
    EXPECT_TRUE(same_number(actual.decision.loss, expected.decision.loss));
    EXPECT_TRUE(same_number(actual.decision.grad_norm, expected.decision.grad_norm));
    EXPECT_EQ(std::memcmp(&actual.settings, &expected.settings, sizeof actual.settings), 0);
}

// Opens a step and decides it. What a step does not carry over is NaN before.
StepBlock next_step(const Device& device, const StepOn& on, const StepSettings& settings, const StepSums& sums) {
    StepBlock block = on.read();
    block.sums = {kNan, -1, kNan};
    block.decision = {};
    block.decision.gradient_factor = block.decision.loss = block.decision.grad_norm = kNan;
    on.write(block);
    step_begin(device, on.get(), settings);
    block = on.read();
    EXPECT_EQ(block.sums.loss, 0);
    EXPECT_EQ(block.sums.targets, 0);
    EXPECT_EQ(block.sums.squared_norm, 0);
    block.sums = sums;
    on.write(block);
    step_decide(device, on.get());
    return on.read();
}

void run_both(const Device& cuda, const StepSettings& settings, const std::vector<StepSums>& steps) {
    const Device cpu = Device::cpu();
    const StepOn on_cpu(cpu, {}), on_cuda(cuda, {});
    StepSettings each = settings;
    for (size_t i = 0; i < steps.size(); ++i) {
        SCOPED_TRACE(testing::Message() << "step " << i);
        each.lr = 1e-3 / static_cast<double>(i + 1);
        const StepBlock expected = next_step(cpu, on_cpu, each, steps[i]);
        expect_same(next_step(cuda, on_cuda, each, steps[i]), expected);
        if (testing::Test::HasFailure()) return;
    }
}

}  // namespace

TEST(StepCuda, FollowsTheTwinSmall) {
    INGOT_CUDA_OR_SKIP(device);
    const StepSums good{31.7, 13, 7.3};
    run_both(device, {},
             {good, StepSums{}, StepSums{kNan, 13, 1}, StepSums{1, 13, kInfinity}, StepSums{1, 13, kNan}, good});
}

TEST(StepCuda, FollowsTheTwinOverManySteps) {
    INGOT_CUDA_OR_SKIP(device);
    const std::vector<double> noise = normals(600, 3);
    std::vector<StepSums> steps;
    for (size_t i = 0; i < 200; ++i)
        steps.push_back({1e4 * std::exp(noise[3 * i]), static_cast<int64_t>(1000 + 300 * std::abs(noise[3 * i + 1])),
                         1e6 * std::exp(3 * noise[3 * i + 2])});
    run_both(device, {}, steps);
    run_both(device, {.beta1 = 0.8, .beta2 = 0.999, .grad_clip = 0}, steps);
}

TEST(StepCuda, ZeroTargetsChangeNothing) {
    INGOT_CUDA_OR_SKIP(device);
    run_both(device, {}, std::vector<StepSums>(3));
    // NaN sums without targets still count as non-finite.
    run_both(device, {}, {StepSums{kNan, 0, 0}, StepSums{0, 0, kInfinity}});
}

TEST(StepCuda, LossScaleFallsToItsFloorAndGrowsAgain) {
    INGOT_CUDA_OR_SKIP(device);
    std::vector<StepSums> steps(17, StepSums{1, 10, kInfinity});
    steps.insert(steps.end(), static_cast<size_t>(2 * kLossScaleGrowthInterval + 1), StepSums{12.5, 10, 3.25});
    run_both(device, {.dynamic_loss_scale = 1}, steps);
}

}  // namespace ingot::test
