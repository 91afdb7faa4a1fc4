// Seen to catch: silu'(g) without the factor (1 - sigmoid), or with s in place of 1 - s; dup made from up instead of
// the gate; backward's out without up; the last chunk not written.
#include <algorithm>
#include <cmath>

#include "kernels/swiglu.h"
#include "tests/support/on_device.h"

namespace ingot::test {
namespace {

INGOT_ON_EACH_DEVICE(Swiglu);

struct Case {
    Case(int64_t N, int64_t F, DType dtype)
        : N(N), F(F), gate_up(rounded(normals(N * 2 * F, 1, 2), dtype)), dout(rounded(normals(N * F, 2), dtype)) {}
    int64_t N, F;
    std::vector<double> gate_up, dout;
};

Outputs definition(const Case& c) {
    std::vector<double> out(c.dout.size()), dgate_up(c.gate_up.size());
    for (size_t i = 0; i < out.size(); ++i) {
        const auto F = static_cast<size_t>(c.F);
        const size_t at = i / F * 2 * F + i % F;
        const double gate = c.gate_up[at], up = c.gate_up[at + F], sigmoid = 1 / (1 + std::exp(-gate));
        out[i] = gate * sigmoid * up;
        dgate_up[at] = c.dout[i] * up * sigmoid * (1 + gate * (1 - sigmoid));
        dgate_up[at + F] = c.dout[i] * gate * sigmoid;
    }
    return {{"out", {}, out}, {"dgate_up", {}, dgate_up}};
}

Outputs run(const Case& c, const Device& device, DType dtype) {
    const Buffer gate_up(device, dtype, {c.N, 2 * c.F}, c.gate_up), dout(device, dtype, {c.N, c.F}, c.dout);
    const Buffer out(device, dtype, {c.N, c.F}), dgate_up(device, dtype, {c.N, 2 * c.F});
    swiglu_forward(device, {.out = out, .gate_up = gate_up});
    swiglu_backward(device, {.dgate_up = dgate_up, .dout = dout, .gate_up = gate_up});
    // In place, and with the forward's out again in the place of dout.
    const Buffer in_place(device, dtype, {c.N, 2 * c.F}, c.gate_up);
    swiglu_backward(device, {.dgate_up = in_place, .dout = dout, .gate_up = in_place, .out = dout});
    EXPECT_TRUE(same(dout.values(), out.values()));
    EXPECT_TRUE(same(in_place.values(), dgate_up.values()));
    return {{"out", dtype, out.values()},
            {"dgate_up", dtype, dgate_up.values(), device.is_cpu() ? 8 * Output::unit(dtype) : 0}};
}

// The exponential is within 2 ulp and there are five more roundings: 8 units of 2^-24 cover each element's relative
// error; in the gradient 1 + g (1 - sigmoid) may cancel, which costs at most |g| + 1 times as much in norm.
void check(const Device& device, DType dtype, const Case& c) {
    SCOPED_TRACE(join(name_of(dtype), " N ", c.N, " F ", c.F));
    check_outputs(device, dtype, 8, definition(c), [&](const Device& on, DType type) { return run(c, on, type); });
}

TEST_P(Swiglu, Small) {
    for (const DType dtype : dtypes())
        for (const int64_t F : {3, 24}) check(device(), dtype, Case(5, F, dtype));
}

TEST_P(Swiglu, Shapes) {
    for (const DType dtype : dtypes())
        for (const int64_t F : {1, 8, 65, 100, 1000, 2048, 2056, 5632})
            for (const int64_t N : {1, 3, 33, 257})
                if (!skips(N * F)) check(device(), dtype, Case(N, F, dtype));
}

// Gates at which e^-gate overflows or vanishes: silu tends to 0 and to the gate itself.
TEST_P(Swiglu, LargeGatesStayFinite) {
    for (const DType dtype : dtypes()) {
        Case c(1, 16, dtype);
        const double gates[] = {-1e4, -200, -90, -20, 0, 20, 90, 200, 1e4};
        c.gate_up.assign(32, 1);
        std::copy(std::begin(gates), std::end(gates), c.gate_up.begin());
        c.dout.assign(16, 1);
        c.gate_up = rounded(c.gate_up, dtype);
        check(device(), dtype, c);
    }
}

TEST_P(Swiglu, SameBitsEveryTime) {
    const Case c(33, 100, dtypes()[1]);
    check_same_bits(device(), dtypes()[1], [&](const Device& on, DType type) { return run(c, on, type); });
}

TEST(SwigluGradient, AgreesWithFiniteDifferences) {
    for (const int64_t F : {1, 7, 33}) {
        Case c(3, F, DType::f64);
        const auto outputs = [&] { return run(c, Device::cpu(), DType::f64); };
        check_host_gradients([&] { return dot(c.dout, values_of(outputs(), "out")); },
                             {{"gate_up", &c.gate_up, values_of(outputs(), "dgate_up")}});
    }
}

TEST(SwigluArguments, Refuses) {
    const Device cpu = Device::cpu();
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
