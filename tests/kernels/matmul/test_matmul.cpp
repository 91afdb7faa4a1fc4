// Seen to catch: lda of the untransposed shape in the weight's product; accumulate ignored; addend's stride taken as
// C's.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>

#include "kernels/matmul/matmul.h"
#include "tests/support/finite_difference.h"
#include "tests/support/tensors.h"

namespace ingot::test {
namespace {

const Device cpu = Device::cpu();

struct Shape {
    int64_t N, I, O;
};
const Shape kShapes[] = {{1, 1, 1}, {3, 5, 7}, {1, 9, 4}, {6, 1, 2}, {17, 33, 65}, {300, 3, 530}, {257, 513, 2}};

std::vector<double> transposed(const std::vector<double>& a, int64_t rows, int64_t columns) {
    std::vector<double> result(a.size());
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c)
            result[static_cast<size_t>(c * rows + r)] = a[static_cast<size_t>(r * columns + c)];
    return result;
}

// a (rows, inner) b (inner, columns) + start, by the definition.
std::vector<double> product(const std::vector<double>& a, const std::vector<double>& b, int64_t rows, int64_t inner,
                            int64_t columns, std::vector<double> start = {}) {
    start.resize(static_cast<size_t>(rows * columns));
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < inner; ++k)
            for (int64_t c = 0; c < columns; ++c)
                start[static_cast<size_t>(r * columns + c)] +=
                    a[static_cast<size_t>(r * inner + k)] * b[static_cast<size_t>(k * columns + c)];
    return start;
}

struct Results {
    std::vector<double> out, with_residual, dx, overwritten, accumulated;
};

struct Values {
    explicit Values(const Shape& s)
        : x(rounded(normals(s.N * s.I, 1), DType::f32)),
          weight(rounded(normals(s.O * s.I, 2), DType::f32)),
          residual(rounded(normals(s.N * s.O, 3), DType::f32)),
          dout(rounded(normals(s.N * s.O, 4), DType::f32)),
          dweight(rounded(normals(s.O * s.I, 5), DType::f32)) {}
    std::vector<double> x, weight, residual, dout, dweight;
};

Results run(const Shape& s, DType dtype) {
    const Values values(s);
    const Buffer x(cpu, dtype, {s.N, s.I}, values.x), weight(cpu, dtype, {s.O, s.I}, values.weight);
    const Buffer residual(cpu, dtype, {s.N, s.O}, values.residual), dout(cpu, dtype, {s.N, s.O}, values.dout);
    const Buffer out(cpu, dtype, {s.N, s.O}), sum(cpu, dtype, {s.N, s.O}), dx(cpu, dtype, {s.N, s.I});
    const Buffer overwritten(cpu, dtype, {s.O, s.I}), accumulated(cpu, dtype, {s.O, s.I}, values.dweight);
    matmul_forward(cpu, {.out = out, .x = x, .weight = weight, .residual = {}});
    matmul_forward(cpu, {.out = sum, .x = x, .weight = weight, .residual = residual});
    matmul_forward(cpu, {.out = residual, .x = x, .weight = weight, .residual = residual});
    EXPECT_TRUE(same(residual.values(), sum.values())) << "out == residual";
    matmul_backward_input(cpu, {.dx = dx, .dout = dout, .weight = weight});
    matmul_backward_weight(cpu, {.dweight = overwritten, .dout = dout, .x = x, .accumulate = false});
    matmul_backward_weight(cpu, {.dweight = accumulated, .dout = dout, .x = x});
    return {out.values(), sum.values(), dx.values(), overwritten.values(), accumulated.values()};
}

// Sums of K products in one precision: the relative error in norm is below sqrt(K) ulp for random signs; 4 is for the
// residual and for short sums.
TEST(Matmul, AgreesWithTheDefinition) {
    for (const Shape& s : kShapes) {
        const Values v(s);
        for (const auto& [dtype, ulp] : {std::pair{DType::f64, 0x1p-53}, {DType::f32, 0x1p-24}}) {
            const Results results = run(s, dtype);
            const auto bound = [&, ulp = ulp](int64_t K) { return (4 + std::sqrt(static_cast<double>(K))) * ulp; };
            const std::vector<double> weight_t = transposed(v.weight, s.O, s.I), dout_t = transposed(v.dout, s.N, s.O);
            EXPECT_TRUE(close(results.out, product(v.x, weight_t, s.N, s.I, s.O), bound(s.I)));
            EXPECT_TRUE(close(results.with_residual, product(v.x, weight_t, s.N, s.I, s.O, v.residual), bound(s.I)));
            EXPECT_TRUE(close(results.dx, product(v.dout, v.weight, s.N, s.O, s.I), bound(s.O)));
            EXPECT_TRUE(close(results.overwritten, product(dout_t, v.x, s.O, s.N, s.I), bound(s.N)));
            EXPECT_TRUE(close(results.accumulated, product(dout_t, v.x, s.O, s.N, s.I, v.dweight), bound(s.N)));
        }
    }
}

TEST(Matmul, GradientsAgreeWithFiniteDifferences) {
    const Shape s = {4, 6, 5};
    const std::vector<double> w = normals(s.N * s.O, 1);
    const Buffer x(cpu, DType::f64, {s.N, s.I}, normals(s.N * s.I, 2));
    const Buffer weight(cpu, DType::f64, {s.O, s.I}, normals(s.O * s.I, 3));
    const Buffer residual(cpu, DType::f64, {s.N, s.O}, normals(s.N * s.O, 4)), dout(cpu, DType::f64, {s.N, s.O}, w);
    const Buffer out(cpu, DType::f64, {s.N, s.O}), dx(cpu, DType::f64, {s.N, s.I}),
        dweight(cpu, DType::f64, {s.O, s.I});
    matmul_backward_input(cpu, {.dx = dx, .dout = dout, .weight = weight});
    matmul_backward_weight(cpu, {.dweight = dweight, .dout = dout, .x = x, .accumulate = false});
    const auto loss = [&] {
        matmul_forward(cpu, {.out = out, .x = x, .weight = weight, .residual = residual});
        double sum = 0;
        for (size_t i = 0; i < w.size(); ++i) sum += w[i] * out.tensor().get<double>()[i];
        return sum;
    };
    check_gradients(loss, {{"x", x, dx.values()}, {"weight", weight, dweight.values()}, {"residual", residual, w}});
}

// Bounds as above: of I terms forward, and of N terms in the bias's gradient.
TEST(Matmul, Bias) {
    for (const Shape& s : kShapes)
        for (const auto& [dtype, ulp] : {std::pair{DType::f64, 0x1p-53}, {DType::f32, 0x1p-24}}) {
            const double bound = (4 + std::sqrt(static_cast<double>(std::max(s.I, s.N)))) * ulp;
            const Values v(s);
            const std::vector<double> terms = rounded(normals(s.O, 6), DType::f32);
            const Buffer x(cpu, dtype, {s.N, s.I}, v.x), weight(cpu, dtype, {s.O, s.I}, v.weight);
            const Buffer residual(cpu, dtype, {s.N, s.O}, v.residual), bias(cpu, dtype, {s.O}, terms);
            const Buffer out(cpu, dtype, {s.N, s.O}), sum(cpu, dtype, {s.N, s.O});
            matmul_forward(cpu, {.out = out, .x = x, .weight = weight, .bias = bias});
            matmul_forward(cpu, {.out = sum, .x = x, .weight = weight, .residual = residual, .bias = bias});
            std::vector<double> start(v.residual.size()), both = v.residual, columns(terms.size());
            for (size_t i = 0; i < start.size(); ++i) {
                const size_t column = i % terms.size();
                start[i] = terms[column];
                both[i] += terms[column];
                columns[column] += v.dout[i];
            }
            const std::vector<double> weight_t = transposed(v.weight, s.O, s.I);
            EXPECT_TRUE(close(out.values(), product(v.x, weight_t, s.N, s.I, s.O, start), bound));
            EXPECT_TRUE(close(sum.values(), product(v.x, weight_t, s.N, s.I, s.O, both), bound));

            // dout lies in a wider buffer.
            std::vector<double> wide(static_cast<size_t>(s.N * (s.O + 3)), std::nan(""));
            for (size_t i = 0; i < v.dout.size(); ++i)
                wide[i / terms.size() * (terms.size() + 3) + i % terms.size()] = v.dout[i];
            const Buffer dout(cpu, dtype, {s.N, s.O + 3}, wide), dbias(cpu, dtype, {s.O}, terms);
            const Buffer workspace(cpu, DType::u8, {static_cast<int64_t>(matmul_backward_bias_workspace(cpu, s.O))});
            const auto backward = [&](bool accumulate) {
                matmul_backward_bias(cpu, {.dbias = dbias,
                                           .dout = dout.tensor().slice(1, 0, s.O),
                                           .workspace = workspace,
                                           .accumulate = accumulate});
            };
            std::vector<double> added = terms;
            for (size_t i = 0; i < added.size(); ++i) added[i] += columns[i];
            backward(true);
            EXPECT_TRUE(close(dbias.values(), added, bound));
            backward(false);
            EXPECT_TRUE(close(dbias.values(), columns, bound));
        }
}

// Every operand is a column range of a wider buffer; what lies beside the result is untouched.
TEST(Matmul, RowsMayBeStrided) {
    const Shape s = {19, 11, 13};
    const Values v(s);
    const Results expected = run(s, DType::f64);
    const double mark = 77;
    const auto widen = [&](const std::vector<double>& values, int64_t rows, int64_t columns, int64_t before) {
        std::vector<double> wide(static_cast<size_t>(rows * (columns + 5)), mark);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < columns; ++c)
                wide[static_cast<size_t>(r * (columns + 5) + before + c)] =
                    values[static_cast<size_t>(r * columns + c)];
        return wide;
    };
    const Buffer x(cpu, DType::f64, {s.N, s.I + 5}, widen(v.x, s.N, s.I, 1));
    const Buffer weight(cpu, DType::f64, {s.O, s.I + 5}, widen(v.weight, s.O, s.I, 2));
    const Buffer residual(cpu, DType::f64, {s.N, s.O + 5}, widen(v.residual, s.N, s.O, 3));
    const Buffer dout(cpu, DType::f64, {s.N, s.O + 5}, widen(v.dout, s.N, s.O, 4));
    const auto marked = [&](int64_t rows, int64_t columns) {
        return std::vector<double>(static_cast<size_t>(rows * (columns + 5)), mark);
    };
    const Buffer out(cpu, DType::f64, {s.N, s.O + 5}, marked(s.N, s.O));
    const Buffer dx(cpu, DType::f64, {s.N, s.I + 5}, marked(s.N, s.I));
    const Buffer dweight(cpu, DType::f64, {s.O, s.I + 5}, widen(v.dweight, s.O, s.I, 2));
    const auto columns = [](const Buffer& buffer, int64_t begin, int64_t count) {
        return buffer.tensor().slice(1, begin, begin + count);
    };
    matmul_forward(cpu, {.out = columns(out, 1, s.O),
                         .x = columns(x, 1, s.I),
                         .weight = columns(weight, 2, s.I),
                         .residual = columns(residual, 3, s.O)});
    matmul_backward_input(
        cpu, {.dx = columns(dx, 2, s.I), .dout = columns(dout, 4, s.O), .weight = columns(weight, 2, s.I)});
    matmul_backward_weight(
        cpu, {.dweight = columns(dweight, 2, s.I), .dout = columns(dout, 4, s.O), .x = columns(x, 1, s.I)});
    EXPECT_TRUE(close(out.values(), widen(expected.with_residual, s.N, s.O, 1), 1e-15));
    EXPECT_TRUE(close(dx.values(), widen(expected.dx, s.N, s.I, 2), 1e-15));
    EXPECT_TRUE(close(dweight.values(), widen(expected.accumulated, s.O, s.I, 2), 1e-15));
}

TEST(Matmul, BitsDoNotDependOnThreads) {
    const int threads = omp_get_max_threads();
    // The last one is a single block in every direction.
    for (const Shape& s : {Shape{530, 40, 1030}, Shape{1100, 300, 280}, Shape{100, 60, 200}})
        for (const DType dtype : {DType::f32, DType::f64}) {
            omp_set_num_threads(1);
            const Results one = run(s, dtype);
            for (const int num_threads : {2, 3}) {
                omp_set_num_threads(num_threads);
                const Results more = run(s, dtype);
                EXPECT_TRUE(same(more.with_residual, one.with_residual));
                EXPECT_TRUE(same(more.dx, one.dx));
                EXPECT_TRUE(same(more.accumulated, one.accumulated));
            }
        }
    omp_set_num_threads(threads);
}

// ctest runs each test in a process of its own, so this is that process's first BLAS call. Seen to catch: an OpenBLAS
// with OpenMP that is told to use one thread, and tells OpenMP, which leaves one thread to everything.
TEST(Matmul, LeavesTheNumberOfThreadsAlone) {
    const int threads = omp_get_max_threads();
    omp_set_num_threads(3);
    const Buffer x(cpu, DType::f32, {2, 2}, {1, 2, 3, 4}), weight(cpu, DType::f32, {2, 2}, {1, 0, 0, 1});
    const Buffer out(cpu, DType::f32, {2, 2});
    matmul_forward(cpu, {.out = out, .x = x, .weight = weight});
    EXPECT_TRUE(same(out.values(), {1, 2, 3, 4}));
    EXPECT_EQ(omp_get_max_threads(), 3);
    omp_set_num_threads(threads);
}

TEST(Matmul, Refuses) {
    const Buffer x(cpu, DType::f32, {4, 3}), weight(cpu, DType::f32, {5, 3}), out(cpu, DType::f32, {4, 5});
    const Buffer wide(cpu, DType::f64, {4, 5}), wrong(cpu, DType::f32, {5, 4}), half(cpu, DType::bf16, {4, 3});
    const Buffer half_weight(cpu, DType::bf16, {5, 3}), half_out(cpu, DType::bf16, {4, 5});
    EXPECT_THROW(matmul_forward(cpu, {.out = wrong, .x = x, .weight = weight, .residual = {}}), Error);
    EXPECT_THROW(matmul_forward(cpu, {.out = wide, .x = x, .weight = weight, .residual = {}}), Error);
    EXPECT_THROW(matmul_forward(cpu, {.out = out, .x = x, .weight = weight, .residual = wrong}), Error);
    EXPECT_THROW(matmul_forward(cpu, {.out = out, .x = x, .weight = out, .residual = {}}), Error);
    EXPECT_THROW(matmul_forward(cpu, {.out = half_out, .x = half, .weight = half_weight, .residual = {}}), Error);
    EXPECT_THROW(matmul_backward_input(cpu, {.dx = out, .dout = out, .weight = weight}), Error);
    EXPECT_THROW(matmul_backward_weight(cpu, {.dweight = x, .dout = out, .x = x}), Error);
    const Buffer long_bias(cpu, DType::f32, {6}), wide_bias(cpu, DType::f64, {5}), small(cpu, DType::u8, {8});
    EXPECT_THROW(matmul_forward(cpu, {.out = out, .x = x, .weight = weight, .bias = long_bias}), Error);
    EXPECT_THROW(matmul_forward(cpu, {.out = out, .x = x, .weight = weight, .bias = wide_bias}), Error);
    EXPECT_THROW(matmul_backward_bias(cpu, {.dbias = long_bias, .dout = out, .workspace = small}), Error);
    Tensor column = x;
    column.stride[1] = 2;
    EXPECT_THROW(matmul_forward(cpu, {.out = out, .x = column, .weight = weight, .residual = {}}), Error);
}

}  // namespace
}  // namespace ingot::test
