// Attention left out: copies and sums on the host are the oracle, and both are exact but for the one rounding of dv.
//
// Seen to catch: the device not looked at.
#include <algorithm>

#include "kernels/attention/left_out.h"
#include "tests/support/tensors.h"

namespace ingot::test {

namespace {

TEST(AttentionLeftOut, RefusesTheCpu) {
    const Device cpu = Device::cpu();
    const Buffer out(cpu, DType::f32, {2, 2, 4}), v(cpu, DType::f32, {2, 1, 4});
    EXPECT_THROW(attention_left_out_forward(cpu, {.out = out, .v = v}), Error);
}

constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};

// Heads [q | k | v] of one fused buffer of rows with `extra` elements more, as the model has them.
struct Case {
    int64_t N, NH, NKV, HS, extra = 0;
};
constexpr Case kCases[] = {{1, 1, 1, 32}, {700, 12, 4, 64}, {33, 3, 1, 96}, {5, 8, 8, 128}, {70, 6, 2, 32, 1}};

struct Heads {
    Tensor q, k, v;
};
Heads heads_of(const Tensor& fused, const Case& c) {
    const int64_t all = c.NH + 2 * c.NKV;
    const Tensor heads = fused.split_last(all, c.HS);
    return {heads.slice(1, 0, c.NH), heads.slice(1, c.NH, c.NH + c.NKV), heads.slice(1, c.NH + c.NKV, all)};
}

void check(const Device& device, DType dtype, const Case& c) {
    SCOPED_TRACE(join(name_of(dtype), " N ", c.N, " NH ", c.NH, " NKV ", c.NKV, " HS ", c.HS, " extra ", c.extra));
    const int64_t all = c.NH + 2 * c.NKV, row = all * c.HS, G = c.NH / c.NKV, width = c.NH * c.HS;
    const std::vector<double> qkv = rounded(normals(c.N * row, 1), dtype),
                              dout = rounded(normals(c.N * width, 2), dtype);
    const Margins margins = {0, c.extra};
    const Buffer fused(margins, device, dtype, {c.N, row}, qkv), gradient(device, dtype, {c.N, width}, dout);
    const Buffer out(device, dtype, {c.N, width}), dfused(margins, device, dtype, {c.N, row}, qkv);
    attention_left_out_forward(device, {.out = out.tensor().split_last(c.NH, c.HS), .v = heads_of(fused, c).v});
    const Heads d = heads_of(dfused, c);
    attention_left_out_backward(device,
                                {.dq = d.q, .dk = d.k, .dv = d.v, .dout = gradient.tensor().split_last(c.NH, c.HS)});

    std::vector<double> expected_out(dout.size()), expected(qkv);
    for (int64_t n = 0; n < c.N; ++n) {
        const auto in = static_cast<size_t>(n * row), at = static_cast<size_t>(n * width);
        const auto HS = static_cast<size_t>(c.HS), v = in + static_cast<size_t>(c.NH + c.NKV) * HS;
        std::fill_n(expected.begin() + static_cast<int64_t>(in), (c.NH + c.NKV) * c.HS, 0.0);
        for (size_t k = 0; k < static_cast<size_t>(c.NKV); ++k)
            for (size_t e = 0; e < HS; ++e) {
                float sum = 0;
                for (size_t g = 0; g < static_cast<size_t>(G); ++g) {
                    const size_t head = k * static_cast<size_t>(G) + g;
                    expected_out[at + head * HS + e] = qkv[v + k * HS + e];
                    sum += static_cast<float>(dout[at + head * HS + e]);
                }
                expected[v + k * HS + e] = sum;
            }
    }
    EXPECT_TRUE(same(out.values(), expected_out));
    EXPECT_TRUE(same(dfused.values(), rounded(expected, dtype)));
}

TEST(AttentionLeftOutCuda, CopiesAndSums) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes)
        for (const Case& c : kCases) check(device, dtype, c);
}

}  // namespace

}  // namespace ingot::test
