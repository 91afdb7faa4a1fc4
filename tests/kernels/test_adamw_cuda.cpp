// AdamW and the gradient norm on CUDA against the CPU twin in double precision.
//
// Seen to catch: the last element of a range left out; eps inside the root; a skipped step applied; the head of a range
// left out of the norm; squares in fp32.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "tests/kernels/adamw_case.h"
#include "tests/support/step_on.h"

namespace ingot::test {

namespace {

constexpr DType kCopies[] = {DType::f32, DType::bf16, DType::f16};  // f32: no copy

// Three updates by the CPU twin.
State twin(const State& start, const std::vector<double>& gradient, DType scalar, bool decays) {
    const Device cpu = Device::cpu();
    const auto n = static_cast<int64_t>(gradient.size());
    const Buffer weights(cpu, scalar, {n}, start.weights), m(cpu, scalar, {n}, start.m), v(cpu, scalar, {n}, start.v);
    const Buffer g(cpu, scalar, {n}, gradient), blocks = decay_everywhere(cpu, n, decays);
    for (int64_t i = 1; i <= 3; ++i) {
        const StepBlock step = step_block(0.25, i);
        adamw(cpu, {.weights = weights, .m = m, .v = v, .gradient = g, .step = &step, .decay_blocks = blocks});
    }
    return {weights.values(), m.values(), v.values()};
}

std::vector<double> part(const std::vector<double>& all, int64_t begin, int64_t n) {
    return {all.begin() + begin, all.begin() + begin + n};
}

// The range [begin, begin + n) of flat spaces; the moments' spaces may begin one element later, so that not all tensors
// lie alike.
void check_range(const Device& device, int64_t begin, int64_t n, DType copy, bool decays, bool lies_alike) {
    SCOPED_TRACE(
        join("begin ", begin, " n ", n, " copy ", name_of(copy), decays ? " decays" : "", lies_alike ? "" : " askew"));
    const State start = initial(n);
    const std::vector<double> gradient = rounded(normals(n, 4, 5), DType::f32);
    const State exact = twin(start, gradient, DType::f64, decays), plain = twin(start, gradient, DType::f32, decays);
    const int64_t shift = lies_alike ? 0 : 1, all = begin + n + 3;
    // What lies outside the range is NaN before and after.
    const auto padded = [&](const std::vector<double>& values, int64_t offset) {
        std::vector<double> result(static_cast<size_t>(all), std::numeric_limits<double>::quiet_NaN());
        std::copy(values.begin(), values.end(), result.begin() + offset);
        return result;
    };
    const Buffer weights(device, DType::f32, {all}, padded(start.weights, begin));
    const Buffer m(device, DType::f32, {all}, padded(start.m, begin + shift));
    const Buffer v(device, DType::f32, {all}, padded(start.v, begin + shift));
    const Buffer g(device, DType::f32, {all}, padded(gradient, begin));
    const Buffer compute(device, copy, {all}), none = decay_everywhere(device, n, false);
    for (int64_t i = 1; i <= 3; ++i) {
        const StepOn step(device, step_block(0.25, i));
        adamw(device, {.weights = weights.tensor().slice(0, begin, begin + n),
                       .m = m.tensor().slice(0, begin + shift, begin + shift + n),
                       .v = v.tensor().slice(0, begin + shift, begin + shift + n),
                       .gradient = g.tensor().slice(0, begin, begin + n),
                       .compute = copy == DType::f32 ? Tensor{} : compute.tensor().slice(0, begin, begin + n),
                       .step = step.get(),
                       .decay_blocks = decays ? Tensor{} : none});
        device.synchronize();
    }
    const std::vector<double> w = part(weights.values(), begin, n);
    EXPECT_TRUE(close(w, exact.weights, precision_bound(DType::f32, plain.weights, exact.weights)));
    EXPECT_TRUE(close(part(m.values(), begin + shift, n), exact.m, precision_bound(DType::f32, plain.m, exact.m)));
    EXPECT_TRUE(close(part(v.values(), begin + shift, n), exact.v, precision_bound(DType::f32, plain.v, exact.v)));
    EXPECT_TRUE(same(part(g.values(), begin, n), gradient));
    if (copy != DType::f32) {
        EXPECT_TRUE(same(part(compute.values(), begin, n), rounded(w, copy)));
    }
    for (const Buffer* buffer : {&weights, &m, &v}) {
        int64_t untouched = 0;
        for (const double value : buffer->values()) untouched += std::isnan(value) ? 1 : 0;
        EXPECT_EQ(untouched, all - n) << "written outside the range";
    }
    int64_t untouched = 0;
    for (const double value : compute.values()) untouched += std::isnan(value) ? 1 : 0;
    EXPECT_EQ(untouched, copy == DType::f32 ? all : all - n) << "written outside the range";
}

}  // namespace

TEST(AdamWCuda, RangesSmall) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType copy : kCopies) {
        check_range(device, 0, 1000, copy, true, true);
        check_range(device, 3, 30, copy, false, true);
        check_range(device, 1, 50, copy, true, false);
    }
}

TEST(AdamWCuda, RangesThatBeginAnywhere) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType copy : kCopies)
        for (const int64_t begin : {0, 1, 2, 3, 4, 7})
            for (const int64_t n : {1, 2, 3, 4, 5, 8, 2047, 2048, 2049, 70001})
                for (const bool lies_alike : {true, false}) {
                    check_range(device, begin, n, copy, n % 2 == 0, lies_alike);
                    if (testing::Test::HasFailure()) return;
                }
}

TEST(AdamWCuda, BitsDoNotDependOnWhereARangeBegins) {
    INGOT_CUDA_OR_SKIP(device);
    const int64_t n = 5003;
    const State start = initial(n);
    const std::vector<double> gradient = rounded(normals(n, 4, 5), DType::f32);
    const auto run = [&](std::initializer_list<int64_t> cuts) {
        const Buffer weights(device, DType::f32, {n}, start.weights), m(device, DType::f32, {n}, start.m);
        const Buffer v(device, DType::f32, {n}, start.v), g(device, DType::f32, {n}, gradient);
        const StepOn step(device, step_block(0.25, 2));
        int64_t begin = 0;
        for (const int64_t end : cuts) {
            adamw(device, {.weights = weights.tensor().slice(0, begin, end),
                           .m = m.tensor().slice(0, begin, end),
                           .v = v.tensor().slice(0, begin, end),
                           .gradient = g.tensor().slice(0, begin, end),
                           .step = step.get()});
            begin = end;
        }
        return State{weights.values(), m.values(), v.values()};
    };
    const State whole = run({n}), cut = run({1, 2, 77, 2050, 4999, n}), again = run({n});
    EXPECT_TRUE(same(cut.weights, whole.weights));
    EXPECT_TRUE(same(cut.m, whole.m));
    EXPECT_TRUE(same(cut.v, whole.v));
    EXPECT_TRUE(same(again.weights, whole.weights));
}

// A space of several tensors in one call gives the bits that a call for each gives; also where it begins anywhere.
TEST(AdamWCuda, BlocksSayWhatDecaysSmall) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType copy : kCopies)
        for (const int64_t begin : {0, 3, 4})
            for (const int64_t n : {64, 203, 5000}) {
                SCOPED_TRACE(join("begin ", begin, " n ", n, " copy ", name_of(copy)));
                const int64_t num_blocks = (n + kDecayBlock - 1) / kDecayBlock, all = begin + n;
                std::vector<double> blocks;
                for (int64_t block = 0; block < num_blocks; ++block) blocks.push_back(block % 3 == 1 ? 0 : 1);
                const State start = initial(all);
                const Buffer g(device, DType::f32, {all}, rounded(normals(all, 4, 5), DType::f32));
                const Buffer decay_blocks(device, DType::u8, {num_blocks}, blocks),
                    none = decay_everywhere(device, kDecayBlock, false);
                const StepOn step(device, step_block(0.25, 2));
                const auto run = [&](bool in_one_call) {
                    const Buffer weights(device, DType::f32, {all}, start.weights),
                        m(device, DType::f32, {all}, start.m);
                    const Buffer v(device, DType::f32, {all}, start.v);
                    const Buffer compute(device, copy, {all}, std::vector<double>(static_cast<size_t>(all)));
                    const int64_t part = in_one_call ? n : kDecayBlock;
                    for (int64_t from = begin; from < all; from += part) {
                        const int64_t to = std::min(all, from + part);
                        const bool decays = blocks[static_cast<size_t>((from - begin) / kDecayBlock)] != 0;
                        adamw(device, {.weights = weights.tensor().slice(0, from, to),
                                       .m = m.tensor().slice(0, from, to),
                                       .v = v.tensor().slice(0, from, to),
                                       .gradient = g.tensor().slice(0, from, to),
                                       .compute = copy == DType::f32 ? Tensor{} : compute.tensor().slice(0, from, to),
                                       .step = step.get(),
                                       .decay_blocks = in_one_call ? decay_blocks
                                                       : decays    ? Tensor{}
                                                                   : none});
                    }
                    return std::array{weights.values(), m.values(), v.values(), compute.values()};
                };
                const auto whole = run(true), parts = run(false);
                for (size_t i = 0; i < whole.size(); ++i) EXPECT_TRUE(same(whole[i], parts[i])) << i;
            }
}

TEST(AdamWCuda, ASkippedStepChangesNothing) {
    INGOT_CUDA_OR_SKIP(device);
    const int64_t n = 3001;
    const State state = initial(n);
    const std::vector<double> old = rounded(normals(n, 5), DType::bf16);
    StepBlock skipped = step_block(std::numeric_limits<double>::quiet_NaN(), 1);
    skipped.decision.apply = 0;
    const StepOn step(device, skipped);
    const Buffer weights(device, DType::f32, {n}, state.weights), m(device, DType::f32, {n}, state.m);
    const Buffer v(device, DType::f32, {n}, state.v), compute(device, DType::bf16, {n}, old);
    const Buffer g(device, DType::f32, {n}, std::vector<double>(n, std::numeric_limits<double>::infinity()));
    adamw(device, {.weights = weights, .m = m, .v = v, .gradient = g, .compute = compute, .step = step.get()});
    EXPECT_TRUE(same(weights.values(), state.weights));
    EXPECT_TRUE(same(m.values(), state.m));
    EXPECT_TRUE(same(v.values(), state.v));
    EXPECT_TRUE(same(compute.values(), old));
}

TEST(GradientNormCuda, AddsSquaresInDouble) {
    INGOT_CUDA_OR_SKIP(device);
    const Buffer workspace(device, DType::u8, {static_cast<int64_t>(gradient_norm_workspace(device))});
    // The last is more than one round of the fixed grid, which takes 1,024 x 256 x 4 x 4 elements at once.
    for (const int64_t n : {0, 1, 2, 3, 4, 5, 1000, 1048577, 5000003})
        for (const int64_t begin : {0, 1, 2, 3}) {
            SCOPED_TRACE(join("n ", n, " begin ", begin));
            // Squares that fp32 cannot hold.
            const std::vector<double> values = rounded(normals(n + begin, 6, 1e20), DType::f32);
            long double expected = 1e40L;
            for (int64_t i = begin; i < begin + n; ++i)
                expected += static_cast<long double>(values[static_cast<size_t>(i)]) * values[static_cast<size_t>(i)];
            const Buffer gradient(device, DType::f32, {n + begin}, values);
            double sums[2];
            for (double& sum : sums) {
                StepBlock block;
                block.sums.squared_norm = 1e40;
                const StepOn step(device, block);
                gradient_norm(device, {.step = step.get(),
                                       .gradient = gradient.tensor().slice(0, begin, begin + n),
                                       .workspace = workspace});
                sum = step.read().sums.squared_norm;
            }
            // Each thread adds at most a few dozen terms in double, then come ten levels of a tree.
            EXPECT_NEAR(sums[0] / static_cast<double>(expected), 1, 100 * 0x1p-53);
            EXPECT_EQ(sums[0], sums[1]);
            if (n > 5000) break;
        }
}

TEST(GradientNormCuda, Small) {
    INGOT_CUDA_OR_SKIP(device);
    const Buffer workspace(device, DType::u8, {static_cast<int64_t>(gradient_norm_workspace(device))});
    for (const int64_t where : {0, 1, 5}) {
        std::vector<double> values(7, 3);
        values[static_cast<size_t>(where)] = std::numeric_limits<double>::quiet_NaN();
        const StepOn step(device, StepBlock{});
        const Buffer gradient(device, DType::f32, {7}, values);
        gradient_norm(device, {.step = step.get(), .gradient = gradient, .workspace = workspace});
        EXPECT_TRUE(std::isnan(step.read().sums.squared_norm)) << "NaN at " << where;
    }
    const Buffer small(device, DType::u8, {8}), gradient(device, DType::f32, {4});
    const StepOn step(device, StepBlock{});
    EXPECT_THROW(gradient_norm(device, {.step = step.get(), .gradient = gradient, .workspace = small}), Error);
    EXPECT_THROW(gradient_norm(device, {.step = step.get(), .gradient = gradient}), Error);
}

}  // namespace ingot::test
