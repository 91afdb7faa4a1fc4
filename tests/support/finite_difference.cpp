#include "tests/support/finite_difference.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/tensors.h"

namespace ingot::test {

namespace {

// Central difference at `step` along whatever `move` moves.
double central(const std::function<double()>& loss, const std::function<void(double)>& move, double step) {
    move(step);
    const double after = loss();
    move(-step);
    return (after - loss()) / (2 * step);
}

double norm(const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) sum += value * value;
    return std::sqrt(sum);
}

double joint_norm(const std::vector<Differentiated>& inputs) {
    double sum = 0;
    for (const Differentiated& input : inputs) sum += norm(input.gradient) * norm(input.gradient);
    return std::sqrt(sum);
}

}  // namespace

std::vector<double> numeric_gradient(const std::function<double()>& loss, const Tensor& values) {
    CHECK(values.is_contiguous(), "finite differences of ", values.describe());
    // Truncation grows as step^4 and rounding as 1 / step: for functions of order one they meet near 1e-3.
    constexpr double kStep = 1e-3;
    double* const data = values.get<double>();
    std::vector<double> gradient(static_cast<size_t>(values.numel()));
    for (size_t i = 0; i < gradient.size(); ++i) {
        const double kept = data[i];
        const auto move = [&](double step) { data[i] = kept + step; };
        const double coarse = central(loss, move, kStep), fine = central(loss, move, kStep / 2);
        data[i] = kept;
        gradient[i] = (4 * fine - coarse) / 3;
    }
    return gradient;
}

void check_directions(const std::function<double()>& loss, const std::vector<Differentiated>& inputs, uint64_t seed) {
    // Two Richardson steps (order h^6) allow a longer step, and so less rounding.
    constexpr double kStep = 1e-2;
    for (uint64_t direction = 0; direction < 3; ++direction) {
        std::vector<std::vector<double>> directions, kept;
        double square = 0, expected = 0;
        for (size_t k = 0; k < inputs.size(); ++k) {
            const Tensor& values = inputs[k].values;
            const double* const data = values.get<double>();
            directions.push_back(normals(values.numel(), seed * 1000 + direction * 100 + k));
            kept.emplace_back(data, data + values.numel());
            for (const double d : directions.back()) square += d * d;
        }
        const double length = std::sqrt(square);
        for (size_t k = 0; k < inputs.size(); ++k)
            for (size_t i = 0; i < directions[k].size(); ++i) {
                directions[k][i] /= length;
                expected += directions[k][i] * inputs[k].gradient[i];
            }
        const auto move = [&](double step) {
            for (size_t k = 0; k < inputs.size(); ++k)
                for (size_t i = 0; i < directions[k].size(); ++i)
                    inputs[k].values.get<double>()[i] = kept[k][i] + step * directions[k][i];
        };
        const double d1 = central(loss, move, kStep), d2 = central(loss, move, kStep / 2);
        const double d4 = central(loss, move, kStep / 4);
        move(0);
        const double first = (4 * d2 - d1) / 3, second = (4 * d4 - d2) / 3;
        const double actual = (16 * second - first) / 15;
        const double error = std::abs(actual - expected);
        EXPECT_TRUE(error <= 1e-8 * std::abs(expected))
            << "along direction " << direction << ": " << actual << " by differences, " << expected
            << " by backward, relative error " << error / std::abs(expected);
    }
}

void check_gradients(const std::function<double()>& loss, const std::vector<Differentiated>& inputs, uint64_t seed) {
    const double all = joint_norm(inputs);
    EXPECT_GT(all, 0) << "nothing to check";
    for (const Differentiated& input : inputs) {
        ASSERT_EQ(static_cast<int64_t>(input.gradient.size()), input.values.numel()) << input.name;
        const std::vector<double> numeric = numeric_gradient(loss, input.values);
        if (norm(numeric) <= 1e-9 * all)
            EXPECT_TRUE(norm(input.gradient) <= 1e-9 * all) << input.name << ": the gradient should be 0";
        else
            EXPECT_TRUE(close(input.gradient, numeric, 1e-6)) << "gradient of " << input.name;
    }
    check_directions(loss, inputs, seed);
}

}  // namespace ingot::test
