// Products on CUDA against the CPU twin in double precision.
//
// Tolerance: as in precision_bound(), twice the error of the fp32 twin whose result is rounded to the dtype, plus
// two ulps of fp32 and two ulps of the dtype on one element. For 16-bit operands tensor cores add some 16 products at a
// time and cut off what falls below the largest one's last bit (Fasi et al. 2021, "Numerical behavior of NVIDIA tensor
// cores"), where the twin rounds: one more ulp of fp32 for each such addition.
// Seen to catch: the addend left out (beta 0); TF32 in place of fp32.
#include <cmath>
#include <limits>

#include "kernels/matmul/choices.h"
#include "kernels/matmul/matmul.h"
#include "kernels/matmul/study.h"
#include "tests/support/tensors.h"

namespace ingot::test {

namespace {

constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};

double bound(DType input, DType output, int64_t depth, const std::vector<double>& plain,
             const std::vector<double>& exact) {
    double squares = 0, largest = 0;
    for (const double value : exact) {
        squares += value * value;
        largest = std::max(largest, std::abs(value));
    }
    const double ulp = output == DType::bf16 ? 0x1p-7 : output == DType::f16 ? 0x1p-10 : 0;
    const double additions = input == DType::f32 ? 0 : static_cast<double>(depth / 16 + 1);
    return 2 * relative_error(plain, exact) + (2 + additions) * 0x1p-23 + 2 * ulp * largest / std::sqrt(squares);
}

// A (rows, columns) matrix, its rows `gap` elements apart. What lies between is NaN and must stay so.
class Matrix {
  public:
    Matrix(const Device& device, DType dtype, int64_t rows, int64_t columns, int64_t gap)
        : rows_(rows), columns_(columns), stride_(columns + gap), buffer_(device, dtype, {rows, stride_}) {
        tensor_ = buffer_.tensor().slice(1, 0, columns);
    }
    Matrix(const Device& device, DType dtype, int64_t rows, int64_t columns, int64_t gap,
           const std::vector<double>& values)
        : Matrix(device, dtype, rows, columns, gap) {
        std::vector<double> all(static_cast<size_t>(rows * stride_), std::numeric_limits<double>::quiet_NaN());
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < columns; ++c)
                all[static_cast<size_t>(r * stride_ + c)] = values[static_cast<size_t>(r * columns + c)];
        buffer_.set(all);
    }
    operator const Tensor&() const { return tensor_; }
    std::vector<double> values() const {
        const std::vector<double> all = buffer_.values();
        std::vector<double> result;
        for (int64_t r = 0; r < rows_; ++r)
            for (int64_t c = 0; c < stride_; ++c) {
                const double value = all[static_cast<size_t>(r * stride_ + c)];
                if (c < columns_)
                    result.push_back(value);
                else
                    EXPECT_TRUE(std::isnan(value)) << "written between the rows, at " << r << ", " << c;
            }
        return result;
    }

  private:
    int64_t rows_, columns_, stride_;
    Buffer buffer_;
    Tensor tensor_;
};

struct Problem {
    DType dtype;
    int64_t N, O, I, gap;
    std::vector<double> x, weight, residual, dout, dweight;

    Problem(DType dtype_, int64_t N_, int64_t O_, int64_t I_, int64_t gap_, uint64_t seed = 1)
        : dtype(dtype_), N(N_), O(O_), I(I_), gap(gap_) {
        x = rounded(normals(N * I, seed), dtype);
        weight = rounded(normals(O * I, seed + 1, 1 / std::sqrt(static_cast<double>(I))), dtype);
        residual = rounded(normals(N * O, seed + 2), dtype);
        dout = rounded(normals(N * O, seed + 3), dtype);
        dweight = rounded(normals(O * I, seed + 4), DType::f32);
    }
    std::string describe() const { return join(name_of(dtype), " N ", N, " O ", O, " I ", I, " gap ", gap); }
};

enum class Residual { none, separate, in_place };

std::vector<double> forward(const Device& device, DType dtype, const Problem& p, Residual residual) {
    const Matrix x(device, dtype, p.N, p.I, p.gap, p.x), weight(device, dtype, p.O, p.I, 0, p.weight);
    const Matrix addend(device, dtype, p.N, p.O, 2 * p.gap, p.residual);
    const Matrix own(device, dtype, p.N, p.O, p.gap);
    const Matrix& out = residual == Residual::in_place ? addend : own;
    const Tensor none;
    matmul_forward(device, {.out = out,
                            .x = x,
                            .weight = weight,
                            .residual = residual == Residual::none ? none : static_cast<const Tensor&>(addend)});
    return out.values();
}

std::vector<double> backward_input(const Device& device, DType dtype, const Problem& p) {
    const Matrix dout(device, dtype, p.N, p.O, p.gap, p.dout), weight(device, dtype, p.O, p.I, 0, p.weight);
    const Matrix dx(device, dtype, p.N, p.I, p.gap);
    matmul_backward_input(device, {.dx = dx, .dout = dout, .weight = weight});
    return dx.values();
}

std::vector<double> backward_weight(const Device& device, DType dtype, const Problem& p, bool accumulate) {
    const Matrix dout(device, dtype, p.N, p.O, p.gap, p.dout), x(device, dtype, p.N, p.I, p.gap, p.x);
    const DType out = accumulation_dtype(dtype);
    const Matrix dweight = accumulate ? Matrix(device, out, p.O, p.I, 0, p.dweight) : Matrix(device, out, p.O, p.I, 0);
    matmul_backward_weight(device, {.dweight = dweight, .dout = dout, .x = x, .accumulate = accumulate});
    return dweight.values();
}

void check_all(const Device& device, const Problem& p) {
    SCOPED_TRACE(p.describe());
    const Device cpu = Device::cpu();
    for (const Residual residual : {Residual::none, Residual::separate, Residual::in_place}) {
        SCOPED_TRACE("forward, residual " + std::to_string(static_cast<int>(residual)));
        const auto exact = forward(cpu, DType::f64, p, residual);
        const auto plain = rounded(forward(cpu, DType::f32, p, residual), p.dtype);
        EXPECT_TRUE(close(forward(device, p.dtype, p, residual), exact, bound(p.dtype, p.dtype, p.I, plain, exact)));
    }
    {
        SCOPED_TRACE("backward, input");
        const auto exact = backward_input(cpu, DType::f64, p);
        const auto plain = rounded(backward_input(cpu, DType::f32, p), p.dtype);
        EXPECT_TRUE(close(backward_input(device, p.dtype, p), exact, bound(p.dtype, p.dtype, p.O, plain, exact)));
    }
    for (const bool accumulate : {false, true}) {
        SCOPED_TRACE(accumulate ? "backward, weight, accumulated" : "backward, weight");
        const auto exact = backward_weight(cpu, DType::f64, p, accumulate);
        const auto plain = backward_weight(cpu, DType::f32, p, accumulate);
        EXPECT_TRUE(close(backward_weight(device, p.dtype, p, accumulate), exact,
                          bound(p.dtype, DType::f32, p.N, plain, exact)));
    }
}

}  // namespace

TEST(MatmulCuda, Small) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes) check_all(device, Problem(dtype, 16, 24, 40, 8));
}

TEST(MatmulCuda, Shapes) {
    INGOT_CUDA_OR_SKIP(device);
    const int64_t shapes[][3] = {{8, 8, 8},        {64, 128, 256},  {1, 64, 32},
                                 {1000, 768, 256}, {257, 320, 768}, {512, 1152, 64}};
    for (const auto& [N, O, I] : shapes)
        for (const DType dtype : kDTypes)
            for (const int64_t gap : {0, 8}) check_all(device, Problem(dtype, N, O, I, gap));
}

TEST(MatmulCuda, ShapesThatAreNoMultiplesOfEight) {
    INGOT_CUDA_OR_SKIP(device);
    const int64_t shapes[][3] = {{1, 1, 1}, {33, 65, 17}, {100, 50, 30}, {129, 7, 511}};
    for (const auto& [N, O, I] : shapes)
        for (const DType dtype : kDTypes)
            for (const int64_t gap : {0, 3}) check_all(device, Problem(dtype, N, O, I, gap));
}

namespace {

// The product with a bias in its epilogue, and the bias's gradient.
void check_bias(const Device& device, const Problem& p) {
    SCOPED_TRACE(p.describe());
    const Device cpu = Device::cpu();
    const std::vector<double> terms = rounded(normals(p.O, 9), p.dtype);
    const auto with_bias = [&](const Device& on, DType dtype, Residual residual) {
        const Matrix x(on, dtype, p.N, p.I, p.gap, p.x), weight(on, dtype, p.O, p.I, 0, p.weight);
        const Matrix addend(on, dtype, p.N, p.O, 0, p.residual), out(on, dtype, p.N, p.O, p.gap);
        const Buffer bias(on, dtype, {p.O}, terms);
        const Tensor none;
        matmul_forward(on, {.out = out,
                            .x = x,
                            .weight = weight,
                            .residual = residual == Residual::none ? none : static_cast<const Tensor&>(addend),
                            .bias = bias});
        return out.values();
    };
    for (const Residual residual : {Residual::none, Residual::separate}) {
        const auto exact = with_bias(cpu, DType::f64, residual);
        const auto plain = rounded(with_bias(cpu, DType::f32, residual), p.dtype);
        EXPECT_TRUE(close(with_bias(device, p.dtype, residual), exact, bound(p.dtype, p.dtype, p.I, plain, exact)));
    }
    const auto backward = [&](const Device& on, DType dtype, bool accumulate) {
        const Matrix dout(on, dtype, p.N, p.O, p.gap, p.dout);
        const Buffer dbias(on, accumulation_dtype(dtype), {p.O}, terms);
        const Buffer workspace(on, DType::u8, {static_cast<int64_t>(matmul_backward_bias_workspace(on, p.O))});
        matmul_backward_bias(on, {.dbias = dbias, .dout = dout, .workspace = workspace, .accumulate = accumulate});
        return dbias.values();
    };
    for (const bool accumulate : {false, true}) {
        const auto exact = backward(cpu, DType::f64, accumulate), plain = backward(cpu, DType::f32, accumulate);
        const auto first = backward(device, p.dtype, accumulate);
        EXPECT_TRUE(close(first, exact, bound(DType::f32, DType::f32, p.N, plain, exact)));
        EXPECT_TRUE(same(backward(device, p.dtype, accumulate), first)) << "other bits the second time";
    }
}

}  // namespace

TEST(MatmulCuda, BiasSmall) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes) check_bias(device, Problem(dtype, 16, 24, 40, 8));
}

TEST(MatmulCuda, Bias) {
    INGOT_CUDA_OR_SKIP(device);
    const int64_t shapes[][3] = {{1, 8, 8},        {64, 1152, 256}, {1000, 768, 64},
                                 {8192, 2048, 64}, {33, 65, 17},    {70, 1, 7}};
    for (const auto& [N, O, I] : shapes)
        for (const DType dtype : kDTypes)
            for (const int64_t gap : {0, 3, 8}) check_bias(device, Problem(dtype, N, O, I, gap));
}

TEST(MatmulCuda, WeightGradientAccumulatesInFp32) {
    INGOT_CUDA_OR_SKIP(device);
    constexpr int64_t N = 512, O = 256, I = 128, kMicroSteps = 4;
    for (const DType dtype : {DType::bf16, DType::f16}) {
        const Buffer dweight(device, DType::f32, {O, I}, std::vector<double>(static_cast<size_t>(O * I), 0));
        const Buffer exact(Device::cpu(), DType::f64, {O, I}, std::vector<double>(static_cast<size_t>(O * I), 0));
        for (int64_t micro_step = 0; micro_step < kMicroSteps; ++micro_step) {
            const Problem p(dtype, N, O, I, 0, static_cast<uint64_t>(10 * micro_step + 1));
            for (const bool is_exact : {false, true}) {
                const Device where = is_exact ? Device::cpu() : device;
                const DType scalar = is_exact ? DType::f64 : dtype;
                const Buffer dout(where, scalar, {N, O}, p.dout), x(where, scalar, {N, I}, p.x);
                matmul_backward_weight(where, {.dweight = is_exact ? exact : dweight, .dout = dout, .x = x});
            }
        }
        // One rounding to bf16 or fp16 anywhere on the way would cost 1e-3 or 1e-4.
        EXPECT_TRUE(close(dweight.values(), exact.values(), (N / 16) * kMicroSteps * 0x1p-23)) << name_of(dtype);
    }
}

TEST(MatmulCuda, SameBitsEveryTime) {
    INGOT_CUDA_OR_SKIP(device);
    // Few output tiles and a long sum: where a library would like to split K.
    for (const DType dtype : kDTypes) {
        const Problem p(dtype, 8192, 64, 128, 0);
        const auto first = backward_weight(device, dtype, p, true);
        for (int repeat = 1; repeat < 10; ++repeat)
            ASSERT_TRUE(same(backward_weight(device, dtype, p, true), first)) << name_of(dtype);
    }
}

TEST(MatmulCuda, NanPropagatesAlongItsRow) {
    INGOT_CUDA_OR_SKIP(device);
    Problem p(DType::bf16, 16, 24, 32, 0);
    p.x[5 * 32 + 3] = std::numeric_limits<double>::quiet_NaN();
    const std::vector<double> out = forward(device, p.dtype, p, Residual::none);
    for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(std::isnan(out[i]), i / 24 == 5) << i;
}

// ---- Choices of algorithms. They belong to a device, so these tests open their own. ----

namespace {

std::string describe(const std::vector<MatmulChoice>& choices) {
    std::string text;
    for (const MatmulChoice& choice : choices) text += choice.product + ": " + choice.algorithm + "\n";
    return text;
}

// All products of check_all(), seen for the first time; what they compute is lost where they are timed.
void see_all(const Device& device, const Problem& p) {
    for (const Residual residual : {Residual::none, Residual::separate, Residual::in_place})
        forward(device, p.dtype, p, residual);
    backward_input(device, p.dtype, p);
    for (const bool accumulate : {false, true}) backward_weight(device, p.dtype, p, accumulate);
}
constexpr int64_t kProducts = 6;

}  // namespace

TEST(MatmulCuda, TimedChoicesAreRight) {
    INGOT_CUDA_OR_SKIP(shared);
    (void)shared;
    for (const DType dtype : kDTypes)
        for (const int64_t gap : {0, 8}) {
            const Device device = Device::cuda(0);
            const Problem p(dtype, 4096, 128, 256, gap);
            set_matmul_tuning(device, MatmulTuning::timed);
            see_all(device, p);
            set_matmul_tuning(device, MatmulTuning::first_choice);
            const MatmulCounts counts = matmul_counts(device);
            EXPECT_EQ(counts.timed, kProducts);
            // Half a second for each in all, with kernels loaded for the first time.
            EXPECT_LT(counts.tuning_seconds, kProducts * (kMatmulTuningSeconds + 0.5));
            check_all(device, p);
            EXPECT_EQ(matmul_counts(device).timed, kProducts);
            EXPECT_EQ(matmul_counts(device).first_choice, 0);
        }
}

TEST(MatmulCuda, TimedChoicesGiveTheSameBitsEveryTime) {
    INGOT_CUDA_OR_SKIP(shared);
    (void)shared;
    const Device device = Device::cuda(0);
    for (const DType dtype : kDTypes) {
        const Problem p(dtype, 16384, 64, 128, 0);
        set_matmul_tuning(device, MatmulTuning::timed);
        backward_weight(device, dtype, p, true);
        const auto first = backward_weight(device, dtype, p, true);
        for (int repeat = 1; repeat < 10; ++repeat)
            ASSERT_TRUE(same(backward_weight(device, dtype, p, true), first)) << name_of(dtype);
    }
}

TEST(MatmulCuda, RecordedChoicesAreTakenUpAgain) {
    INGOT_CUDA_OR_SKIP(shared);
    (void)shared;
    const Problem p(DType::bf16, 8192, 64, 128, 0);
    const Device timed = Device::cuda(0), plain = Device::cuda(0);
    set_matmul_tuning(timed, MatmulTuning::timed);
    see_all(timed, p);
    see_all(plain, p);
    const std::vector<MatmulChoice> record = matmul_choices(timed), others = matmul_choices(plain);
    ASSERT_EQ(record.size(), static_cast<size_t>(kProducts));
    for (const MatmulChoice& choice : record) EXPECT_EQ(choice.source, MatmulSource::timed);
    for (const MatmulChoice& choice : others) EXPECT_EQ(choice.source, MatmulSource::first_choice);

    const Device again = Device::cuda(0);
    prefer_matmul_choices(again, record, MatmulSource::record);
    prefer_matmul_choices(again, others, MatmulSource::cache);
    set_matmul_tuning(again, MatmulTuning::timed);
    // Nothing is timed, so that the operands keep their values from the first call on.
    for (const bool accumulate : {false, true})
        EXPECT_TRUE(
            same(backward_weight(again, p.dtype, p, accumulate), backward_weight(timed, p.dtype, p, accumulate)));
    see_all(again, p);
    EXPECT_EQ(describe(matmul_choices(again)), describe(record));
    const MatmulCounts counts = matmul_counts(again);
    EXPECT_EQ(counts.from_record, kProducts);
    EXPECT_EQ(counts.from_cache + counts.timed + counts.first_choice + counts.refused, 0);

    // A first choice is taken up again like any other: it is what the library accepts.
    const Device third = Device::cuda(0);
    prefer_matmul_choices(third, others, MatmulSource::cache);
    see_all(third, p);
    EXPECT_EQ(describe(matmul_choices(third)), describe(others));
    EXPECT_EQ(matmul_counts(third).from_cache, kProducts);
    EXPECT_EQ(matmul_counts(third).refused, 0);
}

TEST(MatmulCuda, ChoicesThatCannotBeTakenAreRefused) {
    INGOT_CUDA_OR_SKIP(shared);
    (void)shared;
    const Problem p(DType::bf16, 256, 64, 128, 0);
    const Device first = Device::cuda(0), device = Device::cuda(0);
    see_all(first, p);
    std::vector<MatmulChoice> bad = matmul_choices(first);
    const std::string foreign = bad[1].algorithm;
    bad[0].algorithm = foreign;                // another product's
    bad[1].algorithm = std::string(128, 'f');  // no seal
    bad[2].algorithm = "";
    bad[3].algorithm[17] = bad[3].algorithm[17] == 'a' ? 'b' : 'a';
    bad[4].algorithm = std::string(128, 'f') + "-" + std::string(16, '0');
    MatmulAlgorithm bytes;
    ASSERT_TRUE(unseal_algorithm(matmul_machine(first), bad[5].product, bad[5].algorithm, &bytes));
    bad[5].algorithm = seal_algorithm("another GPU, cuBLASLt 1.0.0", bad[5].product, bytes);
    prefer_matmul_choices(device, bad, MatmulSource::record);
    check_all(device, p);
    const MatmulCounts counts = matmul_counts(device);
    EXPECT_EQ(counts.refused, kProducts);
    EXPECT_EQ(counts.first_choice, kProducts);
    EXPECT_EQ(describe(matmul_choices(device)), describe(matmul_choices(first)));
}

TEST(MatmulCuda, AStudyComparesTheChoices) {
    INGOT_CUDA_OR_SKIP(device);
    const Buffer x(device, DType::bf16, {8192, 256}), dout(device, DType::bf16, {8192, 128});
    const Buffer dweight(device, DType::f32, {128, 256});
    const Product product = product_of(MatmulBackwardWeight{.dweight = dweight, .dout = dout, .x = x});
    for (const double search_seconds : {0.0, 1.0}) {
        const MatmulStudy study = study_matmul(device, product, 0.05, search_seconds);
        for (const MatmulStudy::Entry& entry : {study.first, study.tuned, study.best}) {
            EXPECT_NE(entry.algorithm, "");
            EXPECT_GT(entry.seconds, 0);
            EXPECT_GE(entry.seconds, study.best.seconds);
        }
        EXPECT_EQ(study.num_searched > 0, search_seconds > 0);
    }
}

}  // namespace ingot::test
