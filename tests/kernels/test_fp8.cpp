// Seen to catch, in the CPU twins: two rows swapped in the columns; a scale that is not read; a largest value that is
// not raised; NaN that saturates; ties that round up; the scale of a taken for that of b.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/fp8.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rmsnorm.h"
#include "kernels/swiglu.h"
#include "tests/support/on_device.h"

namespace ingot::test {
namespace {

INGOT_ON_EACH_DEVICE(Fp8);

// ---- The formats ----

template <typename Format, Format (*kRound)(float)>
void check_format(int num_finite, float largest) {
    const auto value = [](int bits) { return to_float(Format{static_cast<uint8_t>(bits)}); };
    EXPECT_EQ(value(num_finite - 1), largest);
    for (int bits = 0; bits < num_finite; ++bits) {
        EXPECT_EQ(kRound(value(bits)).bits, bits);
        EXPECT_EQ(kRound(-value(bits)).bits, bits | 0x80);
        if (bits + 1 == num_finite) continue;
        const float middle = (value(bits) + value(bits + 1)) / 2;
        EXPECT_LT(value(bits), value(bits + 1));
        EXPECT_EQ(kRound(middle).bits, bits + (bits & 1)) << middle;
        EXPECT_EQ(kRound(std::nextafter(middle, 0.0f)).bits, bits) << middle;
        EXPECT_EQ(kRound(std::nextafter(middle, largest)).bits, bits + 1) << middle;
    }
    for (const float large : {largest * 1.01f, largest * 2, 1e30f, HUGE_VALF}) {
        EXPECT_EQ(kRound(large).bits, num_finite - 1);
        EXPECT_EQ(kRound(-large).bits, (num_finite - 1) | 0x80);
    }
    EXPECT_TRUE(std::isnan(to_float(kRound(std::nanf("")))));
    EXPECT_TRUE(std::isnan(to_float(kRound(-std::nanf("")))));
}

TEST(Fp8Format, RoundsToNearestEvenAndSaturates) {
    check_format<e4m3, to_e4m3>(0x7f, 448);
    check_format<e5m2, to_e5m2>(0x7c, 57344);
    EXPECT_EQ(to_float(e4m3{1}), 0x1p-9f);
    EXPECT_EQ(to_float(e5m2{1}), 0x1p-16f);
}

// ---- Operands and scales on a device ----

struct ScaleOn {
    ScaleOn(const Device& device, Fp8Scale scale)
        : device(device), memory(device, DType::u8, {static_cast<int64_t>(sizeof(Fp8Scale))}) {
        device.copy(memory, Tensor::contiguous(&scale, DType::u8, {static_cast<int64_t>(sizeof scale)}));
    }
    Fp8Scale* get() const { return static_cast<Fp8Scale*>(memory.tensor().data); }
    Fp8Scale read() const {
        Fp8Scale scale;
        device.copy(Tensor::contiguous(&scale, DType::u8, {static_cast<int64_t>(sizeof scale)}), memory);
        return scale;
    }
    Device device;
    Buffer memory;
};

Fp8Scale scale_of(float quantize) {
    return {.dequantize = 1 / quantize, .quantize = quantize};
}

struct OperandOn {
    OperandOn(const Device& device, DType format, int64_t rows, int64_t columns, float quantize)
        : rows(device, format, {rows, columns}),
          columns(device, format, {columns, rows}),
          scale(device, scale_of(quantize)) {}
    Fp8Operand both() const { return {.rows = rows, .columns = columns, .scale = scale.get()}; }
    Buffer rows, columns;
    ScaleOn scale;
};

std::vector<double> transposed(const std::vector<double>& values, int64_t rows, int64_t columns) {
    std::vector<double> result(values.size());
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c)
            result[static_cast<size_t>(c * rows + r)] = values[static_cast<size_t>(r * columns + c)];
    return result;
}

std::vector<double> quantized(std::vector<double> values, float scale, DType format) {
    for (double& value : values) value = static_cast<float>(value) * scale;
    return rounded(std::move(values), format);
}

double largest_of(const std::vector<double>& values) {
    double largest = 0;
    for (const double value : values) largest = std::max(largest, std::fabs(value));
    return largest;
}

// The type in which a device reads what is converted.
DType input_type(bool is_cuda) {
    return is_cuda ? DType::bf16 : DType::f32;
}

TEST_P(Fp8, QuantizesBothWays) {
    for (const DType format : {DType::e4m3, DType::e5m2})
        for (const int64_t N : {16, 48, 128, 144, 272})
            for (const int64_t W : {16, 80, 128, 208, 1040}) {
                if (skips(N * W)) continue;
                SCOPED_TRACE(join(name_of(format), " N ", N, " W ", W));
                const float scale = format == DType::e4m3 ? 64 : 0x1p-3f;  // some saturate, some are subnormal
                const std::vector<double> in = rounded(normals(N * W, 7, 4), input_type(is_cuda()));
                const Buffer buffer(device(), input_type(is_cuda()), {N, W}, in);
                const OperandOn operand(device(), format, N, W, scale);
                fp8_quantize(device(), {.out = operand.both(), .in = buffer});
                const std::vector<double> expected = quantized(in, scale, format);
                EXPECT_TRUE(same(operand.rows.values(), expected));
                EXPECT_TRUE(same(operand.columns.values(), transposed(expected, N, W)));
                EXPECT_EQ(operand.scale.read().largest, largest_of(in));
                const OperandOn alone(device(), format, N, W, scale);
                fp8_quantize(device(), {.out = {.rows = alone.rows, .scale = alone.scale.get()}, .in = buffer});
                EXPECT_TRUE(same(alone.rows.values(), expected));
                fp8_quantize(device(), {.out = {.columns = alone.columns, .scale = alone.scale.get()}, .in = buffer});
                EXPECT_TRUE(same(alone.columns.values(), transposed(expected, N, W)));
            }
}

// A value that is not finite must not pass for a large one, and must not move the scale.
TEST_P(Fp8, NotFiniteBecomesNan) {
    const double infinity = std::numeric_limits<double>::infinity();
    for (const double bad : {infinity, -infinity, std::nan("")})
        for (const DType format : {DType::e4m3, DType::e5m2}) {
            std::vector<double> in(16 * 16, 1);
            in[37] = bad;
            const Buffer buffer(device(), input_type(is_cuda()), {16, 16}, in);
            const OperandOn operand(device(), format, 16, 16, 1);
            fp8_quantize(device(), {.out = operand.both(), .in = buffer});
            const std::vector<double> rows = operand.rows.values();
            for (size_t i = 0; i < rows.size(); ++i)
                if (i == 37)
                    EXPECT_TRUE(std::isnan(rows[i]));
                else
                    EXPECT_EQ(rows[i], 1);
            EXPECT_FALSE(std::isfinite(operand.scale.read().largest));
            fp8_update_scales(device(), {.scales = operand.scale.get(), .count = 1, .format = format});
            EXPECT_EQ(operand.scale.read().quantize, 1);
            EXPECT_EQ(operand.scale.read().largest, 0);
        }
}

TEST_P(Fp8, ScalesFollowTheLargestValue) {
    for (const DType format : {DType::e4m3, DType::e5m2}) {
        const ScaleOn on(device(), {.largest = 3});
        const auto update = [&](float largest) {
            Fp8Scale scale = on.read();
            scale.largest = largest;
            device().copy(on.memory, Tensor::contiguous(&scale, DType::u8, {static_cast<int64_t>(sizeof scale)}));
            fp8_update_scales(device(), {.scales = on.get(), .count = 1, .format = format});
            return on.read();
        };
        for (const float largest : {3.0f, 1e-30f, 0.02f, 448.0f, 1e6f, 1e30f, 3.4e38f, 1e-3f, 1e-45f}) {
            const float before = on.read().recent;
            const Fp8Scale scale = update(largest);
            EXPECT_EQ(scale.recent, std::max(largest, before * kFp8Decay));
            int exponent = 0;
            EXPECT_EQ(std::frexp(scale.quantize, &exponent), 0.5f);
            EXPECT_EQ(scale.dequantize * scale.quantize, 1);
            if (scale.recent < 1e-20f || scale.recent > 1e25f) continue;  // beyond 2^100 the power is held
            // At least the headroom, and less than twice as much.
            EXPECT_LE(scale.recent * scale.quantize * kFp8Headroom, fp8_largest(format));
            EXPECT_GT(scale.recent * scale.quantize * kFp8Headroom * 2, fp8_largest(format));
        }
        const Fp8Scale before = on.read();
        EXPECT_EQ(update(0).quantize, before.quantize);  // nothing was seen
    }
}

// ---- Ops that write fp8 ----

// Expects the bits of the exact values, rounded; where a value lies within `slack` of it of a tie, either neighbour.
void check_rounded(const Fp8Operand& operand, const std::vector<double>& rows, const std::vector<double>& columns,
                   const std::vector<double>& exact, float scale, double slack) {
    const DType format = operand.format();
    const auto around = [&](double by) {
        std::vector<double> values = exact;
        for (double& value : values) value *= 1 + by;
        return quantized(values, scale, format);
    };
    const std::vector<double> low = around(-slack), high = around(slack);
    size_t num_wrong = 0;
    for (size_t i = 0; i < rows.size(); ++i)
        if (!(rows[i] == low[i] || rows[i] == high[i])) ++num_wrong;
    EXPECT_EQ(num_wrong, size_t{0}) << "of " << rows.size();
    if (operand.columns && operand.rows) {
        EXPECT_TRUE(same(columns, transposed(rows, operand.rows.shape[0], operand.rows.shape[1])));
    }
}

// The sum of squares and its root are within a few ulps of fp32; the values then have three roundings more.
constexpr double kNormSlack = 0x1p-20;

TEST_P(Fp8, RmsNorm) {
    for (const int64_t N : {16, 32, 48, 80, 208})
        for (const int64_t C : {16, 272, 768, 1040, 2048}) {
            if (skips(N * C) || skips_row(C)) continue;
            SCOPED_TRACE(join("N ", N, " C ", C));
            const DType type = input_type(is_cuda());
            const std::vector<double> x = rounded(normals(N * C, 3), type), weight = rounded(normals(C, 4, 1, 1), type);
            const Buffer x_on(device(), type, {N, C}, x), weight_on(device(), type, {C}, weight);
            const Buffer rstd(device(), DType::f32, {N});
            const OperandOn operand(device(), DType::e4m3, N, C, 64);
            rmsnorm_forward(device(),
                            {.rstd = rstd, .x = x_on, .weight = weight_on, .eps = 1e-5, .quantized = operand.both()});
            std::vector<double> exact(x.size());
            for (int64_t n = 0; n < N; ++n) {
                double squares = 0;
                for (int64_t c = 0; c < C; ++c) squares += std::pow(x[static_cast<size_t>(n * C + c)], 2);
                const double r = 1 / std::sqrt(squares / static_cast<double>(C) + 1e-5);
                EXPECT_NEAR(rstd.values()[static_cast<size_t>(n)], r, r * kNormSlack);
                for (int64_t c = 0; c < C; ++c)
                    exact[static_cast<size_t>(n * C + c)] =
                        x[static_cast<size_t>(n * C + c)] * r * weight[static_cast<size_t>(c)];
            }
            check_rounded(operand.both(), operand.rows.values(), operand.columns.values(), exact, 64, kNormSlack);
            EXPECT_NEAR(operand.scale.read().largest, largest_of(exact), largest_of(exact) * kNormSlack);
            const Buffer columns(device(), DType::e4m3, {C, N});
            rmsnorm_forward(device(), {.rstd = rstd,
                                       .x = x_on,
                                       .weight = weight_on,
                                       .eps = 1e-5,
                                       .quantized = {.columns = columns, .scale = operand.scale.get()}});
            EXPECT_TRUE(same(columns.values(), operand.columns.values()));
        }
}

// The fast exponential and division add a few ulps; 1 + g (1 - sigmoid) may cancel, where |g| is a few at most.
constexpr double kSwigluSlack = 0x1p-18;

TEST_P(Fp8, Swiglu) {
    for (const int64_t N : {16, 48, 128, 208})
        for (const int64_t F : {16, 80, 144, 1040}) {
            if (skips(N * F)) continue;
            SCOPED_TRACE(join("N ", N, " F ", F));
            const DType type = input_type(is_cuda());
            // Gates are positive: for negative ones the gradient passes 0, where its relative error has no bound.
            std::vector<double> gate_up = normals(N * 2 * F, 5, 2);
            for (size_t i = 0; i < gate_up.size(); ++i)
                if (i / static_cast<size_t>(F) % 2 == 0) gate_up[i] = std::fabs(gate_up[i]);
            gate_up = rounded(gate_up, type);
            const std::vector<double> dout = rounded(normals(N * F, 6, 0.01), type);
            const Buffer gate_up_on(device(), type, {N, 2 * F}, gate_up), dout_on(device(), type, {N, F}, dout);
            const OperandOn out(device(), DType::e4m3, N, F, 16), again(device(), DType::e4m3, N, F, 16);
            const OperandOn dgate_up(device(), DType::e5m2, N, 2 * F, 4096),
                alone(device(), DType::e5m2, N, 2 * F, 4096);
            swiglu_forward(device(), {.gate_up = gate_up_on, .quantized = out.both()});
            swiglu_backward(
                device(),
                {.dout = dout_on, .gate_up = gate_up_on, .quantized = dgate_up.both(), .quantized_out = again.both()});
            swiglu_backward(device(), {.dout = dout_on, .gate_up = gate_up_on, .quantized = alone.both()});
            std::vector<double> exact(dout.size()), gradients(gate_up.size());
            for (size_t i = 0; i < exact.size(); ++i) {
                const auto width = static_cast<size_t>(F);
                const size_t at = i / width * 2 * width + i % width;
                const double gate = gate_up[at], up = gate_up[at + width], sigmoid = 1 / (1 + std::exp(-gate));
                exact[i] = gate * sigmoid * up;
                gradients[at] = dout[i] * up * sigmoid * (1 + gate * (1 - sigmoid));
                gradients[at + width] = dout[i] * gate * sigmoid;
            }
            check_rounded(out.both(), out.rows.values(), out.columns.values(), exact, 16, kSwigluSlack);
            check_rounded(dgate_up.both(), dgate_up.rows.values(), dgate_up.columns.values(), gradients, 4096,
                          kSwigluSlack);
            EXPECT_TRUE(same(again.rows.values(), out.rows.values()));
            EXPECT_TRUE(same(again.columns.values(), out.columns.values()));
            EXPECT_TRUE(same(alone.columns.values(), dgate_up.columns.values()));
            EXPECT_EQ(again.scale.read().largest, out.scale.read().largest);
            EXPECT_NEAR(dgate_up.scale.read().largest, largest_of(gradients), largest_of(gradients) * kSwigluSlack);
        }
}

// ---- The GEMM ----

// Hopper's tensor cores add the 32 products of an instruction to an accumulator that keeps 14 bits (DeepSeek-V3 2024,
// section 3.3.2); without fast accumulation they start anew after 128 and add in fp32. Each addition is off by at most
// 2^-13 of the sum of |a b| so far.
double accumulation_bound(int64_t K, bool is_fast) {
    return static_cast<double>(is_fast ? K / 32 + 1 : 128 / 32 + 1) * 0x1p-13;
}

TEST_P(Fp8, Matmul) {
    if (is_cuda() && !supports_fp8(device())) GTEST_SKIP() << "needs a GPU of sm_89 or more: " << device().name();
    struct Shape {
        int64_t M, N, K;
    };
    for (const Shape& shape : {Shape{16, 16, 16}, {64, 48, 32}, {128, 256, 512}, {80, 208, 1040}})
        for (const auto& [a_type, b_type] : {std::pair{DType::e4m3, DType::e4m3}, {DType::e5m2, DType::e4m3}})
            for (const int kind : {0, 1, 2, 3}) {  // plain; bias and an addend; fp32 in place; fast
                const auto [M, N, K] = shape;
                if (skips(M * N)) continue;
                SCOPED_TRACE(join(M, "x", N, "x", K, " ", name_of(a_type), " kind ", kind));
                const DType type = kind == 2 || !is_cuda() ? DType::f32 : DType::bf16;
                const std::vector<double> a = rounded(normals(M * K, 1, 8), a_type),
                                          b = rounded(normals(N * K, 2), b_type);
                const std::vector<double> addend = rounded(normals(M * N, 3, 4), type),
                                          bias = rounded(normals(N, 4), type);
                const Buffer a_on(device(), a_type, {M, K}, a), b_on(device(), b_type, {N, K}, b);
                const Buffer addend_on(device(), type, {M, N}, addend), bias_on(device(), type, {N}, bias);
                const Buffer out(device(), type, {M, N});
                const ScaleOn a_scale(device(), scale_of(4)), b_scale(device(), scale_of(0.5f));
                const bool has_bias = kind == 1, adds = kind == 1 || kind == 2;
                const Tensor& target = kind == 2 ? addend_on.tensor() : out.tensor();
                matmul_fp8(device(), {.out = target,
                                      .a = a_on,
                                      .b = b_on,
                                      .a_scale = a_scale.get(),
                                      .b_scale = b_scale.get(),
                                      .addend = adds ? addend_on.tensor() : Tensor{},
                                      .bias = has_bias ? bias_on.tensor() : Tensor{},
                                      .fast_accumulation = kind == 3});
                const std::vector<double> actual = kind == 2 ? addend_on.values() : out.values();
                const double store = type == DType::bf16 ? 0x1p-8 : 0x1p-23;
                size_t num_wrong = 0;
                for (int64_t m = 0; m < M; ++m)
                    for (int64_t n = 0; n < N; ++n) {
                        double sum = 0, size = 0;
                        for (int64_t k = 0; k < K; ++k) {
                            const double product =
                                a[static_cast<size_t>(m * K + k)] / 4 * b[static_cast<size_t>(n * K + k)] * 2;
                            sum += product;
                            size += std::fabs(product);
                        }
                        const auto at = static_cast<size_t>(m * N + n);
                        const double exact =
                            sum + (has_bias ? bias[static_cast<size_t>(n)] : 0) + (adds ? addend[at] : 0);
                        const double bound =
                            size * (is_cuda() ? accumulation_bound(K, kind == 3) : 0x1p-20) + std::fabs(exact) * store;
                        if (!(std::fabs(actual[at] - exact) <= bound)) ++num_wrong;
                    }
                EXPECT_EQ(num_wrong, size_t{0}) << "of " << M * N;
            }
}

TEST(Fp8Arguments, Refuses) {
    const Device cpu = Device::cpu();
    const Buffer in(cpu, DType::f32, {16, 32}), odd(cpu, DType::f32, {16, 24});
    const OperandOn operand(cpu, DType::e4m3, 16, 32, 1), narrow(cpu, DType::e4m3, 16, 24, 1);
    EXPECT_THROW(fp8_quantize(cpu, {.out = {.rows = operand.rows}, .in = in}), Error);
    EXPECT_THROW(fp8_quantize(cpu, {.out = {.scale = operand.scale.get()}, .in = in}), Error);
    EXPECT_THROW(fp8_quantize(cpu, {.out = narrow.both(), .in = odd}), Error);
    EXPECT_THROW(fp8_quantize(cpu, {.out = {.rows = operand.columns, .scale = operand.scale.get()}, .in = in}), Error);
    EXPECT_THROW(fp8_quantize(cpu, {.out = {.rows = in, .scale = operand.scale.get()}, .in = in}), Error);
    const OperandOn gradient(cpu, DType::e5m2, 16, 32, 1);
    const Buffer out(cpu, DType::f32, {16, 16});
    EXPECT_THROW(matmul_fp8(cpu, {.out = out,
                                  .a = gradient.rows,
                                  .b = gradient.rows,
                                  .a_scale = gradient.scale.get(),
                                  .b_scale = gradient.scale.get()}),
                 Error);
    EXPECT_THROW(
        matmul_fp8(
            cpu,
            {.out = out, .a = operand.rows, .b = gradient.rows, .a_scale = operand.scale.get(), .b_scale = nullptr}),
        Error);
    EXPECT_THROW(matmul_fp8(cpu, {.out = in,
                                  .a = operand.rows,
                                  .b = gradient.rows,
                                  .a_scale = operand.scale.get(),
                                  .b_scale = gradient.scale.get()}),
                 Error);
}

}  // namespace
}  // namespace ingot::test
