#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/core/blas.h"
#include "kernels/core/math.h"
#include "kernels/core/parallel.h"
#include "kernels/core/rng.h"
#include "kernels/core/step.h"
#include "tests/support/tensors.h"

namespace ingot::test {

namespace {

float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

bf16 convert(float value, bf16) {
    return to_bf16(value);
}
f16 convert(float value, f16) {
    return to_f16(value);
}

// Each pattern widens and rounds back to itself; NaN stays NaN.
template <typename T>
void check_round_trip() {
    for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
        const T value = {static_cast<uint16_t>(pattern)};
        const float wide = to_float(value);
        const T back = convert(wide, T{});
        if (std::isnan(wide))
            ASSERT_TRUE(std::isnan(to_float(back))) << pattern;
        else
            ASSERT_EQ(back.bits, value.bits) << pattern;
    }
}

// Between each two neighbours: below the middle goes down, above goes up, the middle itself to the even one. The middle
// is exact in fp32, which has more than one bit more than either format. Includes subnormals, and the step to infinity,
// which lies where the next finite value would.
template <typename T>
void check_rounding(uint32_t infinity, double largest_plus_one_step) {
    for (uint32_t pattern = 0; pattern < infinity; ++pattern) {
        const double low = to_float(T{static_cast<uint16_t>(pattern)});
        const double high =
            pattern + 1 == infinity ? largest_plus_one_step : to_float(T{static_cast<uint16_t>(pattern + 1)});
        const float middle = static_cast<float>((low + high) / 2);
        ASSERT_EQ(static_cast<double>(middle), (low + high) / 2);
        const uint32_t even = pattern % 2 == 0 ? pattern : pattern + 1;
        for (const uint32_t sign : {0u, 0x8000u}) {
            const float s = sign != 0 ? -1.0f : 1.0f;
            ASSERT_EQ(convert(s * middle, T{}).bits, even | sign) << pattern;
            ASSERT_EQ(convert(s * std::nextafter(middle, 0.0f), T{}).bits, pattern | sign) << pattern;
            const float above = std::nextafter(middle, std::numeric_limits<float>::infinity());
            ASSERT_EQ(convert(s * above, T{}).bits, (pattern + 1) | sign) << pattern;
        }
    }
    EXPECT_EQ(convert(std::numeric_limits<float>::max(), T{}).bits, infinity);
    EXPECT_EQ(convert(std::numeric_limits<float>::infinity(), T{}).bits, infinity);
    EXPECT_TRUE(std::isnan(to_float(convert(bits_to_float(0x7f800001u), T{}))));  // a payload that rounding would drop
    EXPECT_TRUE(std::isnan(to_float(convert(bits_to_float(0xffffffffu), T{}))));
}

// -Phi^-1 of a tail in (0, 1/2], by Newton's method on erfc in double.
double upper_quantile(double tail) {
    double z = tail > 0.3 ? (0.5 - tail) * 2.5066282746310002 : std::sqrt(-2 * std::log(2 * tail));
    for (int step = 0; step < 60; ++step) {
        const double error = 0.5 * std::erfc(z * 0.70710678118654752) - tail;
        const double density = std::exp(-0.5 * z * z) * 0.39894228040143268;
        const double change = error / density;
        z += std::clamp(change, -0.5, 0.5);
        if (std::abs(change) < 1e-15) break;
    }
    return z;
}

}  // namespace

TEST(DType, EveryValueSurvivesARoundTrip) {
    check_round_trip<bf16>();
    check_round_trip<f16>();
}

TEST(DType, RoundsToNearestEven) {
    check_rounding<bf16>(0x7f80u, 0x1p128);
    check_rounding<f16>(0x7c00u, 0x1p16);
}

TEST(Rng, PhiloxKnownAnswers) {
    // The vectors of Random123's kat_vectors for philox4x32-10.
    const Philox4 zeros = philox4x32_10({{0, 0, 0, 0}}, 0);
    EXPECT_EQ(zeros.x[0], 0x6627e8d5u);
    EXPECT_EQ(zeros.x[1], 0xe169c58du);
    EXPECT_EQ(zeros.x[2], 0xbc57ac4cu);
    EXPECT_EQ(zeros.x[3], 0x9b00dbd8u);
    const Philox4 ones = philox4x32_10({{~0u, ~0u, ~0u, ~0u}}, ~uint64_t{0});
    EXPECT_EQ(ones.x[0], 0x408f276du);
    EXPECT_EQ(ones.x[1], 0x41c83b0eu);
    EXPECT_EQ(ones.x[2], 0xa20bc7c6u);
    EXPECT_EQ(ones.x[3], 0x6d5451fdu);
    const Philox4 pi = philox4x32_10({{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}}, 0x299f31d0a4093822ull);
    EXPECT_EQ(pi.x[0], 0xd16cfe09u);
    EXPECT_EQ(pi.x[1], 0x94fdccebu);
    EXPECT_EQ(pi.x[2], 0x5001e420u);
    EXPECT_EQ(pi.x[3], 0x24126ea1u);
}

TEST(Rng, NumbersDependOnSeedStreamAndIndex) {
    EXPECT_NE(random_bits(1, 2, 3), random_bits(2, 2, 3));
    EXPECT_NE(random_bits(1, 2, 3), random_bits(1, 3, 3));
    EXPECT_NE(random_bits(1, 2, 3), random_bits(1, 2, 4));
    EXPECT_NE(random_bits(1, 2, 3), random_bits(1, 2, 3 + (uint64_t{1} << 34)));  // beyond 32 bits of block
    EXPECT_NE(stream_of("wte"), stream_of("wtf"));
}

TEST(Rng, NormalsAreTheQuantiles) {
    // From the last tail to the median, in steps that grow with the distance from the tail's end. Near the median the
    // argument 1 - 2 tail is itself rounded by up to 2^-25, hence the absolute term. Giles's polynomial ends where 1 -
    // x has 24 bits: in the last 2^-25 of a tail it is extrapolated, and the error grows to 4e-4 at 6.3 sigma.
    for (uint64_t bits = 0; bits < 0x80000000ull; bits += 1 + bits / 512) {
        const double expected = upper_quantile((static_cast<double>(bits) + 0.5) * 0x1p-32);
        const double actual = normal_from_bits(static_cast<uint32_t>(bits));
        const double tolerance = (bits < 128 ? 4e-4 : 5e-7) * expected + 2e-7;
        ASSERT_TRUE(std::abs(actual - expected) <= tolerance) << bits << ": " << actual << ", " << expected;
        ASSERT_EQ(normal_from_bits(static_cast<uint32_t>(bits) | 0x80000000u), -static_cast<float>(actual)) << bits;
    }
}

TEST(Rng, NormalsHaveTheRightMoments) {
    constexpr int kCount = 1000000;
    double sum = 0, square = 0, fourth = 0;
    for (int i = 0; i < kCount; ++i) {
        const double z = random_normal(7, stream_of("moments"), static_cast<uint64_t>(i));
        sum += z;
        square += z * z;
        fourth += z * z * z * z;
    }
    // Five standard deviations of each estimate: 1, sqrt(2) and sqrt(96) over sqrt(count).
    EXPECT_NEAR(sum / kCount, 0, 5e-3);
    EXPECT_NEAR(square / kCount, 1, 5e-3 * 1.4142);
    EXPECT_NEAR(fourth / kCount, 3, 5e-3 * 9.798);
}

TEST(Math, FastExpWithinTwoUlps) {
    double worst = 0;
    for (double x = -87; x <= 88; x += 1.37e-4) {
        const float argument = static_cast<float>(x);
        const double exact = std::exp(static_cast<double>(argument));
        const float rounded_exact = static_cast<float>(exact);
        const double ulp =
            std::nextafter(rounded_exact, std::numeric_limits<float>::infinity()) - static_cast<double>(rounded_exact);
        worst = std::max(worst, std::abs(fast_exp(argument) - exact) / ulp);
    }
    EXPECT_LE(worst, 2);
    EXPECT_EQ(fast_exp(0.0f), 1.0f);
    EXPECT_EQ(fast_exp(-100.0f), 0.0f);
    EXPECT_EQ(fast_exp(-std::numeric_limits<float>::infinity()), 0.0f);
    EXPECT_EQ(fast_exp(100.0f), std::numeric_limits<float>::infinity());
    EXPECT_EQ(fast_exp(std::numeric_limits<float>::infinity()), std::numeric_limits<float>::infinity());
    EXPECT_TRUE(std::isnan(fast_exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST(Compare, NanAndWrongSizesFail) {
    const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
    EXPECT_TRUE(close({1, 2}, {1, 2}, 0));
    EXPECT_FALSE(close({1, nan}, {1, 2}, 1e9));
    EXPECT_FALSE(close({1, 2}, {1, nan}, 1e9));
    EXPECT_FALSE(close({nan}, {nan}, 1e9));
    EXPECT_FALSE(close({infinity}, {infinity}, 1e9));
    EXPECT_FALSE(close({1}, {1, 2}, 1e9));
    EXPECT_FALSE(close({1, 2}, {1, 2}, nan));
    EXPECT_FALSE(close({1, 1e-9}, {1, 0}, 1e-10));
    EXPECT_TRUE(same({1, 2}, {1, 2}));
    EXPECT_FALSE(same({nan}, {nan}));
    EXPECT_FALSE(same({0.0}, {-0.0}));
    EXPECT_FALSE(same({1}, {1, 2}));
    EXPECT_EQ(max_abs_error({1, nan}, {1, 2}), infinity);
    EXPECT_EQ(max_abs_error({1, 4}, {1, 2}), 2);
}

TEST(Tensor, ViewsShareElements) {
    std::vector<double> values = normals(2 * 12, 1);
    const Device cpu = Device::cpu();
    const Buffer buffer(cpu, DType::f32, {2, 12}, values);
    const float* const data = buffer.tensor().get<float>();
    const Tensor heads = buffer.tensor().slice(1, 4, 12).split_last(2, 4);
    EXPECT_TRUE(heads.has_shape({2, 2, 4}));
    EXPECT_EQ(heads.stride[0], 12);
    EXPECT_EQ(heads.stride[1], 4);
    EXPECT_EQ(heads.get<float>(), data + 4);
    EXPECT_FALSE(heads.is_contiguous());
    EXPECT_TRUE(buffer.tensor().slice(0, 1, 2).is_contiguous());
    EXPECT_EQ(buffer.tensor().view({3, 8}).bytes(), 96);
    EXPECT_EQ(Tensor{}.numel(), 0);
    EXPECT_FALSE(static_cast<bool>(Tensor{}));
}

TEST(Tensor, RefusesMisuse) {
    const Device cpu = Device::cpu();
    const Buffer buffer(cpu, DType::f32, {2, 12});
    const Tensor tensor = buffer;
    EXPECT_THROW(tensor.get<double>(), Error);
    EXPECT_THROW(tensor.view({5, 5}), Error);
    EXPECT_THROW(tensor.slice(1, 0, 6).view({12}), Error);
    EXPECT_THROW(tensor.slice(1, 3, 13), Error);
    EXPECT_THROW(tensor.slice(2, 0, 1), Error);
    EXPECT_THROW(tensor.split_last(5, 2), Error);
    EXPECT_THROW(Tensor::contiguous(nullptr, DType::f32, {2, -1}), Error);
    EXPECT_THROW(Tensor::contiguous(nullptr, DType::f32, {1, 2, 3, 4, 5}), Error);
    EXPECT_NO_THROW(check_tensor("op", "x", tensor, {2, 12}, DType::f32, DeviceKind::cpu));
    EXPECT_THROW(check_tensor("op", "x", tensor, {12, 2}, DType::f32, DeviceKind::cpu), Error);
    EXPECT_THROW(check_tensor("op", "x", tensor, {2, 12}, DType::bf16, DeviceKind::cpu), Error);
    EXPECT_THROW(check_tensor("op", "x", tensor, {2, 12}, DType::f32, DeviceKind::cuda), Error);
    EXPECT_THROW(check_tensor("op", "x", Tensor{}, {2, 12}, DType::f32, DeviceKind::cpu), Error);
    // A shape says nothing about where the elements lie.
    Tensor rows = tensor;
    const auto is_taken = [&](auto check) {
        try {
            check("op", "x", rows, {2, 12}, DType::f32, DeviceKind::cpu);
            return true;
        } catch (const Error&) {
            return false;
        }
    };
    const struct {
        int64_t row, column;
        bool is_contiguous, is_view, is_output_view;
    } cases[] = {{12, 1, true, true, true},   {13, 1, false, true, true},   {11, 1, false, true, false},
                 {0, 1, false, true, false},  {24, 2, false, false, false}, {12, 0, false, false, false},
                 {1, 2, false, false, false}, {12, -1, false, false, false}};
    for (const auto& c : cases) {
        rows.stride[0] = c.row, rows.stride[1] = c.column;
        EXPECT_EQ(is_taken(check_tensor), c.is_contiguous) << rows.describe();
        EXPECT_EQ(is_taken(check_view), c.is_view) << rows.describe();
        EXPECT_EQ(is_taken(check_output_view), c.is_output_view) << rows.describe();
    }
    EXPECT_THROW(cpu.context(), Error);
}

// A BLAS that cannot say no must not be asked: every argument that one refuses is an exception, and c stays as it was.
// Seen to catch: check_gemm() left out of either precision (a line of the BLAS on stderr, or an abort).
template <typename T>
void check_gemm_refuses() {
    std::vector<T> a(64, T(1)), b(64, T(1)), c(64, T(7));
    const auto multiply = [&](bool at, bool bt, int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb,
                              int64_t ldc) {
        gemm(at, bt, m, n, k, T(1), a.data(), lda, b.data(), ldb, T(0), c.data(), ldc);
    };
    constexpr int64_t kBeyond = int64_t{1} << 31;
    for (const auto& [at, bt, lda, ldb, ldc] : {std::tuple{false, false, int64_t{3}, int64_t{5}, int64_t{5}},
                                                {false, false, 0, 5, 5},
                                                {true, false, 1, 5, 5},
                                                {false, false, 4, 4, 5},
                                                {false, true, 4, 3, 5},
                                                {false, false, 4, 5, 4},
                                                {false, false, -4, 5, 5},
                                                {false, false, kBeyond, 5, 5},
                                                {false, false, 4, kBeyond, 5},
                                                {false, false, 4, 5, kBeyond}})
        EXPECT_THROW(multiply(at, bt, 2, 5, 4, lda, ldb, ldc), Error) << lda << " " << ldb << " " << ldc;
    EXPECT_THROW(multiply(false, false, -1, 5, 4, 4, 5, 5), Error);
    EXPECT_THROW(multiply(false, false, 2, 5, kBeyond, kBeyond, 5, 5), Error);
    EXPECT_EQ(c, std::vector<T>(64, T(7)));
    EXPECT_NO_THROW(multiply(false, false, 2, 5, 4, 4, 5, 5));
    EXPECT_EQ(c[9], T(4));
    EXPECT_EQ(c[10], T(7));
}

TEST(Gemm, RefusesWhatNoBlasTakes) {
    check_gemm_refuses<float>();
    check_gemm_refuses<double>();
}

// Seen to catch: the last error kept in place of the first.
TEST(LoopErrors, ThrowTheFirstAfterTheLoop) {
    for (int repeat = 0; repeat < 20; ++repeat) {
        LoopErrors errors;
        std::vector<int> done(100);
#pragma omp parallel for schedule(dynamic)
        for (int64_t i = 0; i < 100; ++i)
            errors.run(i, [&] {
                CHECK(i % 30 != 17, "iteration ", i);
                done[static_cast<size_t>(i)] = 1;
            });
        try {
            errors.rethrow();
            ADD_FAILURE() << "nothing was thrown";
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find("iteration 17"), std::string::npos) << error.what();
        }
        EXPECT_EQ(std::count(done.begin(), done.end(), 1), 97);
    }
    EXPECT_NO_THROW(LoopErrors{}.rethrow());
}

TEST(MemoryPlan, PlansAlignsSharesAndPoisons) {
    const Device cpu = Device::cpu();
    MemoryPlan plan;
    Tensor a, b, c, shared;
    plan.add("weights.a", DType::bf16, {3, 5}, &a);
    plan.add("weights.b", DType::f32, {100}, &b);
    plan.add("sums", DType::f64, {1}, &c);
    plan.share("weights.b", &shared);
    EXPECT_EQ(plan.total_bytes(), 256u + 512u + 256u);
    EXPECT_EQ(a.data, nullptr);
    EXPECT_TRUE(a.has_shape({3, 5}));
    Tensor again;
    EXPECT_THROW(plan.add("sums", DType::f32, {1}, &again), Error);
    EXPECT_THROW(plan.share("no such name", &again), Error);
    const std::string table = plan.table();
    EXPECT_LT(table.find("weights"), table.find("sums"));
    EXPECT_NE(table.find("768 B"), std::string::npos) << table;
    EXPECT_NE(table.find("1.00 KiB"), std::string::npos) << table;

    std::shared_ptr<void> memory = plan.allocate(cpu, true);
    for (const Tensor* tensor : {&a, &b, &c}) EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor->data) % 256, 0u);
    EXPECT_EQ(shared.data, b.data);
    EXPECT_NE(a.data, b.data);
    EXPECT_TRUE(std::isnan(to_float(a.get<bf16>()[14])));
    EXPECT_TRUE(std::isnan(b.get<float>()[99]));
    EXPECT_TRUE(std::isnan(c.get<double>()[0]));
    memory = plan.allocate(cpu);
    EXPECT_EQ(b.get<float>()[99], 0);
}

// Pages are made by several threads where there are many: the last part is a short one.
void check_host_memory(const Device& device, size_t bytes) {
    SCOPED_TRACE(bytes);
    const auto view = [&](const std::shared_ptr<void>& memory, DeviceKind kind) {
        return Tensor::contiguous(memory.get(), DType::u8, {static_cast<int64_t>(bytes)}, kind);
    };
    const std::shared_ptr<void> from = device.allocate_host(bytes), to = device.allocate_host(bytes);
    const auto *const first = static_cast<uint8_t*>(from.get()), *const second = static_cast<uint8_t*>(to.get());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % 256, 0u);
    EXPECT_EQ(std::count(first, first + bytes, 0), static_cast<ptrdiff_t>(bytes));
    for (size_t i = 0; i < bytes; ++i)
        static_cast<uint8_t*>(from.get())[i] = static_cast<uint8_t>(i * 0x9e3779b1 >> 24);
    const std::shared_ptr<void> there = device.allocate(bytes);
    device.start_copy(view(there, device.kind()), view(from, DeviceKind::cpu));
    device.start_copy(view(to, DeviceKind::cpu), view(there, device.kind()));
    device.synchronize();
    EXPECT_TRUE(std::equal(first, first + bytes, second));
}

TEST(HostMemory, IsZeroedAndCopied) {
    for (const size_t bytes : {size_t{1}, size_t{4096}, size_t{100'000}}) {
        std::memset(Device::cpu().allocate(bytes).get(), 0xff, bytes);  // for the allocator to give again
        check_host_memory(Device::cpu(), bytes);
    }
}

TEST(HostMemoryCuda, IsZeroedAndCopied) {
    INGOT_CUDA_OR_SKIP(device);
    for (const size_t bytes : {size_t{1}, size_t{4097}, (size_t{200} << 20) + 1000}) check_host_memory(device, bytes);
}

TEST(MemoryPlan, FormatsBytes) {
    EXPECT_EQ(format_bytes(0), "0 B");
    EXPECT_EQ(format_bytes(1023), "1023 B");
    EXPECT_EQ(format_bytes(1536), "1.50 KiB");
    EXPECT_EQ(format_bytes(size_t{5} << 30), "5.00 GiB");
}

TEST(DecideStep, AppliesClipsAndCorrectsBias) {
    StepBlock block;
    block.settings.grad_clip = 1;
    block.sums = {.loss = 50, .targets = 10, .squared_norm = 400};  // norm of the mean loss: 20 / 10 = 2
    decide_step(block);
    EXPECT_EQ(block.decision.apply, 1);
    EXPECT_EQ(block.decision.nonfinite, 0);
    EXPECT_EQ(block.decision.loss, 5);
    EXPECT_EQ(block.decision.grad_norm, 2);
    EXPECT_EQ(block.decision.gradient_factor, 0.5 / 10);
    EXPECT_EQ(block.decision.bias_correction1, 1 - 0.9);
    EXPECT_EQ(block.decision.bias_correction2, 1 - 0.95);
    EXPECT_EQ(block.state.updates_applied, 1);
    block.settings.grad_clip = 0;
    decide_step(block);
    EXPECT_EQ(block.decision.gradient_factor, 1.0 / 10);
    EXPECT_EQ(block.decision.bias_correction1, 1 - 0.9 * 0.9);
    EXPECT_EQ(block.state.updates_applied, 2);
}

TEST(DecideStep, SkipsWithoutTargets) {
    StepBlock block;
    block.state = {.updates_applied = 4, .loss_scale = 1, .good_steps = 4, .consecutive_skips = 2};
    decide_step(block);
    EXPECT_EQ(block.decision.apply, 0);
    EXPECT_EQ(block.decision.nonfinite, 0);
    EXPECT_EQ(block.decision.loss, 0);
    EXPECT_EQ(block.state.updates_applied, 4);
    EXPECT_EQ(block.state.consecutive_skips, 2);
}

TEST(DecideStep, CountsNonFiniteStepsUntilOneIsGood) {
    const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
    StepBlock block;
    for (const StepSums& bad : {StepSums{nan, 10, 1}, StepSums{1, 10, infinity}, StepSums{-infinity, 10, nan}}) {
        block.sums = bad;
        const int32_t before = block.state.consecutive_skips;
        decide_step(block);
        EXPECT_EQ(block.decision.apply, 0);
        EXPECT_EQ(block.decision.nonfinite, 1);
        EXPECT_EQ(block.state.consecutive_skips, before + 1);
        EXPECT_EQ(block.state.loss_scale, 1);  // not dynamic
    }
    block.sums = {.loss = 1, .targets = 1, .squared_norm = 1};
    decide_step(block);
    EXPECT_EQ(block.state.consecutive_skips, 0);
    EXPECT_EQ(block.state.updates_applied, 1);
}

TEST(DecideStep, DynamicScaleHalvesToItsFloorAndGrows) {
    StepBlock block;
    block.settings.dynamic_loss_scale = 1;
    const StepSums overflow{1, 10, std::numeric_limits<double>::infinity()};
    for (int step = 1; step <= 14; ++step) {
        block.sums = overflow;
        decide_step(block);
        EXPECT_EQ(block.state.loss_scale, std::ldexp(1.0, -step));
        EXPECT_EQ(block.state.consecutive_skips, 0);
    }
    decide_step(block);
    EXPECT_EQ(block.state.loss_scale, kLossScaleMin);
    EXPECT_EQ(block.state.consecutive_skips, 1);
    block.sums = {.loss = 1, .targets = 10, .squared_norm = 1};
    for (int step = 1; step < kLossScaleGrowthInterval; ++step) decide_step(block);
    EXPECT_EQ(block.state.loss_scale, kLossScaleMin);
    decide_step(block);
    EXPECT_EQ(block.state.loss_scale, 2 * kLossScaleMin);
    EXPECT_EQ(block.state.good_steps, 0);
    // The norm of the mean loss does not depend on S.
    EXPECT_EQ(block.decision.grad_norm, 1 / (kLossScaleMin * 10));
    block.state.loss_scale = kLossScaleMax;
    for (int step = 0; step < kLossScaleGrowthInterval; ++step) decide_step(block);
    EXPECT_EQ(block.state.loss_scale, kLossScaleMax);
}

}  // namespace ingot::test
