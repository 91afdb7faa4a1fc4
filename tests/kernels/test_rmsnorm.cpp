// Seen to catch: mean(g x) without rstd^2; dweight overwritten; the token stride of a view taken as H HS.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>

#include "kernels/rmsnorm.h"
#include "tests/support/finite_difference.h"
#include "tests/support/tensors.h"

namespace ingot::test {
namespace {

const Device cpu = Device::cpu();
constexpr double kEps = 1e-3;

double weighted_sum(const std::vector<double>& w, const Tensor& out) {
    double sum = 0;
    for (size_t i = 0; i < w.size(); ++i) sum += w[i] * out.get<double>()[i];
    return sum;
}

// Poisoned, so that a partial sum read before it is written shows.
Buffer workspace_for(const Tensor& x) {
    return Buffer(cpu, DType::u8, {static_cast<int64_t>(rmsnorm_backward_workspace(cpu, x))});
}

TEST(RmsNorm, GradientsAgreeWithFiniteDifferences) {
    for (const auto& [N, C] : {std::pair<int64_t, int64_t>{1, 1}, {5, 8}, {70, 3}, {3, 37}}) {
        const std::vector<double> w = normals(N * C, 1);
        const Buffer x(cpu, DType::f64, {N, C}, normals(N * C, 2)), weight(cpu, DType::f64, {C}, normals(C, 3, 0.3, 1));
        const Buffer out(cpu, DType::f64, {N, C}), rstd(cpu, DType::f64, {N}), dout(cpu, DType::f64, {N, C}, w);
        const Buffer dx(cpu, DType::f64, {N, C});
        const Buffer dweight(cpu, DType::f64, {C}, std::vector<double>(static_cast<size_t>(C)));
        const auto loss = [&] {
            rmsnorm_forward(cpu, {.out = out, .rstd = rstd, .x = x, .weight = weight, .eps = kEps});
            return weighted_sum(w, out);
        };
        loss();
        const Buffer workspace = workspace_for(x);
        rmsnorm_backward(cpu, {.dx = dx,
                               .dweight = dweight,
                               .dout = dout,
                               .x = x,
                               .rstd = rstd,
                               .weight = weight,
                               .dresidual = {},
                               .workspace = workspace});
        check_gradients(loss, {{"x", x, dx.values()}, {"weight", weight, dweight.values()}});
    }
}

TEST(RmsNorm, ForwardIsTheFormula) {
    const int64_t N = 3, C = 5;
    const std::vector<double> x = normals(N * C, 4), weight = normals(C, 5);
    std::vector<double> expected, expected_rstd;
    for (int64_t n = 0; n < N; ++n) {
        double square = 0;
        for (int64_t c = 0; c < C; ++c) square += x[static_cast<size_t>(n * C + c)] * x[static_cast<size_t>(n * C + c)];
        expected_rstd.push_back(1 / std::sqrt(square / static_cast<double>(C) + kEps));
        for (int64_t c = 0; c < C; ++c)
            expected.push_back(x[static_cast<size_t>(n * C + c)] * expected_rstd.back() *
                               weight[static_cast<size_t>(c)]);
    }
    const Buffer in_place(cpu, DType::f64, {N, C}, x), w(cpu, DType::f64, {C}, weight), rstd(cpu, DType::f64, {N});
    rmsnorm_forward(cpu, {.out = in_place, .rstd = rstd, .x = in_place, .weight = w, .eps = kEps});
    EXPECT_TRUE(close(in_place.values(), expected, 1e-15));
    EXPECT_TRUE(close(rstd.values(), expected_rstd, 1e-15));
}

// QK-norm: heads [1, 3) of a fused buffer of five, read there and written into a buffer of three heads.
TEST(RmsNorm, HeadViewsOfAFusedBuffer) {
    const int64_t N = 7, H = 2, HS = 6;
    const std::vector<double> w = normals(N * 3 * HS, 6);
    const Buffer fused(cpu, DType::f64, {N, 5 * HS}, normals(N * 5 * HS, 7)), out(cpu, DType::f64, {N, 3 * HS}, w);
    const Buffer weight(cpu, DType::f64, {HS}, normals(HS, 8, 0.3, 1)), rstd(cpu, DType::f64, {N, H});
    const Buffer dout(cpu, DType::f64, {N, 3 * HS}, w);
    const std::vector<double> before = normals(N * 5 * HS, 9), dweight_before = normals(HS, 10);
    const Buffer dfused(cpu, DType::f64, {N, 5 * HS}, before), dweight(cpu, DType::f64, {HS}, dweight_before);
    const auto x_view = [&](const Buffer& buffer) { return buffer.tensor().split_last(5, HS).slice(1, 1, 3); };
    const auto out_view = [&](const Buffer& buffer) { return buffer.tensor().split_last(3, HS).slice(1, 0, 2); };
    const auto loss = [&] {
        rmsnorm_forward(cpu, {.out = out_view(out), .rstd = rstd, .x = x_view(fused), .weight = weight, .eps = kEps});
        double sum = 0;
        for (int64_t n = 0; n < N; ++n)
            for (int64_t i = 0; i < 2 * HS; ++i)
                sum += w[static_cast<size_t>(n * 3 * HS + i)] * out.tensor().get<double>()[n * 3 * HS + i];
        return sum;
    };
    loss();
    const std::vector<double> written = out.values();
    for (int64_t n = 0; n < N; ++n)
        for (int64_t i = 2 * HS; i < 3 * HS; ++i)
            EXPECT_EQ(written[static_cast<size_t>(n * 3 * HS + i)], w[static_cast<size_t>(n * 3 * HS + i)]);
    const Buffer workspace = workspace_for(x_view(fused));
    rmsnorm_backward(cpu, {.dx = x_view(dfused),
                           .dweight = dweight,
                           .dout = out_view(dout),
                           .x = x_view(fused),
                           .rstd = rstd,
                           .weight = weight,
                           .dresidual = {},
                           .workspace = workspace});
    std::vector<double> gradient = dfused.values(), dw = dweight.values();
    for (size_t i = 0; i < dw.size(); ++i) dw[i] -= dweight_before[i];
    for (int64_t n = 0; n < N; ++n)
        for (int64_t i = 0; i < 5 * HS; ++i) {
            if (i >= HS && i < 3 * HS) continue;
            double& cell = gradient[static_cast<size_t>(n * 5 * HS + i)];
            EXPECT_EQ(cell, before[static_cast<size_t>(n * 5 * HS + i)]) << "a head outside the view was written";
            cell = 0;
        }
    check_gradients(loss, {{"fused", fused, gradient}, {"weight", weight, dw}});
}

TEST(RmsNorm, BackwardAddsTheGradientPastTheNorm) {
    const int64_t N = 6, C = 9;
    const std::vector<double> w = normals(N * C, 11), w_x = normals(N * C, 12);
    const Buffer x(cpu, DType::f64, {N, C}, normals(N * C, 13));
    const Buffer weight(cpu, DType::f64, {C}, normals(C, 15, 0.3, 1));
    const Buffer out(cpu, DType::f64, {N, C}), rstd(cpu, DType::f64, {N});
    const auto loss = [&] {
        rmsnorm_forward(cpu, {.out = out, .rstd = rstd, .x = x, .weight = weight, .eps = kEps});
        return weighted_sum(w, out) + weighted_sum(w_x, x);
    };
    loss();
    const std::vector<double> dw_before = normals(C, 16);
    const Buffer dout(cpu, DType::f64, {N, C}, w), dresidual(cpu, DType::f64, {N, C}, w_x), dx(cpu, DType::f64, {N, C});
    const Buffer dweight(cpu, DType::f64, {C}, dw_before), workspace = workspace_for(x);
    RmsNormBackward backward = {.dx = dx,
                                .dweight = dweight,
                                .dout = dout,
                                .x = x,
                                .rstd = rstd,
                                .weight = weight,
                                .dresidual = dresidual,
                                .workspace = workspace};
    rmsnorm_backward(cpu, backward);
    std::vector<double> dw = dweight.values();
    // Overwritten: the sum alone, whatever stood there.
    const Buffer overwritten(cpu, DType::f64, {C}, std::vector<double>(static_cast<size_t>(C), std::nan("")));
    backward.dweight = overwritten;
    backward.accumulate = false;
    rmsnorm_backward(cpu, backward);
    std::vector<double> added = overwritten.values();
    for (size_t i = 0; i < dw.size(); ++i) added[i] = dw_before[i] + added[i];
    EXPECT_TRUE(same(added, dw));
    backward.dweight = dweight;
    backward.accumulate = true;
    for (size_t i = 0; i < dw.size(); ++i) dw[i] -= dw_before[i];
    check_gradients(loss, {{"x", x, dx.values()}, {"weight", weight, dw}});

    // dx over dresidual, dx over dout: the same bits.
    loss();
    backward.dx = dresidual;
    rmsnorm_backward(cpu, backward);
    EXPECT_TRUE(same(dresidual.values(), dx.values()));
    const Buffer again(cpu, DType::f64, {N, C}, w_x);
    backward.dx = dout;
    backward.dresidual = again;
    rmsnorm_backward(cpu, backward);
    EXPECT_TRUE(same(dout.values(), dx.values()));
}

struct Results {
    std::vector<double> out, rstd, dx, dweight;
};

Results run(DType dtype, int64_t N, int64_t C) {
    const Buffer x(cpu, dtype, {N, C}, rounded(normals(N * C, 17), DType::f32));
    const Buffer weight(cpu, dtype, {C}, rounded(normals(C, 18, 0.3, 1), DType::f32));
    const Buffer dout(cpu, dtype, {N, C}, rounded(normals(N * C, 19), DType::f32));
    const Buffer out(cpu, dtype, {N, C}), rstd(cpu, dtype, {N}), dx(cpu, dtype, {N, C}), workspace = workspace_for(x);
    const Buffer dweight(cpu, dtype, {C}, std::vector<double>(static_cast<size_t>(C)));
    rmsnorm_forward(cpu, {.out = out, .rstd = rstd, .x = x, .weight = weight, .eps = 1e-5});
    rmsnorm_backward(cpu, {.dx = dx,
                           .dweight = dweight,
                           .dout = dout,
                           .x = x,
                           .rstd = rstd,
                           .weight = weight,
                           .dresidual = {},
                           .workspace = workspace});
    return {out.values(), rstd.values(), dx.values(), dweight.values()};
}

// rstd: a sum of C squares in vector lanes (error below sqrt(C) / 2 ulp here) and a root; out two more roundings; dx's
// difference and dweight's sum over N rows a few more.
TEST(RmsNorm, SingleAgreesWithDouble) {
    const int64_t N = 90, C = 67;
    const Results single = run(DType::f32, N, C), exact = run(DType::f64, N, C);
    EXPECT_TRUE(close(single.rstd, exact.rstd, 4 * 0x1p-24));
    EXPECT_TRUE(close(single.out, exact.out, 4 * 0x1p-24));
    EXPECT_TRUE(close(single.dx, exact.dx, 8 * 0x1p-24));
    EXPECT_TRUE(close(single.dweight, exact.dweight, 8 * 0x1p-24));
}

TEST(RmsNorm, BitsDoNotDependOnThreads) {
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    const Results one = run(DType::f32, 201, 40);
    for (const int count : {2, 3}) {
        omp_set_num_threads(count);
        const Results more = run(DType::f32, 201, 40);
        EXPECT_TRUE(same(more.out, one.out));
        EXPECT_TRUE(same(more.dx, one.dx));
        EXPECT_TRUE(same(more.dweight, one.dweight));
    }
    omp_set_num_threads(threads);
}

TEST(RmsNorm, ZeroRowsStayZero) {
    const Buffer x(cpu, DType::f32, {2, 4}, std::vector<double>(8)), weight(cpu, DType::f32, {4}, {1, 1, 1, 1});
    const Buffer out(cpu, DType::f32, {2, 4}), rstd(cpu, DType::f32, {2});
    rmsnorm_forward(cpu, {.out = out, .rstd = rstd, .x = x, .weight = weight, .eps = 1e-5});
    EXPECT_TRUE(same(out.values(), std::vector<double>(8)));
}

TEST(RmsNorm, Refuses) {
    const Buffer x(cpu, DType::f32, {4, 6}), weight(cpu, DType::f32, {6}), rstd(cpu, DType::f32, {4});
    const Buffer out(cpu, DType::f32, {4, 6}), short_weight(cpu, DType::f32, {5}), wide(cpu, DType::f64, {4, 6});
    const Buffer wide_rstd(cpu, DType::f64, {4}), small(cpu, DType::u8, {8}), workspace = workspace_for(x);
    const auto forward = [&](const Tensor& o, const Tensor& r, const Tensor& in, const Tensor& w) {
        rmsnorm_forward(cpu, {.out = o, .rstd = r, .x = in, .weight = w, .eps = kEps});
    };
    EXPECT_THROW(forward(out, rstd, x, short_weight), Error);
    EXPECT_THROW(forward(wide, rstd, x, weight), Error);
    EXPECT_THROW(forward(out, wide_rstd, x, weight), Error);
    EXPECT_THROW(forward(out, rstd, x.tensor().slice(1, 0, 5), weight), Error);
    EXPECT_THROW(forward(out, rstd, x.tensor().split_last(2, 3), weight), Error);
    EXPECT_THROW(forward(out, {}, x, weight), Error);
    const auto backward = [&](const Tensor& dweight, const Tensor& dresidual, const Tensor& space) {
        rmsnorm_backward(cpu, {.dx = out,
                               .dweight = dweight,
                               .dout = x,
                               .x = x,
                               .rstd = rstd,
                               .weight = weight,
                               .dresidual = dresidual,
                               .workspace = space});
    };
    EXPECT_THROW(backward(weight, {}, small), Error);
    EXPECT_THROW(backward(weight, {}, {}), Error);
    EXPECT_THROW(backward(short_weight, {}, workspace), Error);
    EXPECT_THROW(backward(weight, wide, workspace), Error);
}

}  // namespace
}  // namespace ingot::test
