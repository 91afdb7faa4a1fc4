// The comparer of attention's tests.
//
// Seen to catch: a bound that NaN passes, sizes not compared.
#include "tests/kernels/attention/attention_compared.h"

#include <gtest/gtest.h>

#include <limits>

namespace ingot::test {
namespace {

TEST(AttentionCompared, TheComparerFailsOnNan) {
    const std::vector<double> ones = {1, 1}, spoilt = {1, std::numeric_limits<double>::quiet_NaN()};
    EXPECT_TRUE(is_as_good(DType::bf16, ones, ones, ones, 1));
    EXPECT_FALSE(is_as_good(DType::bf16, spoilt, ones, ones, 1));
    EXPECT_FALSE(is_as_good(DType::bf16, ones, spoilt, ones, 1));
    EXPECT_FALSE(is_as_good(DType::bf16, {1}, ones, ones, 1));
}

}  // namespace
}  // namespace ingot::test
