// Seen to catch: silu'(g) without the factor (1 - sigmoid); dup made from up instead of gate; backward's out without
// up.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/swiglu.h"
#include "tests/support/finite_difference.h"
#include "tests/support/tensors.h"

namespace ingot::test {
namespace {

const Device cpu = Device::cpu();

double dot(const std::vector<double>& a, const std::vector<double>& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

TEST(Swiglu, GradientAgreesWithFiniteDifferences) {
    for (const int64_t F : {1, 7, 33}) {
        const int64_t N = 3;
        const std::vector<double> w = normals(N * F, 1);
        const Buffer gate_up(cpu, DType::f64, {N, 2 * F}, normals(N * 2 * F, 2, 1.5)), dout(cpu, DType::f64, {N, F}, w);
        const Buffer out(cpu, DType::f64, {N, F}), dgate_up(cpu, DType::f64, {N, 2 * F});
        swiglu_backward(cpu, {.dgate_up = dgate_up, .dout = dout, .gate_up = gate_up});
        const auto loss = [&] {
            swiglu_forward(cpu, {.out = out, .gate_up = gate_up});
            return dot(w, out.values());
        };
        check_gradients(loss, {{"gate_up", gate_up, dgate_up.values()}});
    }
}

TEST(Swiglu, ForwardIsTheFormula) {
    const int64_t N = 2, F = 5;
    const std::vector<double> x = normals(N * 2 * F, 3, 2);
    const Buffer gate_up(cpu, DType::f64, {N, 2 * F}, x), out(cpu, DType::f64, {N, F});
    swiglu_forward(cpu, {.out = out, .gate_up = gate_up});
    std::vector<double> expected;
    for (int64_t n = 0; n < N; ++n)
        for (int64_t f = 0; f < F; ++f) {
            const double gate = x[static_cast<size_t>(n * 2 * F + f)], up = x[static_cast<size_t>(n * 2 * F + F + f)];
            expected.push_back(gate / (1 + std::exp(-gate)) * up);
        }
    EXPECT_TRUE(close(out.values(), expected, 1e-15));
}

TEST(Swiglu, GradientMayOverwriteItsInput) {
    const int64_t N = 4, F = 19;
    for (const DType dtype : {DType::f32, DType::f64}) {
        const std::vector<double> x = normals(N * 2 * F, 4), d = normals(N * F, 5);
        const Buffer gate_up(cpu, dtype, {N, 2 * F}, x), dout(cpu, dtype, {N, F}, d), apart(cpu, dtype, {N, 2 * F});
        swiglu_backward(cpu, {.dgate_up = apart, .dout = dout, .gate_up = gate_up});
        swiglu_backward(cpu, {.dgate_up = gate_up, .dout = dout, .gate_up = gate_up});
        EXPECT_TRUE(same(gate_up.values(), apart.values()));
    }
}

TEST(Swiglu, BackwardWritesTheSameOutAgain) {
    const int64_t N = 4, F = 19;
    for (const DType dtype : {DType::f32, DType::f64}) {
        const Buffer gate_up(cpu, dtype, {N, 2 * F}, normals(N * 2 * F, 4)),
            dout(cpu, dtype, {N, F}, normals(N * F, 5));
        const Buffer out(cpu, dtype, {N, F}), apart(cpu, dtype, {N, 2 * F});
        swiglu_forward(cpu, {.out = out, .gate_up = gate_up});
        swiglu_backward(cpu, {.dgate_up = apart, .dout = dout, .gate_up = gate_up});
        swiglu_backward(cpu, {.dgate_up = gate_up, .dout = dout, .gate_up = gate_up, .out = dout});
        EXPECT_TRUE(same(dout.values(), out.values()));
        EXPECT_TRUE(same(gate_up.values(), apart.values()));
    }
}

// The exponential is within 2 ulp and there are five more roundings: 8 ulp of fp32 covers each element's relative
// error; in the gradient 1 + g (1 - sigmoid) may cancel, which costs at most |g| + 1 times as much in norm.
TEST(Swiglu, SingleAgreesWithDouble) {
    const int64_t N = 9, F = 65;
    const std::vector<double> x = rounded(normals(N * 2 * F, 6, 3), DType::f32);
    const std::vector<double> d = rounded(normals(N * F, 7), DType::f32);
    std::vector<double> outs[2], gradients[2];
    for (const int i : {0, 1}) {
        const DType dtype = i == 0 ? DType::f32 : DType::f64;
        const Buffer gate_up(cpu, dtype, {N, 2 * F}, x), dout(cpu, dtype, {N, F}, d), out(cpu, dtype, {N, F});
        swiglu_forward(cpu, {.out = out, .gate_up = gate_up});
        outs[i] = out.values();
        swiglu_backward(cpu, {.dgate_up = gate_up, .dout = dout, .gate_up = gate_up});
        gradients[i] = gate_up.values();
    }
    EXPECT_TRUE(close(outs[0], outs[1], 8 * 0x1p-24));
    EXPECT_TRUE(close(gradients[0], gradients[1], 16 * 0x1p-24));
}

TEST(Swiglu, ExtremeGatesStayFinite) {
    const std::vector<double> x = {-1e4, 1e4, -89, 89, 0, 1, 1, 1, 1, 1};
    for (const DType dtype : {DType::f32, DType::f64}) {
        const Buffer gate_up(cpu, dtype, {1, 10}, x), out(cpu, dtype, {1, 5});
        const Buffer dout(cpu, dtype, {1, 5}, {1, 1, 1, 1, 1});
        swiglu_forward(cpu, {.out = out, .gate_up = gate_up});
        EXPECT_TRUE(close(out.values(), {0, 1e4, 0, 89, 0}, 1e-7));
        swiglu_backward(cpu, {.dgate_up = gate_up, .dout = dout, .gate_up = gate_up});
        EXPECT_TRUE(close(gate_up.values(), {0, 1, 0, 1, 0.5, 0, 1e4, 0, 89, 0}, 1e-7));
    }
}

TEST(Swiglu, Refuses) {
    const Buffer gate_up(cpu, DType::f32, {2, 8}), out(cpu, DType::f32, {2, 3}), wide(cpu, DType::f64, {2, 4});
    const Buffer half(cpu, DType::bf16, {2, 4}), half_gate_up(cpu, DType::bf16, {2, 8});
    EXPECT_THROW(swiglu_forward(cpu, {.out = out, .gate_up = gate_up}), Error);
    EXPECT_THROW(swiglu_forward(cpu, {.out = wide, .gate_up = gate_up}), Error);
    EXPECT_THROW(swiglu_forward(cpu, {.out = half, .gate_up = half_gate_up}), Error);
    EXPECT_THROW(swiglu_forward(cpu, {.out = gate_up.tensor().slice(1, 0, 4), .gate_up = gate_up}), Error);
    EXPECT_THROW(swiglu_backward(cpu, {.dgate_up = out, .dout = out, .gate_up = gate_up}), Error);
}

}  // namespace
}  // namespace ingot::test
