// GEMMs against their definition on the CPU, and on CUDA against the CPU twin in double precision.
//
// Tolerance: as in check_outputs(), and more for long sums. On the CPU the relative error in norm of a sum of K terms
// is below sqrt(K) units in the last place for random signs. On CUDA, for 16-bit operands, tensor cores add some 16
// products at a time and cut off what falls below the largest one's last bit (Fasi et al. 2021, "Numerical behavior of
// NVIDIA tensor cores"), where the twin rounds: one more ulp of fp32 for each such addition.
//
// Seen to catch: lda of the untransposed shape in the GEMM of the weight's gradient; accumulate ignored; the addend's
// stride taken as C's; the addend left out (beta 0); TF32 in place of fp32.
#include "kernels/matmul/matmul.h"

#include <omp.h>

#include <cmath>
#include <limits>

#include "kernels/matmul/choices.h"
#include "kernels/matmul/study.h"
#include "tests/support/on_device.h"

namespace ingot::test {
namespace {

INGOT_ON_EACH_DEVICE(Matmul);

const Device cpu = Device::cpu();

struct Case {
    Case(DType dtype, int64_t N, int64_t O, int64_t I, int64_t gap = 0, uint64_t seed = 1)
        : dtype(dtype),
          N(N),
          O(O),
          I(I),
          gap(gap),
          x(rounded(normals(N * I, seed), dtype)),
          weight(rounded(normals(O * I, seed + 1, 1 / std::sqrt(static_cast<double>(I))), dtype)),
          residual(rounded(normals(N * O, seed + 2), dtype)),
          dout(rounded(normals(N * O, seed + 3), dtype)),
          dweight(rounded(normals(O * I, seed + 4), accumulation_dtype(dtype))),
          bias(rounded(normals(O, seed + 8), dtype)) {}
    std::string describe() const { return join(name_of(dtype), " N ", N, " O ", O, " I ", I, " gap ", gap); }
    // Operand number i of a GEMM begins `first * i` columns into its buffer, whose rows have a gap.
    Margins margins(int64_t i) const { return {first * i, gap}; }
    // Weights have gaps where columns are shifted.
    Margins weight_margins() const { return {2 * first, first > 0 ? gap : 0}; }
    DType dtype;
    int64_t N, O, I, gap, first = 0;
    std::vector<double> x, weight, residual, dout, dweight, bias;
};

// ---- By the definition ----

std::vector<double> transposed(const std::vector<double>& a, int64_t rows, int64_t columns) {
    std::vector<double> result(a.size());
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c)
            result[static_cast<size_t>(c * rows + r)] = a[static_cast<size_t>(r * columns + c)];
    return result;
}

// a (rows, inner) b (inner, columns) + start.
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

Outputs definition(const Case& c) {
    const std::vector<double> weight_t = transposed(c.weight, c.O, c.I), dout_t = transposed(c.dout, c.N, c.O);
    return {{"out", {}, product(c.x, weight_t, c.N, c.I, c.O)},
            {"out with residual", {}, product(c.x, weight_t, c.N, c.I, c.O, c.residual)},
            {"out over residual", {}, product(c.x, weight_t, c.N, c.I, c.O, c.residual)},
            {"dx", {}, product(c.dout, c.weight, c.N, c.O, c.I)},
            {"dweight", {}, product(dout_t, c.x, c.O, c.N, c.I)},
            {"dweight, accumulated", {}, product(dout_t, c.x, c.O, c.N, c.I, c.dweight)}};
}

Outputs bias_definition(const Case& c) {
    const size_t O = c.bias.size();
    std::vector<double> start(c.residual.size()), both = c.residual, dbias(O), added = c.bias;
    for (size_t i = 0; i < start.size(); ++i) {
        start[i] = c.bias[i % O];
        both[i] += c.bias[i % O];
        dbias[i % O] += c.dout[i];
    }
    for (size_t i = 0; i < O; ++i) added[i] += dbias[i];
    const std::vector<double> weight_t = transposed(c.weight, c.O, c.I);
    return {{"out", {}, product(c.x, weight_t, c.N, c.I, c.O, start)},
            {"out with residual", {}, product(c.x, weight_t, c.N, c.I, c.O, both)},
            {"dbias", {}, dbias},
            {"dbias, accumulated", {}, added}};
}

// ---- On a device ----

double slack(const Device& device, DType dtype, int64_t num_terms) {
    const auto terms = static_cast<double>(num_terms);
    if (device.is_cpu()) return std::sqrt(terms) * (dtype == DType::f64 ? 0x1p-53 : 0x1p-24);
    return dtype == DType::f32 ? 0 : std::floor(terms / 16 + 1) * 0x1p-23;
}

enum class Residual { none, separate, in_place };

std::vector<double> forward(const Case& c, const Device& device, DType dtype, Residual residual,
                            bool has_bias = false) {
    const Buffer x(c.margins(1), device, dtype, {c.N, c.I}, c.x);
    const Buffer weight(c.weight_margins(), device, dtype, {c.O, c.I}, c.weight);
    const Buffer addend(Margins{3 * c.first, 2 * c.gap}, device, dtype, {c.N, c.O}, c.residual);
    const Buffer own(c.margins(1), device, dtype, {c.N, c.O}), bias(device, dtype, {c.O}, c.bias);
    const Buffer& out = residual == Residual::in_place ? addend : own;
    matmul_forward(device, {.out = out,
                            .x = x,
                            .weight = weight,
                            .residual = residual == Residual::none ? Tensor{} : addend.tensor(),
                            .bias = has_bias ? bias.tensor() : Tensor{}});
    return out.values();
}

std::vector<double> backward_input(const Case& c, const Device& device, DType dtype) {
    const Buffer dout(c.margins(4), device, dtype, {c.N, c.O}, c.dout);
    const Buffer weight(c.weight_margins(), device, dtype, {c.O, c.I}, c.weight);
    const Buffer dx(c.margins(2), device, dtype, {c.N, c.I});
    matmul_backward_input(device, {.dx = dx, .dout = dout, .weight = weight});
    return dx.values();
}

std::vector<double> backward_weight(const Case& c, const Device& device, DType dtype, bool accumulate) {
    const Buffer dout(c.margins(4), device, dtype, {c.N, c.O}, c.dout), x(c.margins(1), device, dtype, {c.N, c.I}, c.x);
    Buffer dweight(c.weight_margins(), device, accumulation_dtype(dtype), {c.O, c.I});
    if (accumulate) dweight.set(c.dweight);
    matmul_backward_weight(device, {.dweight = dweight, .dout = dout, .x = x, .accumulate = accumulate});
    return dweight.values();
}

Outputs run(const Case& c, const Device& device, DType dtype) {
    const DType sums = accumulation_dtype(dtype);
    const double of_I = slack(device, dtype, c.I), of_O = slack(device, dtype, c.O), of_N = slack(device, dtype, c.N);
    Outputs outputs = {{"out", dtype, forward(c, device, dtype, Residual::none), of_I},
                       {"out with residual", dtype, forward(c, device, dtype, Residual::separate), of_I},
                       {"out over residual", dtype, forward(c, device, dtype, Residual::in_place), of_I},
                       {"dx", dtype, backward_input(c, device, dtype), of_O},
                       {"dweight", sums, backward_weight(c, device, dtype, false), of_N},
                       {"dweight, accumulated", sums, backward_weight(c, device, dtype, true), of_N}};
    // cuBLASLt may take another algorithm for another address.
    if (device.is_cpu()) {
        EXPECT_TRUE(same(outputs[2].values, outputs[1].values));
    }
    return outputs;
}

Outputs run_bias(const Case& c, const Device& device, DType dtype) {
    const DType sums = accumulation_dtype(dtype);
    const double of_I = slack(device, dtype, c.I), of_N = device.is_cpu() ? slack(device, dtype, c.N) : 0;
    Outputs outputs = {{"out", dtype, forward(c, device, dtype, Residual::none, true), of_I},
                       {"out with residual", dtype, forward(c, device, dtype, Residual::separate, true), of_I}};
    const Buffer dout(c.margins(1), device, dtype, {c.N, c.O}, c.dout);
    const Buffer workspace(device, DType::u8, {static_cast<int64_t>(matmul_backward_bias_workspace(device, c.O))});
    for (const bool accumulate : {false, true}) {
        Buffer dbias(device, sums, {c.O}, c.bias);
        const MatmulBackwardBias a = {.dbias = dbias, .dout = dout, .workspace = workspace, .accumulate = accumulate};
        matmul_backward_bias(device, a);
        outputs.push_back({accumulate ? "dbias, accumulated" : "dbias", sums, dbias.values(), of_N});
        dbias.set(c.bias);
        matmul_backward_bias(device, a);
        EXPECT_TRUE(same(dbias.values(), outputs.back().values)) << "other bits the second time";
    }
    return outputs;
}

// With each gap. The gaps are no part of what is right, which is computed once.
void check(const Device& device, Case c, std::initializer_list<int64_t> gaps, bool has_bias = false) {
    const auto run_on = [&](const Device& on, DType dtype) {
        return has_bias ? run_bias(c, on, dtype) : run(c, on, dtype);
    };
    Outputs exact, plain;
    if (device.is_cpu()) {
        exact = has_bias ? bias_definition(c) : definition(c);
    } else {
        exact = run_on(cpu, DType::f64);
        plain = run_on(cpu, DType::f32);
    }
    for (const int64_t gap : gaps) {
        c.gap = gap;
        SCOPED_TRACE(c.describe());
        check_outputs(device, c.dtype, 4, exact, plain, run_on(device, c.dtype));
    }
}

TEST_P(Matmul, Small) {
    for (const DType dtype : dtypes()) {
        check(device(), Case(dtype, 16, 24, 40), {8});
        check(device(), Case(dtype, 16, 24, 40), {8}, true);
    }
}

TEST_P(Matmul, Shapes) {
    const int64_t shapes[][3] = {{8, 8, 8},        {64, 128, 256},  {1, 64, 32},
                                 {1000, 768, 256}, {257, 320, 768}, {512, 1152, 64}};
    for (const auto& [N, O, I] : shapes)
        for (const DType dtype : dtypes())
            if (!skips(N * O)) check(device(), Case(dtype, N, O, I), {0, 8});
}

constexpr int64_t kOddShapes[][3] = {{1, 1, 1},     {3, 7, 5},     {1, 4, 9},    {6, 2, 1},     {17, 65, 33},
                                     {300, 530, 3}, {257, 2, 513}, {33, 65, 17}, {100, 50, 30}, {129, 7, 511}};

TEST_P(Matmul, ShapesThatAreNoMultiplesOfEight) {
    for (const auto& [N, O, I] : kOddShapes)
        for (const DType dtype : dtypes()) check(device(), Case(dtype, N, O, I), {0, 3});
}

TEST_P(Matmul, Bias) {
    const int64_t shapes[][3] = {{1, 8, 8}, {64, 1152, 256}, {1000, 768, 64}, {8192, 2048, 64}, {70, 1, 7}};
    for (const DType dtype : dtypes()) {
        for (const auto& [N, O, I] : shapes)
            if (!skips(N * O)) check(device(), Case(dtype, N, O, I), {0, 3, 8}, true);
        for (const auto& [N, O, I] : kOddShapes) check(device(), Case(dtype, N, O, I), {0, 3, 8}, true);
    }
}

// Each operand begins at another column of a wider buffer.
TEST_P(Matmul, ColumnsOfWiderBuffers) {
    if (is_cuda()) GTEST_SKIP() << "a model's tensors begin at the first column of theirs";
    for (const DType dtype : dtypes()) {
        Case c(dtype, 19, 13, 11);
        c.first = 1;
        check(device(), c, {5});
        check(device(), c, {5}, true);
    }
}

TEST_P(Matmul, SameBitsEveryTime) {
    // On the CPU several blocks in some direction, and a single block in every direction; on CUDA few output tiles and
    // a long sum, where a library would like to split K.
    for (const auto& [N, O, I] :
         {std::tuple<int64_t, int64_t, int64_t>{530, 1030, 40}, {1100, 280, 300}, {100, 200, 60}, {8192, 64, 128}})
        for (const DType dtype : dtypes()) {
            if (is_cuda() != (N == 8192)) continue;
            const Case c(dtype, N, O, I);
            check_same_bits(device(), dtype, [&](const Device& on, DType type) -> Outputs {
                if (on.is_cpu()) return run(c, on, type);
                return {{"dweight", type, backward_weight(c, on, type, true)}};
            });
        }
}

TEST_P(Matmul, NanPropagatesAlongItsRow) {
    Case c(dtypes()[1], 16, 24, 32);
    c.x[5 * 32 + 3] = std::numeric_limits<double>::quiet_NaN();
    const std::vector<double> out = forward(c, device(), c.dtype, Residual::none);
    for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(std::isnan(out[i]), i / 24 == 5) << i;
}

TEST(MatmulGradient, AgreesWithFiniteDifferences) {
    Case c(DType::f64, 4, 5, 6);
    const auto loss = [&] { return dot(c.dout, forward(c, cpu, DType::f64, Residual::separate)); };
    check_host_gradients(loss, {{"x", &c.x, backward_input(c, cpu, DType::f64)},
                                {"weight", &c.weight, backward_weight(c, cpu, DType::f64, false)},
                                {"residual", &c.residual, c.dout}});
}

// ctest runs each test in a process of its own, so this is that process's first BLAS call. Seen to catch: an OpenBLAS
// with OpenMP that is told to use one thread, and tells OpenMP, which leaves one thread to everything.
TEST(MatmulBlas, LeavesTheNumberOfThreadsAlone) {
    const int threads = omp_get_max_threads();
    omp_set_num_threads(3);
    const Buffer x(cpu, DType::f32, {2, 2}, {1, 2, 3, 4}), weight(cpu, DType::f32, {2, 2}, {1, 0, 0, 1});
    const Buffer out(cpu, DType::f32, {2, 2});
    matmul_forward(cpu, {.out = out, .x = x, .weight = weight});
    EXPECT_TRUE(same(out.values(), {1, 2, 3, 4}));
    EXPECT_EQ(omp_get_max_threads(), 3);
    omp_set_num_threads(threads);
}

TEST(MatmulArguments, Refuses) {
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

// ---- On CUDA alone ----

constexpr DType kCudaTypes[] = {DType::f32, DType::bf16, DType::f16};

TEST(MatmulCuda, WeightGradientAccumulatesInFp32) {
    INGOT_CUDA_OR_SKIP(device);
    constexpr int64_t N = 512, O = 256, I = 128, kMicroSteps = 4;
    for (const DType dtype : {DType::bf16, DType::f16}) {
        const Buffer dweight(device, DType::f32, {O, I}, std::vector<double>(static_cast<size_t>(O * I), 0));
        const Buffer exact(Device::cpu(), DType::f64, {O, I}, std::vector<double>(static_cast<size_t>(O * I), 0));
        for (int64_t micro_step = 0; micro_step < kMicroSteps; ++micro_step) {
            const Case c(dtype, N, O, I, 0, static_cast<uint64_t>(10 * micro_step + 1));
            for (const bool is_exact : {false, true}) {
                const Device where = is_exact ? Device::cpu() : device;
                const DType scalar = is_exact ? DType::f64 : dtype;
                const Buffer dout(where, scalar, {N, O}, c.dout), x(where, scalar, {N, I}, c.x);
                matmul_backward_weight(where, {.dweight = is_exact ? exact : dweight, .dout = dout, .x = x});
            }
        }
        // One rounding to bf16 or fp16 anywhere on the way would cost 1e-3 or 1e-4.
        EXPECT_TRUE(close(dweight.values(), exact.values(), (N / 16) * kMicroSteps * 0x1p-23)) << name_of(dtype);
    }
}

// ---- Choices of algorithms. They belong to a device, so these tests open their own. ----

std::string describe(const std::vector<MatmulChoice>& choices) {
    std::string text;
    for (const MatmulChoice& choice : choices) text += choice.gemm + ": " + choice.algorithm + "\n";
    return text;
}

// All GEMMs of check(), seen for the first time; what they compute is lost where they are timed.
void see_all(const Device& device, const Case& p) {
    for (const Residual residual : {Residual::none, Residual::separate, Residual::in_place})
        forward(p, device, p.dtype, residual);
    backward_input(p, device, p.dtype);
    for (const bool accumulate : {false, true}) backward_weight(p, device, p.dtype, accumulate);
}
constexpr int64_t kGemms = 6;

TEST(MatmulCuda, TimedChoicesAreRight) {
    INGOT_CUDA_OR_SKIP(shared);
    (void)shared;
    for (const DType dtype : kCudaTypes)
        for (const int64_t gap : {0, 8}) {
            const Device device = Device::cuda(0);
            const Case p(dtype, 4096, 128, 256, gap);
            set_matmul_tuning(device, MatmulTuning::timed);
            see_all(device, p);
            set_matmul_tuning(device, MatmulTuning::first_choice);
            const MatmulCounts counts = matmul_counts(device);
            EXPECT_EQ(counts.timed, kGemms);
            // Half a second for each in all, with kernels loaded for the first time.
            EXPECT_LT(counts.tuning_seconds, kGemms * (kMatmulTuningSeconds + 0.5));
            check(device, p, {p.gap});
            EXPECT_EQ(matmul_counts(device).timed, kGemms);
            EXPECT_EQ(matmul_counts(device).first_choice, 0);
        }
}

TEST(MatmulCuda, TimedChoicesGiveTheSameBitsEveryTime) {
    INGOT_CUDA_OR_SKIP(shared);
    (void)shared;
    const Device device = Device::cuda(0);
    for (const DType dtype : kCudaTypes) {
        const Case p(dtype, 16384, 64, 128, 0);
        set_matmul_tuning(device, MatmulTuning::timed);
        backward_weight(p, device, dtype, true);
        const auto first = backward_weight(p, device, dtype, true);
        for (int repeat = 1; repeat < 10; ++repeat)
            ASSERT_TRUE(same(backward_weight(p, device, dtype, true), first)) << name_of(dtype);
    }
}

TEST(MatmulCuda, RecordedChoicesAreTakenUpAgain) {
    INGOT_CUDA_OR_SKIP(shared);
    (void)shared;
    const Case p(DType::bf16, 8192, 64, 128, 0);
    const Device timed = Device::cuda(0), plain = Device::cuda(0);
    set_matmul_tuning(timed, MatmulTuning::timed);
    see_all(timed, p);
    see_all(plain, p);
    const std::vector<MatmulChoice> record = matmul_choices(timed), others = matmul_choices(plain);
    ASSERT_EQ(record.size(), static_cast<size_t>(kGemms));
    for (const MatmulChoice& choice : record) EXPECT_EQ(choice.source, MatmulSource::timed);
    for (const MatmulChoice& choice : others) EXPECT_EQ(choice.source, MatmulSource::first_choice);

    const Device again = Device::cuda(0);
    prefer_matmul_choices(again, record, MatmulSource::record);
    prefer_matmul_choices(again, others, MatmulSource::cache);
    set_matmul_tuning(again, MatmulTuning::timed);
    // Nothing is timed, so that the operands keep their values from the first call on.
    for (const bool accumulate : {false, true})
        EXPECT_TRUE(
            same(backward_weight(p, again, p.dtype, accumulate), backward_weight(p, timed, p.dtype, accumulate)));
    see_all(again, p);
    EXPECT_EQ(describe(matmul_choices(again)), describe(record));
    const MatmulCounts counts = matmul_counts(again);
    EXPECT_EQ(counts.from_record, kGemms);
    EXPECT_EQ(counts.from_cache + counts.timed + counts.first_choice + counts.refused, 0);

    // A first choice is taken up again like any other: it is what the library accepts.
    const Device third = Device::cuda(0);
    prefer_matmul_choices(third, others, MatmulSource::cache);
    see_all(third, p);
    EXPECT_EQ(describe(matmul_choices(third)), describe(others));
    EXPECT_EQ(matmul_counts(third).from_cache, kGemms);
    EXPECT_EQ(matmul_counts(third).refused, 0);
}

TEST(MatmulCuda, ChoicesThatCannotBeTakenAreRefused) {
    INGOT_CUDA_OR_SKIP(shared);
    (void)shared;
    const Case p(DType::bf16, 256, 64, 128, 0);
    const Device first = Device::cuda(0), device = Device::cuda(0);
    see_all(first, p);
    std::vector<MatmulChoice> bad = matmul_choices(first);
    const std::string foreign = bad[1].algorithm;
    bad[0].algorithm = foreign;                // another GEMM's
    bad[1].algorithm = std::string(128, 'f');  // no seal
    bad[2].algorithm = "";
    bad[3].algorithm[17] = bad[3].algorithm[17] == 'a' ? 'b' : 'a';
    bad[4].algorithm = std::string(128, 'f') + "-" + std::string(16, '0');
    MatmulAlgorithm bytes;
    ASSERT_TRUE(unseal_algorithm(matmul_machine(first), bad[5].gemm, bad[5].algorithm, &bytes));
    bad[5].algorithm = seal_algorithm("another GPU, cuBLASLt 1.0.0", bad[5].gemm, bytes);
    prefer_matmul_choices(device, bad, MatmulSource::record);
    check(device, p, {p.gap});
    const MatmulCounts counts = matmul_counts(device);
    EXPECT_EQ(counts.refused, kGemms);
    EXPECT_EQ(counts.first_choice, kGemms);
    EXPECT_EQ(describe(matmul_choices(device)), describe(matmul_choices(first)));
}

TEST(MatmulCuda, AStudyComparesTheChoices) {
    INGOT_CUDA_OR_SKIP(device);
    const Buffer x(device, DType::bf16, {8192, 256}), dout(device, DType::bf16, {8192, 128});
    const Buffer dweight(device, DType::f32, {128, 256});
    const Gemm gemm = gemm_of(MatmulBackwardWeight{.dweight = dweight, .dout = dout, .x = x});
    for (const double search_seconds : {0.0, 1.0}) {
        const MatmulStudy study = study_matmul(device, gemm, 0.05, search_seconds);
        for (const MatmulStudy::Entry& entry : {study.first, study.tuned, study.best}) {
            EXPECT_NE(entry.algorithm, "");
            EXPECT_GT(entry.seconds, 0);
            EXPECT_GE(entry.seconds, study.best.seconds);
        }
        EXPECT_EQ(study.num_searched > 0, search_seconds > 0);
    }
}

}  // namespace
}  // namespace ingot::test
