// RMSNorm on CUDA against the CPU twin in double precision.
//
// Tolerance: precision_bound() of tests/support/tensors.h.
//
// Seen to catch: rstd in place of its square; dweight overwritten; the last warp's part of dweight lost; the wait for
// the asynchronous copies left out.
#include <cmath>
#include <functional>
#include <limits>

#include "kernels/rmsnorm.h"
#include "tests/support/tensors.h"

namespace ingot::test {

namespace {

constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};

// Rows of `width` elements somewhere in a buffer.
struct Layout {
    int64_t tokens, heads = 0, width;             // heads 0: rank 2
    int64_t row_elements = 0, first_element = 0;  // of the buffer; 0: contiguous
    int64_t num_rows() const { return tokens * std::max<int64_t>(heads, 1); }
    int64_t numel() const { return num_rows() * width; }
};

class Rows {
  public:
    Rows(const Device& device, DType dtype, const Layout& layout)
        : layout_(layout),
          used_(std::max<int64_t>(layout.heads, 1) * layout.width),
          row_elements_(layout.row_elements > 0 ? layout.row_elements : used_),
          buffer_(device, dtype, {layout.tokens, row_elements_}) {
        tensor_ = buffer_.tensor().slice(1, layout.first_element, layout.first_element + used_);
        if (layout.heads > 0) tensor_ = tensor_.split_last(layout.heads, layout.width);
    }
    Rows(const Device& device, DType dtype, const Layout& layout, const std::vector<double>& values)
        : Rows(device, dtype, layout) {
        // What lies between the rows is NaN: whoever reads it shows.
        std::vector<double> all(static_cast<size_t>(layout.tokens * row_elements_),
                                std::numeric_limits<double>::quiet_NaN());
        for (int64_t token = 0; token < layout.tokens; ++token)
            for (int64_t i = 0; i < used_; ++i) all[at(token, i)] = values[static_cast<size_t>(token * used_ + i)];
        buffer_.set(all);
    }
    operator const Tensor&() const { return tensor_; }
    // The elements of the rows; fails if anything between them is no longer NaN.
    std::vector<double> values() const {
        const std::vector<double> all = buffer_.values();
        std::vector<double> result;
        for (int64_t token = 0; token < layout_.tokens; ++token)
            for (int64_t i = 0; i < used_; ++i) result.push_back(all[at(token, i)]);
        size_t outside = 0;
        for (const double value : all) outside += std::isnan(value) ? 1 : 0;
        size_t inside = 0;
        for (const double value : result) inside += std::isnan(value) ? 1 : 0;
        EXPECT_EQ(outside - inside, all.size() - result.size()) << "written between the rows of " << tensor_.describe();
        return result;
    }

  private:
    size_t at(int64_t token, int64_t i) const {
        return static_cast<size_t>(token * row_elements_ + layout_.first_element + i);
    }
    Layout layout_;
    int64_t used_, row_elements_;
    Buffer buffer_;
    Tensor tensor_;
};

// Random inputs of all ops, rounded to the dtype.
struct Inputs {
    Inputs(DType dtype_, const Layout& layout_, uint64_t seed = 1) : dtype(dtype_), layout(layout_) {
        // With one column x * rstd is +-1 and dx the difference of equal numbers, unless eps dominates.
        eps = layout.width < 8 ? 16 : 1e-5;
        x = rounded(normals(layout.numel(), seed, 1.5, 0.1), dtype);
        dout = rounded(normals(layout.numel(), seed + 2), dtype);
        dresidual = rounded(normals(layout.numel(), seed + 3), dtype);
        weight = rounded(normals(layout.width, seed + 4, 0.3, 1), dtype);
        dweight = normals(layout.width, seed + 5);
        dweight = rounded(dweight, DType::f32);
    }
    DType dtype;
    Layout layout;
    double eps;
    std::vector<double> x, dout, dresidual, weight, dweight;
};

struct Normed {
    std::vector<double> out, rstd;
};
struct Gradients {
    std::vector<double> dx, dweight;
};

// The twins. `scalar` is fp64 for the exact result, or fp32 for the plain version, whose outputs are rounded to the
// dtype.
Normed forward_twin(const Inputs& in, DType scalar) {
    const Device cpu = Device::cpu();
    const int64_t N = in.layout.num_rows(), C = in.layout.width;
    const Buffer out(cpu, scalar, {N, C}), rstd(cpu, scalar, {N});
    const Buffer x(cpu, scalar, {N, C}, in.x), weight(cpu, scalar, {C}, in.weight);
    rmsnorm_forward(cpu, {.out = out, .rstd = rstd, .x = x, .weight = weight, .eps = in.eps});
    return {out.values(), rstd.values()};
}

Gradients backward_twin(const Inputs& in, DType scalar, bool has_residual, const std::vector<double>& rstds) {
    const Device cpu = Device::cpu();
    const int64_t N = in.layout.num_rows(), C = in.layout.width;
    const Buffer dx(cpu, scalar, {N, C}), dweight(cpu, scalar, {C}, in.dweight), dout(cpu, scalar, {N, C}, in.dout);
    const Buffer x(cpu, scalar, {N, C}, in.x), rstd(cpu, scalar, {N}, rstds), weight(cpu, scalar, {C}, in.weight);
    const Buffer dresidual(cpu, scalar, {N, C}, in.dresidual);
    const Buffer workspace(cpu, DType::u8, {static_cast<int64_t>(rmsnorm_backward_workspace(cpu, x))});
    rmsnorm_backward(cpu, {.dx = dx,
                           .dweight = dweight,
                           .dout = dout,
                           .x = x,
                           .rstd = rstd,
                           .weight = weight,
                           .dresidual = has_residual ? dresidual.tensor() : Tensor{},
                           .workspace = workspace});
    return {dx.values(), dweight.values()};
}

std::string describe(const Inputs& in) {
    return join(name_of(in.dtype), " tokens ", in.layout.tokens, " heads ", in.layout.heads, " width ", in.layout.width,
                " row_elements ", in.layout.row_elements, " first_element ", in.layout.first_element);
}

Buffer make_rstd(const Device& device, const Layout& layout, const std::vector<double>* values = nullptr) {
    if (layout.heads > 0)
        return values ? Buffer(device, DType::f32, {layout.tokens, layout.heads}, *values)
                      : Buffer(device, DType::f32, {layout.tokens, layout.heads});
    return values ? Buffer(device, DType::f32, {layout.tokens}, *values) : Buffer(device, DType::f32, {layout.tokens});
}

void check_forward(const Device& device, const Inputs& in, bool in_place) {
    SCOPED_TRACE("forward " + describe(in) + (in_place ? " in place" : ""));
    const Normed exact = forward_twin(in, DType::f64), plain = forward_twin(in, DType::f32);
    const Rows x(device, in.dtype, in.layout, in.x), other(device, in.dtype, in.layout);
    const Rows& out = in_place ? x : other;
    const Buffer rstd = make_rstd(device, in.layout), weight(device, in.dtype, {in.layout.width}, in.weight);
    rmsnorm_forward(device, {.out = out, .rstd = rstd, .x = x, .weight = weight, .eps = in.eps});
    EXPECT_TRUE(close(out.values(), exact.out, precision_bound(in.dtype, rounded(plain.out, in.dtype), exact.out)));
    EXPECT_TRUE(close(rstd.values(), exact.rstd, precision_bound(DType::f32, plain.rstd, exact.rstd)));
    if (!in_place) {
        EXPECT_TRUE(same(x.values(), in.x));
    }
}

enum class DxIs { own, dout, dresidual };

Gradients backward_cuda(const Device& device, const Inputs& in, bool has_residual, DxIs dx_is,
                        const std::vector<double>& rstds) {
    const Rows x(device, in.dtype, in.layout, in.x), dout(device, in.dtype, in.layout, in.dout);
    const Rows dresidual(device, in.dtype, in.layout, in.dresidual), own(device, in.dtype, in.layout);
    const Rows& dx = dx_is == DxIs::own ? own : dx_is == DxIs::dout ? dout : dresidual;
    const Buffer rstd = make_rstd(device, in.layout, &rstds), weight(device, in.dtype, {in.layout.width}, in.weight);
    const Buffer dweight(device, DType::f32, {in.layout.width}, in.dweight);
    const Tensor residual = has_residual ? static_cast<const Tensor&>(dresidual) : Tensor{};
    const Buffer workspace(device, DType::u8, {static_cast<int64_t>(rmsnorm_backward_workspace(device, x))});
    rmsnorm_backward(device, {.dx = dx,
                              .dweight = dweight,
                              .dout = dout,
                              .x = x,
                              .rstd = rstd,
                              .weight = weight,
                              .dresidual = residual,
                              .workspace = workspace});
    EXPECT_TRUE(same(x.values(), in.x));
    if (dx_is == DxIs::own) {
        const Buffer overwritten(device, DType::f32, {in.layout.width},
                                 std::vector<double>(in.dweight.size(), std::nan("")));
        rmsnorm_backward(device, {.dx = dx,
                                  .dweight = overwritten,
                                  .dout = dout,
                                  .x = x,
                                  .rstd = rstd,
                                  .weight = weight,
                                  .dresidual = residual,
                                  .workspace = workspace,
                                  .accumulate = false});
        std::vector<double> added = overwritten.values();
        for (size_t i = 0; i < added.size(); ++i) added[i] += in.dweight[i];
        EXPECT_TRUE(same(rounded(added, DType::f32), dweight.values()));
    }
    return {dx.values(), dweight.values()};
}

// dweight is a sum over rows whose terms cancel, and any other order of it errs by ulps of its terms, not of the sum:
// two fp32 ulps of the sum of their magnitudes, as a part of the sum's norm.
double cancellation(const Inputs& in, const std::vector<double>& rstds, const std::vector<double>& exact) {
    const size_t C = in.dweight.size();
    double magnitudes = 0, squares = 0;
    for (size_t c = 0; c < C; ++c) {
        double sum = std::abs(in.dweight[c]);
        for (size_t row = 0; row < rstds.size(); ++row)
            sum += std::abs(in.dout[row * C + c] * in.x[row * C + c] * rstds[row]);
        magnitudes += sum * sum;
        squares += exact[c] * exact[c];
    }
    return 2 * 0x1p-23 * std::sqrt(magnitudes / squares);
}

void check_backward(const Device& device, const Inputs& in, bool has_residual, DxIs dx_is) {
    SCOPED_TRACE("backward " + describe(in) + (has_residual ? " with dresidual" : "") + " alias " +
                 std::to_string(static_cast<int>(dx_is)));
    const std::vector<double> rstds = rounded(forward_twin(in, DType::f64).rstd, DType::f32);
    const Gradients exact = backward_twin(in, DType::f64, has_residual, rstds);
    const Gradients plain = backward_twin(in, DType::f32, has_residual, rstds);
    const Gradients actual = backward_cuda(device, in, has_residual, dx_is, rstds);
    EXPECT_TRUE(close(actual.dx, exact.dx, precision_bound(in.dtype, rounded(plain.dx, in.dtype), exact.dx)));
    EXPECT_TRUE(
        close(actual.dweight, exact.dweight,
              precision_bound(DType::f32, plain.dweight, exact.dweight) + cancellation(in, rstds, exact.dweight)));
}

void for_each_shape(const std::function<void(const Inputs&)>& check) {
    for (const int64_t C : {1, 7, 32, 100, 128, 768, 1000, 1024, 1536, 2048, 2056, 4096, 8192})
        for (const int64_t N : {1, 3, 33, 1000}) {
            if (N * C > 1100000) continue;
            for (const DType dtype : kDTypes) {
                check(Inputs(dtype, {.tokens = N, .width = C}));
                if (testing::Test::HasFailure()) return;
            }
        }
}

// Widths such that each compiled sharing of a row, and the scalar kernel, is met once: 4, 8, 16 and 32 lanes, 32 with
// three, four and eight vectors, a whole block; the last is no multiple of 16 bytes.
void for_each_instantiation(const std::function<void(const Inputs&)>& check) {
    for (const DType dtype : kDTypes) {
        const int64_t per_vector = 16 / size_of(dtype);
        for (const int64_t vectors : {7, 16, 24, 96, 120, 200, 300})
            check(Inputs(dtype, {.tokens = 5, .width = vectors * per_vector}));
        check(Inputs(dtype, {.tokens = 5, .width = 50}));
    }
}

// The query heads of a fused (N, (NH + 2 * NKV) * HS) buffer, and its key heads, which start further right.
void for_each_head_view(int64_t tokens, const std::function<void(const Inputs&)>& check) {
    constexpr int64_t NH = 6, NKV = 2;
    for (const int64_t HS : {32, 64, 96, 128, 256})
        for (const DType dtype : kDTypes) {
            const int64_t fused = (NH + 2 * NKV) * HS;
            check(Inputs(dtype, {.tokens = tokens, .heads = NH, .width = HS, .row_elements = fused}));
            check(Inputs(
                dtype, {.tokens = tokens, .heads = NKV, .width = HS, .row_elements = fused, .first_element = NH * HS}));
        }
}

// Rows of a width that fits vectors, at a stride or an offset that does not.
void for_each_misalignment(const std::function<void(const Inputs&)>& check) {
    for (const DType dtype : kDTypes)
        for (const int64_t C : {64, 768}) {
            check(Inputs(dtype, {.tokens = 9, .width = C, .row_elements = C + 1}));
            check(Inputs(dtype, {.tokens = 9, .width = C, .row_elements = C + 16, .first_element = 1}));
            check(Inputs(dtype, {.tokens = 9, .width = C, .row_elements = C + 16, .first_element = 8}));
        }
}

}  // namespace

TEST(RmsNormCuda, ForwardSmall) {
    INGOT_CUDA_OR_SKIP(device);
    for_each_instantiation([&](const Inputs& in) { check_forward(device, in, false); });
}

TEST(RmsNormCuda, BackwardSmall) {
    INGOT_CUDA_OR_SKIP(device);
    for_each_instantiation([&](const Inputs& in) { check_backward(device, in, true, DxIs::own); });
}

TEST(RmsNormCuda, ForwardShapes) {
    INGOT_CUDA_OR_SKIP(device);
    for_each_shape([&](const Inputs& in) {
        check_forward(device, in, false);
        check_forward(device, in, true);
    });
}

TEST(RmsNormCuda, BackwardShapes) {
    INGOT_CUDA_OR_SKIP(device);
    for_each_shape([&](const Inputs& in) {
        check_backward(device, in, false, DxIs::own);
        check_backward(device, in, true, DxIs::own);
        if (in.layout.tokens != 33) return;
        check_backward(device, in, false, DxIs::dout);
        check_backward(device, in, true, DxIs::dout);
        check_backward(device, in, true, DxIs::dresidual);
    });
}

TEST(RmsNormCuda, HeadViewsSmall) {
    INGOT_CUDA_OR_SKIP(device);
    for_each_head_view(3, [&](const Inputs& in) {
        check_forward(device, in, false);
        check_backward(device, in, false, DxIs::own);
    });
}

TEST(RmsNormCuda, HeadViews) {
    INGOT_CUDA_OR_SKIP(device);
    for_each_head_view(500, [&](const Inputs& in) {
        check_forward(device, in, true);
        check_backward(device, in, false, DxIs::dout);
        check_backward(device, in, true, DxIs::own);
    });
}

TEST(RmsNormCuda, MisalignedRowsSmall) {
    INGOT_CUDA_OR_SKIP(device);
    for_each_misalignment([&](const Inputs& in) {
        check_forward(device, in, false);
        check_backward(device, in, true, DxIs::dresidual);
    });
}

TEST(RmsNormCuda, ManyRowsPerBlock) {
    INGOT_CUDA_OR_SKIP(device);
    // More rows than the persistent grid of an H200 takes in one round, so that blocks loop, the last round partly
    // empty.
    const Layout layouts[] = {{.tokens = 26001, .width = 64},
                              {.tokens = 4301, .width = 768},
                              {.tokens = 2201, .width = 2048},
                              {.tokens = 1501, .width = 2560},
                              {.tokens = 701, .width = 1001}};
    for (const Layout& layout : layouts) check_backward(device, Inputs(DType::bf16, layout), true, DxIs::dresidual);
}

TEST(RmsNormCuda, SameBitsEveryTime) {
    INGOT_CUDA_OR_SKIP(device);
    const Layout layouts[] = {{.tokens = 6000, .width = 128},
                              {.tokens = 2500, .width = 768},
                              {.tokens = 500, .width = 1001},
                              {.tokens = 1500, .width = 2048},
                              {.tokens = 700, .width = 4096}};
    for (const Layout& layout : layouts) {
        const Inputs in(DType::bf16, layout);
        SCOPED_TRACE(describe(in));
        const std::vector<double> rstds = rounded(forward_twin(in, DType::f64).rstd, DType::f32);
        const Gradients first = backward_cuda(device, in, true, DxIs::dresidual, rstds);
        const Rows x(device, in.dtype, layout, in.x), dout(device, in.dtype, layout, in.dout);
        const Rows dresidual(device, in.dtype, layout, in.dresidual), dx(device, in.dtype, layout);
        const Buffer rstd = make_rstd(device, layout, &rstds), weight(device, in.dtype, {layout.width}, in.weight);
        Buffer dweight(device, DType::f32, {layout.width});
        const Buffer workspace(device, DType::u8, {static_cast<int64_t>(rmsnorm_backward_workspace(device, x))});
        for (int repeat = 1; repeat < 20; ++repeat) {
            dweight.set(in.dweight);
            rmsnorm_backward(device, {.dx = dx,
                                      .dweight = dweight,
                                      .dout = dout,
                                      .x = x,
                                      .rstd = rstd,
                                      .weight = weight,
                                      .dresidual = dresidual,
                                      .workspace = workspace});
            ASSERT_TRUE(same(dx.values(), first.dx));
            ASSERT_TRUE(same(dweight.values(), first.dweight));
        }
    }
}

TEST(RmsNormCuda, NanInARowStaysInItsRow) {
    INGOT_CUDA_OR_SKIP(device);
    Inputs in(DType::bf16, {.tokens = 6, .width = 768});
    in.x[768 * 2 + 5] = std::numeric_limits<double>::quiet_NaN();
    const Rows x(device, in.dtype, in.layout, in.x), out(device, in.dtype, in.layout);
    const Buffer rstd = make_rstd(device, in.layout), weight(device, in.dtype, {in.layout.width}, in.weight);
    rmsnorm_forward(device, {.out = out, .rstd = rstd, .x = x, .weight = weight, .eps = in.eps});
    const std::vector<double> values = out.values();
    for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(std::isnan(values[i]), i / 768 == 2) << i;
}

// The sum over no rows is 0, and it is written where it is asked for.
TEST(RmsNormCuda, NoRowsSmall) {
    INGOT_CUDA_OR_SKIP(device);
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

TEST(RmsNormCuda, RefusesFp64) {
    INGOT_CUDA_OR_SKIP(device);
    const Buffer x(device, DType::f64, {2, 8}), rstd(device, DType::f64, {2}), weight(device, DType::f64, {8});
    EXPECT_THROW(rmsnorm_forward(device, {.out = x, .rstd = rstd, .x = x, .weight = weight, .eps = 1e-5}), Error);
}

}  // namespace ingot::test
