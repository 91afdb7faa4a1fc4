// SwiGLU on CUDA against the CPU twin in double precision, by the tolerance of precision_bound()
// (tests/support/tensors.h).
// Seen to catch: the gate's derivative with s in place of 1 - s; the last chunk not written; backward's out
// without up.
#include "kernels/swiglu.h"
#include "tests/support/tensors.h"

namespace ingot::test {

namespace {

constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};

struct Inputs {
    Inputs(DType dtype_, int64_t N_, int64_t F_) : dtype(dtype_), N(N_), F(F_) {
        gate_up = rounded(normals(N * 2 * F, 1, 2), dtype);
        dout = rounded(normals(N * F, 2), dtype);
    }
    DType dtype;
    int64_t N, F;
    std::vector<double> gate_up, dout;
};

std::vector<double> forward(const Device& device, DType dtype, const Inputs& in) {
    const Buffer out(device, dtype, {in.N, in.F}), gate_up(device, dtype, {in.N, 2 * in.F}, in.gate_up);
    swiglu_forward(device, {.out = out, .gate_up = gate_up});
    return out.values();
}

// In place: also with out, in the place of dout, where it is the forward's.
std::vector<double> backward(const Device& device, DType dtype, const Inputs& in, bool in_place) {
    const Buffer other(device, dtype, {in.N, 2 * in.F}), gate_up(device, dtype, {in.N, 2 * in.F}, in.gate_up);
    const Buffer dout(device, dtype, {in.N, in.F}, in.dout);
    const Buffer& dgate_up = in_place ? gate_up : other;
    swiglu_backward(
        device, {.dgate_up = dgate_up, .dout = dout, .gate_up = gate_up, .out = in_place ? dout.tensor() : Tensor{}});
    if (in_place) {
        EXPECT_TRUE(same(dout.values(), forward(device, dtype, in)));
    }
    return dgate_up.values();
}

void check(const Device& device, const Inputs& in) {
    SCOPED_TRACE(join(name_of(in.dtype), " N ", in.N, " F ", in.F));
    const Device cpu = Device::cpu();
    {
        const std::vector<double> exact = forward(cpu, DType::f64, in);
        const std::vector<double> plain = rounded(forward(cpu, DType::f32, in), in.dtype);
        EXPECT_TRUE(close(forward(device, in.dtype, in), exact, precision_bound(in.dtype, plain, exact)));
    }
    const std::vector<double> exact = backward(cpu, DType::f64, in, false);
    const std::vector<double> plain = rounded(backward(cpu, DType::f32, in, false), in.dtype);
    const std::vector<double> actual = backward(device, in.dtype, in, false);
    EXPECT_TRUE(close(actual, exact, precision_bound(in.dtype, plain, exact)));
    EXPECT_TRUE(same(backward(device, in.dtype, in, true), actual));
}

}  // namespace

TEST(SwigluCuda, Small) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes)
        for (const int64_t F : {3, 24}) check(device, Inputs(dtype, 5, F));
}

TEST(SwigluCuda, Shapes) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes)
        for (const int64_t F : {1, 8, 100, 1000, 2048, 2056, 5632})
            for (const int64_t N : {1, 3, 33, 257}) check(device, Inputs(dtype, N, F));
}

// Gates at which e^-gate overflows or vanishes: silu tends to 0 and to the gate itself.
TEST(SwigluCuda, LargeGatesStayFinite) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes) {
        Inputs in(dtype, 1, 8);
        in.gate_up = {-1e4, -200, -90, -20, 20, 90, 200, 1e4, 1, 1, 1, 1, 1, 1, 1, 1};
        in.dout.assign(8, 1);
        in.gate_up = rounded(in.gate_up, dtype);
        check(device, in);
    }
}

}  // namespace ingot::test
