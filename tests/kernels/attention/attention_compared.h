// A run of attention on any device against the CPU twin in double precision.
#pragma once

#include <cmath>
#include <deque>
#include <limits>
#include <memory>
#include <mutex>

#include "tests/kernels/attention/attention_case.h"

namespace ingot::test {

inline double norm(const std::vector<double>& values) {
    double squares = 0;
#pragma omp parallel for reduction(+ : squares) if (values.size() > 20000)
    for (const double value : values) squares += value * value;
    return std::sqrt(squares);
}

inline double distance(const std::vector<double>& a, const std::vector<double>& b) {
    if (a.size() != b.size()) return std::numeric_limits<double>::quiet_NaN();
    double squares = 0;
#pragma omp parallel for reduction(+ : squares) if (a.size() > 20000)
    for (size_t i = 0; i < a.size(); ++i) squares += (a[i] - b[i]) * (a[i] - b[i]);
    return std::sqrt(squares);
}

// The error, in L2, may be twice that of the plain version, which computes in fp32 and rounds where the kernel rounds,
// plus 1e-5 of `scale`, plus two ulps of the dtype on the largest element: a value next to a tie may round either way,
// and in a small tensor the plain version may happen to be exact. Written so that NaN fails.
inline testing::AssertionResult is_as_good(DType dtype, const std::vector<double>& actual,
                                           const std::vector<double>& plain, const std::vector<double>& exact,
                                           double scale) {
    double largest = 0;
    for (const double value : exact) largest = std::max(largest, std::abs(value));
    const double ulp = dtype == DType::bf16 ? 0x1p-7 : dtype == DType::f16 ? 0x1p-10 : 0;
    const double error = distance(actual, exact), plain_error = distance(plain, exact);
    const double bound = 2 * plain_error + 1e-5 * scale + 2 * ulp * largest;
    if (error <= bound) return testing::AssertionSuccess();
    return testing::AssertionFailure() << "error " << error << " > " << bound << ", the plain version's is "
                                       << plain_error << ", the norm is " << norm(exact);
}

// lse, where it is finite; where it is not, it is -inf in both, which leaves no difference.
inline std::vector<double> finite_part(const std::vector<double>& lse, const std::vector<double>& exact) {
    std::vector<double> result = lse;
    for (size_t i = 0; i < lse.size(); ++i)
        if (std::isinf(exact[i]) && lse[i] == exact[i]) result[i] = 0;
    return result;
}

// The results of the CPU twin in double (`exact`) and in fp32, rounded where a kernel rounds (`plain`).
struct AttentionTwins {
    AttentionTwins(const AttentionCase& c, DType dtype, const MaskValues* mask, bool has_backward) {
        const AttentionRun in_double(c, DType::f64, dtype), in_single(c, DType::f32, dtype);
        dout = norm(in_double.dout.values());
        for (const AttentionRun* run : {&in_double, &in_single}) {
            if (mask != nullptr) run->set_mask(*mask);
            run->forward();
            if (!has_backward) continue;
            // Backward reads what was stored.
            if (run == &in_single) run->out.set(rounded(run->out.values(), dtype));
            run->backward();
        }
        exact = in_double.result();
        plain = in_single.result();
    }
    AttentionResult exact, plain;
    double dout;  // the norm of dout
};

// The twins of a case serve all kernels: the last ones are kept.
inline std::shared_ptr<const AttentionTwins> attention_twins(const AttentionCase& c, DType dtype) {
    static std::mutex mutex;
    static std::deque<std::pair<std::string, std::shared_ptr<const AttentionTwins>>> known;
    std::string key = join(c.describe(), " ", c.value_scale, " ", name_of(dtype));
    for (const int64_t start : c.starts) key += join(" ", start);
    const auto find = [&]() -> std::shared_ptr<const AttentionTwins> {
        const std::lock_guard lock(mutex);
        for (const auto& [of, twins] : known)
            if (of == key) return twins;
        return nullptr;
    };
    if (auto twins = find()) return twins;
    auto twins = std::make_shared<const AttentionTwins>(c, dtype, nullptr, true);
    const std::lock_guard lock(mutex);
    known.emplace_back(key, twins);
    if (known.size() > 150) known.pop_front();  // some hundred megabytes
    return twins;
}

// Fails the test unless what `run` left is as good as it should be.
inline void expect_as_good(const AttentionRun& run, DType dtype, bool has_backward = true,
                           const MaskValues* mask = nullptr) {
    const auto twins = mask == nullptr && has_backward
                           ? attention_twins(run.c, dtype)
                           : std::make_shared<const AttentionTwins>(run.c, dtype, mask, has_backward);
    const AttentionResult actual = run.result(), &e = twins->exact, &p = twins->plain;
    const auto expect = [&](const AttentionMember& member, double scale) {
        const auto values = member.values;
        EXPECT_TRUE(
            is_as_good(dtype, actual.*values, rounded(p.*values, dtype), e.*values, std::max(norm(e.*values), scale)))
            << member.name;
    };
    expect(kOut, 0);
    if (has_backward)
        for (const AttentionMember& member : {kDq, kDk, kDv}) expect(member, twins->dout);
    // A score is a sum of up to 128 products that cancel, and errs by ulps of these, not of itself.
    const std::vector<double> lse = finite_part(e.lse, e.lse);
    EXPECT_TRUE(is_as_good(DType::f32, finite_part(actual.lse, e.lse), finite_part(p.lse, e.lse), lse,
                           std::max(norm(lse), std::sqrt(static_cast<double>(lse.size())))))
        << "lse";
}

// Every case runs in every kernel; in sm90 with its head sizes, and if the GPU is one that it runs on.
struct Variant {
    DType dtype;
    AttentionRequest request = AttentionRequest::automatic;
    std::string describe() const {
        const char* const kernels[] = {"automatic", "simt", "sm80", "sm90"};
        return join(name_of(dtype), ", ", kernels[static_cast<int>(request)]);
    }
};
constexpr AttentionRequest kPlain = AttentionRequest::simt, kSm80 = AttentionRequest::sm80,
                           kSm90 = AttentionRequest::sm90;
inline std::vector<Variant> variants(const Device& device) {
    if (device.is_cpu()) return {{DType::f64}, {DType::f32}};
    std::vector<Variant> result = {
        {DType::f32, kPlain}, {DType::bf16, kPlain}, {DType::f16, kPlain}, {DType::bf16, kSm80}, {DType::f16, kSm80}};
    if (choose_attention(device, DType::bf16, 64).kernel == AttentionKernel::sm90)
        result.insert(result.end(), {{DType::bf16, kSm90}, {DType::f16, kSm90}});
    return result;
}

inline AttentionCase with(AttentionCase c, const Variant& variant) {
    c.options.request = variant.request;
    if (variant.request == kSm90) c.HS = c.HS <= 64 ? 64 : 128;
    return c;
}

inline AttentionRun run_of(const AttentionCase& c, const Variant& variant, const Device& device, Margins margins = {}) {
    return {with(c, variant), variant.dtype, variant.dtype == DType::f64 ? DType::f32 : variant.dtype, device, margins};
}

}  // namespace ingot::test
