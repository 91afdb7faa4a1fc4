// A run of attention on any device against the CPU twin in double precision.
#pragma once

#include <cmath>
#include <limits>

#include "tests/kernels/attention/attention_case.h"

namespace ingot::test {

inline double norm(const std::vector<double>& values) {
    double squares = 0;
    for (const double value : values) squares += value * value;
    return std::sqrt(squares);
}

inline double distance(const std::vector<double>& a, const std::vector<double>& b) {
    if (a.size() != b.size()) return std::numeric_limits<double>::quiet_NaN();
    double squares = 0;
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

// What a run gives, and what it should give.
struct Compared {
    Compared(const AttentionCase& c, DType dtype)
        : dtype(dtype), exact(c, DType::f64, dtype), plain(c, DType::f32, dtype) {}
    void set_mask(const std::vector<double> (&mask)[4]) {
        for (AttentionRun* run : {&exact, &plain}) run->set_mask(mask[0], mask[1], mask[2], mask[3]);
    }
    void expect(const AttentionRun& run, bool has_backward = true) {
        exact.forward();
        plain.forward();
        if (has_backward) {
            exact.backward();
            plain.out.set(rounded(plain.out.values(), dtype));  // backward reads what was stored
            plain.backward();
        }
        const AttentionResult actual = run.result(), e = exact.result(), p = plain.result();
        const auto expect = [&](const char* name, std::vector<double> AttentionResult::*member, double scale) {
            EXPECT_TRUE(is_as_good(dtype, actual.*member, rounded(p.*member, dtype), e.*member,
                                   std::max(norm(e.*member), scale)))
                << name;
        };
        const double dout = norm(exact.dout.values());
        expect("out", &AttentionResult::out, 0);
        if (has_backward) {
            expect("dq", &AttentionResult::dq, dout);
            expect("dk", &AttentionResult::dk, dout);
            expect("dv", &AttentionResult::dv, dout);
        }
        // A score is a sum of up to 128 products that cancel, and errs by ulps of these, not of itself.
        const std::vector<double> lse = finite_part(e.lse, e.lse);
        EXPECT_TRUE(is_as_good(DType::f32, finite_part(actual.lse, e.lse), finite_part(p.lse, e.lse), lse,
                               std::max(norm(lse), std::sqrt(static_cast<double>(lse.size())))))
            << "lse";
        EXPECT_TRUE(run.padding_is_intact());
    }
    DType dtype;
    AttentionRun exact, plain;
};

}  // namespace ingot::test
