// Filling whole tensors: the same bits on the CPU and on CUDA, in every type that a device has.
//
// Seen to catch, in the CPU's twin: an index that takes no notice of the gap between rows; the last element left out; a
// stream that is not used.
#include <cmath>
#include <limits>

#include "kernels/core/rng.h"
#include "kernels/fill.h"
#include "tests/support/on_device.h"

namespace ingot::test {
namespace {

INGOT_ON_EACH_DEVICE(Fill);

void check_normal(const Device& device, DType dtype) {
    SCOPED_TRACE(join(device.name(), " ", name_of(dtype)));
    // More than a grid has threads; some five hundred of these are beyond 3.5 sigma.
    for (const int64_t n : {1, 255, 257, (1 << 20) + 3}) {
        std::vector<double> expected;
        for (int64_t i = 0; i < n; ++i)
            expected.push_back(0.02f * random_normal(0x123456789abcdef0, 77, static_cast<uint64_t>(i)));
        const Buffer out(device, dtype, {n});
        fill_normal(device, {.out = out, .seed = 0x123456789abcdef0, .stream = 77, .std = 0.02});
        EXPECT_TRUE(same(out.values(), rounded(expected, dtype))) << n;
    }
    // Rows of 7 columns that lie 10 apart.
    const Buffer rows(Margins{0, 3}, device, dtype, {5, 7});
    fill_normal(device, {.out = rows, .seed = 3, .stream = 4, .std = 1});
    std::vector<double> expected;
    for (uint64_t i = 0; i < 5 * 7; ++i) expected.push_back(random_normal(3, 4, i));
    EXPECT_TRUE(same(rows.values(), rounded(expected, dtype)));
}

void check_value(const Device& device, DType dtype) {
    // The last is half way between two values of bf16, and between two of fp16: to even.
    for (const double value : {0.0, 1.0, -2.5, 1 + 3 * 0x1p-8, 1 + 0x1p-11})
        for (const int64_t n : {1, 300, 70001}) {
            const Buffer out(device, dtype, {n});
            fill_value(device, {.out = out, .value = value});
            EXPECT_TRUE(same(out.values(), rounded(std::vector<double>(static_cast<size_t>(n), value), dtype)))
                << device.name() << " " << name_of(dtype) << " " << n << " " << value;
        }
}

void check_round(const Device& device, DType dtype) {
    const double infinity = std::numeric_limits<double>::infinity();
    std::vector<double> values = rounded(normals(70001, 5, 3), DType::f32);
    // Ties to even both ways, the largest finite ones and beyond, subnormals of both types, signed zeros.
    const std::vector<double> edges = {
        1 + 0x1p-8, 1 + 3 * 0x1p-8, 1 + 0x1p-11, 1 + 3 * 0x1p-11, 65504,       65519,    65520, 3.39e38, -3.4e38,
        infinity,   -infinity,      0x1p-24,     0x1p-25,         3 * 0x1p-26, 0x1p-140, -0.0,  0.0};
    values.insert(values.end(), edges.begin(), edges.end());
    const auto n = static_cast<int64_t>(values.size());
    const Buffer in(device, DType::f32, {n}, values), out(device, dtype, {n});
    round_to(device, {.out = out, .in = in});
    EXPECT_TRUE(same(out.values(), rounded(values, dtype))) << name_of(dtype);
    EXPECT_TRUE(same(in.values(), rounded(values, DType::f32)));
    const Buffer broken(device, DType::f32, {3}, {1, std::numeric_limits<double>::quiet_NaN(), 2});
    const Buffer copy(device, dtype, {3});
    round_to(device, {.out = copy, .in = broken});
    EXPECT_TRUE(std::isnan(copy.values()[1])) << name_of(dtype);
    EXPECT_EQ(copy.values()[2], 2);
}

TEST_P(Fill, DrawsAndFillsSmall) {
    for (const DType dtype : dtypes()) {
        check_normal(device(), dtype);
        check_value(device(), dtype);
    }
    for (const DType dtype : {DType::bf16, DType::f16}) check_round(device(), dtype);
}

TEST_P(Fill, NothingIsDrawnIntoAnEmptyTensorSmall) {
    const Buffer none(device(), DType::f32, {0});
    fill_normal(device(), {.out = none, .seed = 1, .stream = 1, .std = 1});
    fill_value(device(), {.out = none, .value = 1});
}

TEST(FillArguments, Refuses) {
    const Device cpu = Device::cpu();
    const Buffer matrix(cpu, DType::f32, {4, 6}), integers(cpu, DType::i32, {4}), half(cpu, DType::bf16, {24});
    EXPECT_THROW(
        fill_normal(cpu, {.out = matrix.tensor().slice(1, 0, 4).split_last(2, 2), .seed = 1, .stream = 1, .std = 1}),
        Error);
    EXPECT_THROW(fill_normal(cpu, {.out = integers, .seed = 1, .stream = 1, .std = 1}), Error);
    EXPECT_THROW(fill_value(cpu, {.out = matrix.tensor().slice(1, 0, 3), .value = 1}), Error);
    EXPECT_THROW(round_to(cpu, {.out = half.tensor().slice(0, 0, 20), .in = matrix}), Error);
    EXPECT_THROW(round_to(cpu, {.out = matrix, .in = matrix}), Error);
}

}  // namespace
}  // namespace ingot::test
