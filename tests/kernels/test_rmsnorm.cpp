// Seen to catch: mean(g x) without rstd^2, rstd in place of its square; dweight overwritten; the token stride of a view
// taken as H HS; on CUDA, the last warp's part of dweight lost, the wait for the asynchronous copies left
// out.
#include <cmath>
#include <limits>

#include "kernels/rmsnorm.h"
#include "tests/support/on_device.h"

namespace ingot::test {
namespace {

INGOT_ON_EACH_DEVICE(RmsNorm);

const Device cpu = Device::cpu();
constexpr double kEps = 1e-3;

// Rows of `width` elements, `heads` of them for each token; heads = 0 makes x a matrix. The margins lie round the heads
// of a token, as the other heads of a fused buffer do.
struct Layout {
    int64_t tokens, heads = 0, width;
    Margins margins = {};
    int64_t num_rows() const { return tokens * std::max<int64_t>(heads, 1); }
    int64_t numel() const { return num_rows() * width; }
};

struct Case {
    Case(DType dtype, const Layout& layout)
        : dtype(dtype),
          layout(layout),
          // With one column x * rstd is +-1 and dx the difference of equal numbers, unless eps dominates.
          eps(layout.width < 8 ? 16 : 1e-5),
          x(rounded(normals(layout.numel(), 1, 1.5, 0.1), dtype)),
          dout(rounded(normals(layout.numel(), 3), dtype)),
          dresidual(rounded(normals(layout.numel(), 4), dtype)),
          weight(rounded(normals(layout.width, 5, 0.3, 1), dtype)),
          dweight(rounded(normals(layout.width, 6), accumulation_dtype(dtype))) {}
    std::string describe() const {
        return join(name_of(dtype), " tokens ", layout.tokens, " heads ", layout.heads, " width ", layout.width,
                    " margins ", layout.margins.before, " ", layout.margins.after);
    }
    DType dtype;
    Layout layout;
    double eps;
    std::vector<double> x, dout, dresidual, weight, dweight;
};

// The rows of a case on a device.
class Rows {
  public:
    Rows(const Case& c, const Device& device, DType dtype)
        : c_(c),
          buffer_(c.layout.margins, device, dtype,
                  {c.layout.tokens, std::max<int64_t>(c.layout.heads, 1) * c.layout.width}) {}
    Rows(const Case& c, const Device& device, DType dtype, const std::vector<double>& values) : Rows(c, device, dtype) {
        buffer_.set(values);
    }
    operator Tensor() const {
        return c_.layout.heads > 0 ? buffer_.tensor().split_last(c_.layout.heads, c_.layout.width) : buffer_.tensor();
    }
    std::vector<double> values() const { return buffer_.values(); }

  private:
    const Case& c_;
    Buffer buffer_;
};

// One number for each row.
class Scalars {
  public:
    Scalars(const Case& c, const Device& device, DType dtype)
        : c_(c), buffer_(device, accumulation_dtype(dtype), {c.layout.num_rows()}) {}
    operator Tensor() const {
        const Layout& layout = c_.layout;
        return layout.heads > 0 ? buffer_.tensor().view({layout.tokens, layout.heads}) : buffer_.tensor();
    }
    std::vector<double> values() const { return buffer_.values(); }
    void set(const std::vector<double>& values) { buffer_.set(values); }

  private:
    const Case& c_;
    Buffer buffer_;
};

// ---- Forward ----

// Of the rows `x`, and what else was written.
Outputs forward_definition(const Case& c, const std::vector<double>& x) {
    const auto C = static_cast<size_t>(c.layout.width);
    std::vector<double> out(x.size()), rstd(static_cast<size_t>(c.layout.num_rows()));
#pragma omp parallel for if (x.size() > 20000)
    for (size_t row = 0; row < rstd.size(); ++row) {
        long double squares = 0;
        for (size_t i = 0; i < C; ++i) squares += static_cast<long double>(x[row * C + i]) * x[row * C + i];
        rstd[row] = static_cast<double>(1 / std::sqrt(squares / static_cast<long double>(C) + c.eps));
        for (size_t i = 0; i < C; ++i) out[row * C + i] = x[row * C + i] * rstd[row] * c.weight[i];
    }
    return {{"out", {}, out}, {"rstd", {}, rstd}};
}

// rstd is a sum of C squares in vector lanes and a root, and out two more roundings.
constexpr double kForwardUlps = 4;

void check_forward(const Device& device, const Case& c, bool in_place) {
    SCOPED_TRACE("forward " + c.describe() + (in_place ? " in place" : ""));
    check_outputs(device, c.dtype, kForwardUlps, forward_definition(c, c.x),
                  [&](const Device& on, DType dtype) -> Outputs {
                      const Rows x(c, on, dtype, c.x), other(c, on, dtype);
                      const Rows& out = in_place ? x : other;
                      const Scalars rstd(c, on, dtype);
                      const Buffer weight(on, dtype, {c.layout.width}, c.weight);
                      rmsnorm_forward(on, {.out = out, .rstd = rstd, .x = x, .weight = weight, .eps = c.eps});
                      if (!in_place) {
                          EXPECT_TRUE(same(x.values(), c.x));
                      }
                      return {{"out", dtype, out.values()}, {"rstd", accumulation_dtype(dtype), rstd.values()}};
                  });
}

// ---- Backward ----

enum class DxIs { own, dout, dresidual };

std::vector<double> stored_rstd(const Case& c) {
    return rounded(values_of(forward_definition(c, c.x), "rstd"), accumulation_dtype(c.dtype));
}

// dweight is a sum over rows whose terms cancel, and any other order of it errs by ulps of its terms, not of the sum:
// the slack is two fp32 ulps of the sum of their magnitudes, as a part of the sum's norm.
Outputs backward_definition(const Case& c, bool has_residual, const std::vector<double>& rstd) {
    const auto C = static_cast<size_t>(c.layout.width);
    std::vector<double> dx(c.x.size()), dweight = c.dweight, magnitudes = c.dweight;
#pragma omp parallel for if (dx.size() > 20000)
    for (size_t row = 0; row < rstd.size(); ++row) {
        const size_t begin = row * C;
        long double mean = 0;
        for (size_t i = begin; i < begin + C; ++i)
            mean += static_cast<long double>(c.dout[i]) * c.weight[i - begin] * c.x[i];
        mean /= static_cast<long double>(C);
        for (size_t i = begin; i < begin + C; ++i)
            dx[i] = rstd[row] *
                        (c.dout[i] * c.weight[i - begin] - c.x[i] * rstd[row] * rstd[row] * static_cast<double>(mean)) +
                    (has_residual ? c.dresidual[i] : 0);
    }
    for (size_t i = 0; i < dx.size(); ++i) {
        const double term = c.dout[i] * c.x[i] * rstd[i / C];
        dweight[i % C] += term;
        magnitudes[i % C] = std::abs(magnitudes[i % C]) + std::abs(term);
    }
    const double slack = 2 * 0x1p-23 * std::sqrt(dot(magnitudes, magnitudes) / dot(dweight, dweight));
    return {{"dx", {}, dx}, {"dweight", {}, dweight, slack}};
}

Outputs backward(const Case& c, const Device& device, DType dtype, bool has_residual, DxIs dx_is,
                 const std::vector<double>& rstds, double slack = 0) {
    const Rows x(c, device, dtype, c.x), dout(c, device, dtype, c.dout);
    const Rows dresidual(c, device, dtype, c.dresidual), own(c, device, dtype);
    const Rows& dx = dx_is == DxIs::own ? own : dx_is == DxIs::dout ? dout : dresidual;
    Scalars rstd(c, device, dtype);
    rstd.set(rstds);
    const DType sums = accumulation_dtype(dtype);
    const int64_t C = c.layout.width;
    const Buffer weight(device, dtype, {C}, c.weight), dweight(device, sums, {C}, c.dweight);
    // It is poisoned, so that a partial sum that is read before it is written shows.
    const Buffer workspace(device, DType::u8, {static_cast<int64_t>(rmsnorm_backward_workspace(device, x))});
    RmsNormBackward a = {.dx = dx,
                         .dweight = dweight,
                         .dout = dout,
                         .x = x,
                         .rstd = rstd,
                         .weight = weight,
                         .dresidual = has_residual ? static_cast<Tensor>(dresidual) : Tensor{},
                         .workspace = workspace};
    rmsnorm_backward(device, a);
    EXPECT_TRUE(same(x.values(), c.x));
    if (dx_is == DxIs::own) {
        // Overwritten: the sum alone, whatever stood there.
        const Buffer overwritten(device, sums, {C});
        a.dweight = overwritten;
        a.accumulate = false;
        rmsnorm_backward(device, a);
        std::vector<double> added = overwritten.values();
        for (size_t i = 0; i < added.size(); ++i) added[i] += c.dweight[i];
        EXPECT_TRUE(same(rounded(added, sums), dweight.values()));
    }
    return {{"dx", dtype, dx.values()}, {"dweight", sums, dweight.values(), slack}};
}

// dx's difference and dweight's sum over rows round a few times more than forward.
void check_backward(const Device& device, const Case& c, bool has_residual, DxIs dx_is) {
    SCOPED_TRACE("backward " + c.describe() + (has_residual ? " with dresidual" : "") + " alias " +
                 std::to_string(static_cast<int>(dx_is)));
    const std::vector<double> rstds = stored_rstd(c);
    const Outputs exact = backward_definition(c, has_residual, rstds);
    check_outputs(device, c.dtype, 8, exact, [&](const Device& on, DType dtype) {
        // On the CPU a thousand rows need it, in its type's precision.
        const double on_cpu = c.layout.num_rows() < 1000 ? 0 : exact[1].slack * Output::unit(dtype) / 0x1p-24;
        return backward(c, on, dtype, has_residual, dx_is, rstds, on.is_cpu() ? on_cpu : exact[1].slack);
    });
}

// ---- The cases ----

TEST_P(RmsNorm, Shapes) {
    for (const int64_t C : {1, 7, 32, 67, 100, 128, 768, 1000, 1024, 1536, 2048, 2056, 4096, 8192})
        for (const int64_t N : {1, 3, 33, 90, 1000})
            for (const DType dtype : dtypes()) {
                if (N * C > 1100000 || skips(N * C) || skips_row(C) || (N == 90 && C != 67)) continue;
                const Case c(dtype, {.tokens = N, .width = C});
                check_forward(device(), c, false);
                check_forward(device(), c, true);
                check_backward(device(), c, false, DxIs::own);
                check_backward(device(), c, true, DxIs::own);
                if (HasFailure()) return;
                if (N != 33) continue;
                check_backward(device(), c, false, DxIs::dout);
                check_backward(device(), c, true, DxIs::dout);
                check_backward(device(), c, true, DxIs::dresidual);
            }
}

// Widths such that on CUDA each compiled sharing of a row, and the scalar kernel, is met once: 4, 8, 16 and 32 lanes,
// 32 with three, four, six and eight vectors, a whole block; the last is no multiple of 16 bytes.
TEST_P(RmsNorm, EveryInstantiationSmall) {
    for (const DType dtype : dtypes())
        for (const int64_t vectors : {7, 16, 24, 96, 120, 170, 200, 300, 0}) {
            const int64_t width = vectors == 0 ? 50 : vectors * 16 / size_of(dtype);
            if (skips_row(width)) continue;
            const Case c(dtype, {.tokens = 5, .width = width});
            check_forward(device(), c, false);
            check_backward(device(), c, true, DxIs::own);
        }
}

// The query heads of a fused (N, (NH + 2 * NKV) * HS) buffer, and its key heads, which start further right.
std::vector<Case> head_views(int64_t tokens, const std::vector<DType>& dtypes) {
    std::vector<Case> cases;
    constexpr int64_t NH = 6, NKV = 2;
    for (const int64_t HS : {6, 32, 64, 96, 128, 256})
        for (const DType dtype : dtypes) {
            cases.emplace_back(dtype, Layout{tokens, NH, HS, {0, 2 * NKV * HS}});
            cases.emplace_back(dtype, Layout{tokens, NKV, HS, {NH * HS, NKV * HS}});
        }
    return cases;
}

TEST_P(RmsNorm, HeadViewsSmall) {
    for (const Case& c : head_views(3, dtypes())) {
        check_forward(device(), c, false);
        check_backward(device(), c, false, DxIs::own);
    }
}

TEST_P(RmsNorm, HeadViews) {
    for (const Case& c : head_views(is_cuda() ? 500 : 7, dtypes())) {
        check_forward(device(), c, true);
        check_backward(device(), c, false, DxIs::dout);
        check_backward(device(), c, true, DxIs::own);
    }
}

// Rows of a width that fits vectors, at a stride or an offset that does not.
TEST_P(RmsNorm, MisalignedRowsSmall) {
    for (const DType dtype : dtypes())
        for (const int64_t C : {64, 768})
            for (const Margins margins : {Margins{0, 1}, {1, 15}, {8, 8}}) {
                const Case c(dtype, {.tokens = 9, .width = C, .margins = margins});
                check_forward(device(), c, false);
                check_backward(device(), c, true, DxIs::dresidual);
            }
}

// More rows than the persistent grid of an H200 takes in one round, so that blocks loop, the last round partly empty.
TEST_P(RmsNorm, ManyRowsPerBlock) {
    for (const auto& [tokens, width] :
         {std::pair<int64_t, int64_t>{26001, 64}, {4301, 768}, {2801, 1400}, {4301, 2048}, {1501, 2560}, {701, 1001}})
        if (!skips(tokens * width))
            check_backward(device(), Case(dtypes()[1], {.tokens = tokens, .width = width}), true, DxIs::dresidual);
}

TEST_P(RmsNorm, SameBitsEveryTime) {
    for (const auto& [tokens, width] :
         {std::pair<int64_t, int64_t>{201, 40}, {6000, 128}, {2500, 768}, {500, 1001}, {1500, 2048}, {700, 4096}}) {
        if (skips(tokens * width)) continue;
        const Case c(dtypes()[1], {.tokens = tokens, .width = width});
        SCOPED_TRACE(c.describe());
        const std::vector<double> rstds = stored_rstd(c);
        check_same_bits(device(), c.dtype, [&](const Device& on, DType dtype) {
            const Rows x(c, on, dtype, c.x), out(c, on, dtype);
            const Scalars rstd(c, on, dtype);
            const Buffer weight(on, dtype, {c.layout.width}, c.weight);
            rmsnorm_forward(on, {.out = out, .rstd = rstd, .x = x, .weight = weight, .eps = c.eps});
            Outputs outputs = backward(c, on, dtype, true, DxIs::dresidual, rstds);
            outputs.push_back({"out", dtype, out.values()});
            return outputs;
        });
    }
}

TEST_P(RmsNorm, NanInARowStaysInItsRow) {
    Case c(dtypes()[1], {.tokens = 6, .width = 768});
    c.x[768 * 2 + 5] = std::numeric_limits<double>::quiet_NaN();
    const Rows x(c, device(), c.dtype, c.x), out(c, device(), c.dtype);
    const Scalars rstd(c, device(), c.dtype);
    const Buffer weight(device(), c.dtype, {768}, c.weight);
    rmsnorm_forward(device(), {.out = out, .rstd = rstd, .x = x, .weight = weight, .eps = c.eps});
    const std::vector<double> values = out.values();
    for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(std::isnan(values[i]), i / 768 == 2) << i;
}

TEST_P(RmsNorm, ZeroRowsStayZero) {
    const Buffer x(device(), DType::f32, {2, 4}, std::vector<double>(8)),
        weight(device(), DType::f32, {4}, {1, 1, 1, 1});
    const Buffer out(device(), DType::f32, {2, 4}), rstd(device(), DType::f32, {2});
    rmsnorm_forward(device(), {.out = out, .rstd = rstd, .x = x, .weight = weight, .eps = 1e-5});
    EXPECT_TRUE(same(out.values(), std::vector<double>(8)));
}

// The sum over no rows is 0, and it is written where it is asked for.
TEST_P(RmsNorm, NoRowsSmall) {
    const Device& device = this->device();
    const Buffer rows(device, DType::f32, {0, 64}), rstd(device, DType::f32, {0}), weight(device, DType::f32, {64});
    const Buffer dweight(device, DType::f32, {64}, std::vector<double>(64, 7));
    const Buffer workspace(device, DType::u8, {static_cast<int64_t>(rmsnorm_backward_workspace(device, rows))});
    for (const bool accumulate : {true, false}) {
        rmsnorm_backward(device, {.dx = rows,
                                  .dweight = dweight,
                                  .dout = rows,
                                  .x = rows,
                                  .rstd = rstd,
                                  .weight = weight,
                                  .workspace = workspace,
                                  .accumulate = accumulate});
        EXPECT_TRUE(same(dweight.values(), std::vector<double>(64, accumulate ? 7 : 0)));
    }
}

// Of the loss dout . out + dresidual . x; alone, in heads of a fused buffer, and of an x whose gradient is passed on.
TEST(RmsNormGradient, AgreesWithFiniteDifferences) {
    for (const Layout& layout : {Layout{1, 0, 1}, {5, 0, 8}, {70, 0, 3}, {3, 0, 37}, {7, 2, 6, {6, 12}}})
        for (const bool has_residual : {false, true}) {
            Case c(DType::f64, layout);
            c.eps = kEps;
            c.dweight.assign(c.dweight.size(), 0);
            std::vector<double> rstds;
            const auto loss = [&] {
                const Rows x(c, cpu, DType::f64, c.x), out(c, cpu, DType::f64);
                const Scalars rstd(c, cpu, DType::f64);
                const Buffer weight(cpu, DType::f64, {layout.width}, c.weight);
                rmsnorm_forward(cpu, {.out = out, .rstd = rstd, .x = x, .weight = weight, .eps = kEps});
                rstds = rstd.values();
                return dot(c.dout, out.values()) + (has_residual ? dot(c.dresidual, c.x) : 0);
            };
            loss();
            const Outputs gradients = backward(c, cpu, DType::f64, has_residual, DxIs::own, rstds);
            check_host_gradients(loss, {{"x", &c.x, values_of(gradients, "dx")},
                                        {"weight", &c.weight, values_of(gradients, "dweight")}});
        }
}

TEST(RmsNormArguments, Refuses) {
    const Buffer x(cpu, DType::f32, {4, 6}), weight(cpu, DType::f32, {6}), rstd(cpu, DType::f32, {4});
    const Buffer out(cpu, DType::f32, {4, 6}), short_weight(cpu, DType::f32, {5}), wide(cpu, DType::f64, {4, 6});
    const Buffer wide_rstd(cpu, DType::f64, {4}), small(cpu, DType::u8, {8});
    const Buffer workspace(cpu, DType::u8, {static_cast<int64_t>(rmsnorm_backward_workspace(cpu, x))});
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

TEST(RmsNormCuda, RefusesFp64) {
    INGOT_CUDA_OR_SKIP(device);
    const Buffer x(device, DType::f64, {2, 8}), rstd(device, DType::f64, {2}), weight(device, DType::f64, {8});
    EXPECT_THROW(rmsnorm_forward(device, {.out = x, .rstd = rstd, .x = x, .weight = weight, .eps = 1e-5}), Error);
}

}  // namespace
}  // namespace ingot::test
