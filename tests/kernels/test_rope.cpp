// Seen to catch: backward turned forwards; d paired with HS - 1 - d; theta^(-d / HS).
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/rope.h"
#include "tests/support/finite_difference.h"
#include "tests/support/tensors.h"

namespace ingot::test {
namespace {

const Device cpu = Device::cpu();

const std::vector<double> kPositions = {0, 1, 2, 0, 6, 3};
constexpr int64_t N = 6, T = 7;

// q and k of a fused (N, (2 NH) HS) buffer; here heads [1, 3) of 4 are turned.
Tensor heads_of(const Tensor& fused, int64_t HS) {
    return fused.split_last(4, HS).slice(1, 1, 3);
}

TEST(Rope, GradientAgreesWithFiniteDifferences) {
    for (const int64_t HS : {2, 8, 18}) {
        const std::vector<double> w = normals(N * 4 * HS, 1), start = normals(N * 4 * HS, 2);
        const Buffer positions(cpu, DType::i32, {N}, kPositions), table(cpu, DType::f64, {T, HS});
        fill_rope_table(table, 100);
        const Buffer x(cpu, DType::f64, {N, 4 * HS}, start), turned(cpu, DType::f64, {N, 4 * HS});
        const Buffer dx(cpu, DType::f64, {N, 4 * HS}, w);
        rope_backward(cpu, {.x = heads_of(dx, HS), .positions = positions, .table = table});
        const auto loss = [&] {
            cpu.copy(turned, x);
            rope_forward(cpu, {.x = heads_of(turned, HS), .positions = positions, .table = table});
            double sum = 0;
            for (size_t i = 0; i < w.size(); ++i) sum += w[i] * turned.tensor().get<double>()[i];
            return sum;
        };
        check_gradients(loss, {{"x", x, dx.values()}});
        // Backward undoes forward, and the heads outside the view are as they were.
        const Buffer back(cpu, DType::f64, {N, 4 * HS}, start);
        rope_forward(cpu, {.x = heads_of(back, HS), .positions = positions, .table = table});
        rope_backward(cpu, {.x = heads_of(back, HS), .positions = positions, .table = table});
        EXPECT_TRUE(close(back.values(), start, 1e-15));
    }
}

TEST(Rope, ForwardIsTheFormula) {
    const int64_t HS = 10;
    const double theta = 10000;
    const std::vector<double> start = normals(N * 4 * HS, 3);
    std::vector<double> expected = start;
    for (int64_t n = 0; n < N; ++n)
        for (int64_t h = 1; h < 3; ++h)
            for (int64_t d = 0; d < HS / 2; ++d) {
                const double angle = kPositions[static_cast<size_t>(n)] *
                                     std::pow(theta, -2.0 * static_cast<double>(d) / static_cast<double>(HS));
                const size_t low = static_cast<size_t>((n * 4 + h) * HS + d), high = low + HS / 2;
                expected[low] = start[low] * std::cos(angle) - start[high] * std::sin(angle);
                expected[high] = start[low] * std::sin(angle) + start[high] * std::cos(angle);
            }
    // fp32: the table's entries and the two products and the sum round once each.
    for (const auto& [dtype, bound] : {std::pair{DType::f64, 1e-15}, {DType::f32, 4 * 0x1p-24}}) {
        const Buffer positions(cpu, DType::i32, {N}, kPositions), table(cpu, dtype, {T, HS});
        fill_rope_table(table, theta);
        const Buffer x(cpu, dtype, {N, 4 * HS}, start);
        rope_forward(cpu, {.x = heads_of(x, HS), .positions = positions, .table = table});
        EXPECT_TRUE(close(x.values(), expected, bound)) << name_of(dtype);
    }
}

// What attention sees depends on the distance alone.
TEST(Rope, ProductsDependOnTheDistance) {
    const int64_t HS = 16, rows = 900;
    const Buffer table(cpu, DType::f64, {rows, HS});
    fill_rope_table(table, 500);
    const std::vector<double> q = normals(HS, 4), k = normals(HS, 5);
    const auto product = [&](double i, double j) {
        const Buffer positions(cpu, DType::i32, {2}, {i, j});
        std::vector<double> both = q;
        both.insert(both.end(), k.begin(), k.end());
        const Buffer x(cpu, DType::f64, {2, 1, HS}, both);
        rope_forward(cpu, {.x = x, .positions = positions, .table = table});
        const double* const data = x.tensor().get<double>();
        double sum = 0;
        for (int64_t d = 0; d < HS; ++d) sum += data[d] * data[HS + d];
        return sum;
    };
    EXPECT_NEAR(product(17, 5), product(812, 800), 1e-12);
    EXPECT_NEAR(product(5, 17), product(800, 812), 1e-12);
    EXPECT_GT(std::abs(product(17, 5) - product(5, 17)), 1e-3);
}

// The definition in Llama 3.1's own code (apply_scaling), with its numbers: factor 8, frequencies up to 1 and from 4
// cycles in 8192 tokens on.
TEST(Rope, StretchesLongWavelengths) {
    const RopeStretch stretch = {.factor = 8};
    const double two_pi = 2 * std::acos(-1.0);
    const auto of_wavelength = [&](double tokens) { return rope_stretch_of(two_pi / tokens, stretch); };
    EXPECT_EQ(of_wavelength(6.3), 1);
    EXPECT_EQ(of_wavelength(2047), 1);
    EXPECT_EQ(of_wavelength(8193), 8);
    EXPECT_EQ(of_wavelength(1e6), 8);
    // 2 cycles: a third of the way from 1 to 4, so that the frequency is (2/3) / 8 + 1/3 = 5/12 of what it was.
    EXPECT_NEAR(of_wavelength(4096), 2.4, 1e-12);

    const int64_t HS = 64, rows = 3;
    const Buffer table(cpu, DType::f64, {rows, HS}), plain(cpu, DType::f64, {rows, HS});
    fill_rope_table(table, 5e5, &stretch);
    fill_rope_table(plain, 5e5);
    const double* const data = table.tensor().get<double>();
    for (int64_t d = 0; d < HS / 2; ++d) {
        const double frequency = std::pow(5e5, -2.0 * static_cast<double>(d) / static_cast<double>(HS));
        const double angle = 2 * frequency / rope_stretch_of(frequency, stretch);
        EXPECT_NEAR(data[2 * HS + d], std::cos(angle), 1e-15) << d;
        EXPECT_NEAR(data[2 * HS + HS / 2 + d], std::sin(angle), 1e-15) << d;
    }
    EXPECT_FALSE(same(table.values(), plain.values()));
}

TEST(Rope, Refuses) {
    const Buffer table(cpu, DType::f32, {T, 4}), good(cpu, DType::i32, {2}, {0, 6}), late(cpu, DType::i32, {2}, {0, 7});
    const Buffer x(cpu, DType::f32, {2, 3, 4}), odd(cpu, DType::f32, {2, 3, 5}), wide(cpu, DType::f64, {2, 3, 4});
    const Buffer flat(cpu, DType::f32, {2, 4}), negative(cpu, DType::i32, {2}, {-1, 0}), both(cpu, DType::f32, {T, 8});
    EXPECT_THROW(rope_forward(cpu, {.x = odd, .positions = good, .table = table}), Error);
    EXPECT_THROW(rope_forward(cpu, {.x = wide, .positions = good, .table = table}), Error);
    EXPECT_THROW(rope_forward(cpu, {.x = flat, .positions = good, .table = table}), Error);
    EXPECT_THROW(rope_forward(cpu, {.x = x, .positions = late, .table = table}), Error);
    EXPECT_THROW(rope_backward(cpu, {.x = x, .positions = negative, .table = table}), Error);
    EXPECT_THROW(rope_forward(cpu, {.x = x, .positions = good, .table = {}}), Error);
    // A slice of a wider table has other strides than the kernel walks.
    EXPECT_THROW(rope_forward(cpu, {.x = x, .positions = good, .table = both.tensor().slice(1, 0, 4)}), Error);
    EXPECT_THROW(fill_rope_table(both.tensor().slice(1, 0, 4), 10), Error);
}

}  // namespace
}  // namespace ingot::test
