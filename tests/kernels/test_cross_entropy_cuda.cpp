// Cross-entropy on CUDA against the CPU twin in double precision.
//
// Seen to catch: padding that counts; the last block of a cluster left out; the wait for the copies left out; a sum
// that is not rescaled to a new maximum; z-loss's factor 1 instead of 2; -inf subtracted from -inf; ignored targets
// counted; padding that keeps its logits.
#include <cmath>
#include <limits>

#include "kernels/core/rng.h"
#include "kernels/cross_entropy.h"
#include "tests/support/step_on.h"

namespace ingot::test {

namespace {

constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};
const double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Case {
    DType dtype;
    int64_t n, V, VP;
    double z_loss = 0, loss_scale = 1;
    int64_t first_element = 0;  // where the logits begin in their buffer
};

// (n, V) logits in rows of VP; the padding is NaN, and nobody may notice.
struct Inputs {
    explicit Inputs(const Case& c) {
        const std::vector<double> x = rounded(normals(c.n * c.V, 1, 2.5), c.dtype);
        logits.assign(static_cast<size_t>(c.n * c.VP), kNaN);
        for (int64_t i = 0; i < c.n; ++i) {
            std::copy_n(x.begin() + i * c.V, c.V, logits.begin() + i * c.VP);
            // The first and last column, an ignored row, then any.
            const auto any =
                static_cast<int64_t>(random_bits(3, 1, static_cast<uint64_t>(i)) % static_cast<uint64_t>(c.V));
            targets.push_back(static_cast<double>(i == 0 ? c.V - 1 : i == 1 ? -1 : i == 2 ? 0 : any));
        }
    }
    std::vector<double> logits, targets;
};

struct Result {
    std::vector<double> losses, gradient;
};

Result twin(const Case& c, const Inputs& in, DType scalar) {
    const Device cpu = Device::cpu();
    const Buffer logits(cpu, scalar, {c.n, c.VP}, in.logits), losses(cpu, scalar, {c.n});
    const Buffer targets(cpu, DType::i32, {c.n}, in.targets);
    cross_entropy(cpu, {.logits = logits,
                        .losses = losses,
                        .targets = targets,
                        .vocab_size = c.V,
                        .z_loss = c.z_loss,
                        .loss_scale = &c.loss_scale});
    return {losses.values(), logits.values()};
}

Result cuda(const Device& device, const Case& c, const Inputs& in, bool write_gradient) {
    std::vector<double> moved(static_cast<size_t>(c.first_element), kNaN);
    moved.insert(moved.end(), in.logits.begin(), in.logits.end());
    const Buffer buffer(device, c.dtype, {c.first_element + c.n * c.VP}, moved), losses(device, DType::f32, {c.n});
    const Buffer targets(device, DType::i32, {c.n}, in.targets);
    const Buffer loss_scale(device, DType::f64, {1}, {c.loss_scale});
    const Tensor logits = buffer.tensor().slice(0, c.first_element, c.first_element + c.n * c.VP).view({c.n, c.VP});
    cross_entropy(device, {.logits = logits,
                           .losses = losses,
                           .targets = targets,
                           .vocab_size = c.V,
                           .z_loss = c.z_loss,
                           .loss_scale = c.loss_scale == 1 ? nullptr : loss_scale.tensor().get<double>(),
                           .write_gradient = write_gradient});
    const std::vector<double> all = buffer.values();
    return {losses.values(), {all.begin() + c.first_element, all.end()}};
}

// The elements without those of the targets, which are near -S and would hide all others in a norm.
std::vector<double> without_targets(std::vector<double> gradient, const Case& c, const Inputs& in) {
    for (size_t i = 0; i < in.targets.size(); ++i)
        if (in.targets[i] >= 0) gradient[i * static_cast<size_t>(c.VP) + static_cast<size_t>(in.targets[i])] = 0;
    return gradient;
}

void check(const Device& device, const Case& c) {
    SCOPED_TRACE(join(name_of(c.dtype), " n ", c.n, " V ", c.V, " VP ", c.VP, " z ", c.z_loss, " S ", c.loss_scale,
                      " first ", c.first_element));
    const Inputs in(c);
    const Result exact = twin(c, in, DType::f64);
    Result plain = twin(c, in, DType::f32);
    plain.gradient = rounded(plain.gradient, c.dtype);
    const Result actual = cuda(device, c, in, true);
    EXPECT_TRUE(close(actual.losses, exact.losses, precision_bound(DType::f32, plain.losses, exact.losses)));
    EXPECT_TRUE(close(actual.gradient, exact.gradient, precision_bound(c.dtype, plain.gradient, exact.gradient)));
    const std::vector<double> rest = without_targets(exact.gradient, c, in);
    EXPECT_TRUE(close(without_targets(actual.gradient, c, in), rest,
                      precision_bound(c.dtype, without_targets(plain.gradient, c, in), rest)));
    for (int64_t i = 0; i < c.n; ++i)
        for (int64_t v = 0; v < c.VP; ++v)
            ASSERT_TRUE((v < c.V && in.targets[static_cast<size_t>(i)] >= 0) ||
                        actual.gradient[static_cast<size_t>(i * c.VP + v)] == 0)
                << "row " << i << " column " << v;
    for (size_t i = 0; i < in.targets.size(); ++i) EXPECT_TRUE(in.targets[i] >= 0 || actual.losses[i] == 0);

    const Result evaluated = cuda(device, c, in, false);
    EXPECT_TRUE(close(evaluated.losses, exact.losses, precision_bound(DType::f32, plain.losses, exact.losses)));
    for (size_t i = 0; i < in.logits.size(); ++i)
        ASSERT_TRUE(evaluated.gradient[i] == in.logits[i] || std::isnan(in.logits[i])) << "logit " << i << " changed";
}

}  // namespace

// On Hopper: a small and a large row in one block, clusters of small shares, one of large shares, and the streaming
// kernel, with and without vectors.
TEST(CrossEntropyCuda, Small) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes) {
        const int64_t per_vector = 16 / size_of(dtype);
        for (const int64_t vectors : {48, 6000, 8000, 19000, 32000, 70000})
            check(device, {.dtype = dtype,
                           .n = 3,
                           .V = vectors * per_vector - 3,
                           .VP = vectors * per_vector,
                           .z_loss = 1e-3,
                           .loss_scale = 4});
        check(device, {.dtype = dtype, .n = 3, .V = 50, .VP = 61, .z_loss = 1e-3});
    }
}

TEST(CrossEntropyCuda, Shapes) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes)
        for (const auto& [n, V, VP] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 8},
                                       {4, 2, 8},
                                       {5, 5, 8},
                                       {33, 257, 384},
                                       {100, 61, 61},
                                       {7, 1000, 1000},
                                       {3, 1, 4096},
                                       {65, 8192, 8192},
                                       {5, 8190, 8320},
                                       {9, 50257, 50304},
                                       {4, 50304, 50304},
                                       {5, 151643, 151680},
                                       {4, 151936, 151936},
                                       {3, 100, 151936},
                                       {3, 300001, 300032}})
            for (const auto& [z, S] : {std::pair{0.0, 1.0}, {0.02, 8.0}}) {
                check(device, {.dtype = dtype, .n = n, .V = V, .VP = VP, .z_loss = z, .loss_scale = S});
                if (testing::Test::HasFailure()) return;
            }
}

TEST(CrossEntropyCuda, Misaligned) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes)
        for (const int64_t first : {1, 4, 8})
            check(device, {.dtype = dtype, .n = 3, .V = 1020, .VP = 1024, .z_loss = 1e-3, .first_element = first});
}

TEST(CrossEntropyCuda, HugeLogitsStayFinite) {
    INGOT_CUDA_OR_SKIP(device);
    const int64_t V = 5, VP = 8;
    for (const DType dtype : kDTypes)
        for (const bool write_gradient : {true, false}) {
            const Case c = {.dtype = dtype, .n = 2, .V = V, .VP = VP};
            Inputs in(c);
            const double big = dtype == DType::f16 ? 6e4 : 1e4;
            in.logits = {big, -big, 0, big, 3, kNaN, kNaN, kNaN, -big, -big, -big, -big, -big, kNaN, kNaN, kNaN};
            in.logits = rounded(in.logits, dtype);
            in.targets = {1, 2};
            const Result exact = twin(c, in, DType::f64), actual = cuda(device, c, in, write_gradient);
            // The losses are differences of numbers near 1e4 or 6e4, of which fp32 keeps 2^-24.
            EXPECT_LE(max_abs_error(actual.losses, exact.losses), 2 * big * 0x1p-23);
            if (write_gradient) {
                EXPECT_TRUE(close(actual.gradient, exact.gradient, dtype == DType::f32 ? 1e-6 : 0x1p-8));
            }
        }
}

TEST(CrossEntropyCuda, BrokenLogitsAreSeen) {
    INGOT_CUDA_OR_SKIP(device);
    // In one block, in a cluster, and in the streaming kernel.
    for (const int64_t V : {1000, 151936, 1001})
        for (const double broken : {kNaN, std::numeric_limits<double>::infinity()})
            for (const bool write_gradient : {true, false}) {
                const Case c = {.dtype = DType::bf16, .n = 4, .V = V, .VP = V};
                Inputs in(c);
                in.logits[static_cast<size_t>(V - 1)] = broken;
                in.logits[static_cast<size_t>(2 * V)] = broken;
                const Result actual = cuda(device, c, in, write_gradient);
                EXPECT_TRUE(std::isnan(actual.losses[0])) << V;
                EXPECT_EQ(actual.losses[1], 0);
                EXPECT_TRUE(std::isnan(actual.losses[2]));
                EXPECT_TRUE(std::isfinite(actual.losses[3]));
            }
}

// A logit of -inf is a token that cannot come: probability 0, and no NaN.
TEST(CrossEntropyCuda, MinusInfinityIsAProbabilityOfZero) {
    INGOT_CUDA_OR_SKIP(device);
    const int64_t V = 4000, VP = 4096;
    const Case c = {.dtype = DType::f32, .n = 2, .V = V, .VP = VP};
    Inputs in(c);
    // So many that whole threads see nothing else.
    for (int64_t v = 0; v < V; ++v)
        if (v != 7 && v != V - 1) in.logits[static_cast<size_t>(v)] = -std::numeric_limits<double>::infinity();
    const Result exact = twin(c, in, DType::f64);
    for (const bool write_gradient : {true, false}) {
        const Result actual = cuda(device, c, in, write_gradient);
        EXPECT_TRUE(close(actual.losses, exact.losses, 1e-6));
        if (write_gradient) {
            EXPECT_TRUE(close(actual.gradient, exact.gradient, 1e-6));
        }
    }
}

TEST(CrossEntropyCuda, SameBitsEveryTime) {
    INGOT_CUDA_OR_SKIP(device);
    for (const int64_t V : {257, 50304, 151936}) {
        const Case c = {.dtype = DType::bf16, .n = 6, .V = V, .VP = (V + 127) / 128 * 128, .z_loss = 1e-4};
        const Inputs in(c);
        const Result first = cuda(device, c, in, true);
        for (int repeat = 1; repeat < 10; ++repeat) {
            const Result again = cuda(device, c, in, true);
            ASSERT_TRUE(same(again.losses, first.losses));
            ASSERT_TRUE(same(again.gradient, first.gradient));
        }
    }
}

TEST(LossSumCuda, AddsLossesAndCountsTargets) {
    INGOT_CUDA_OR_SKIP(device);
    for (const int64_t N : {0, 1, 31, 1024, 1025, 65536, 100003}) {
        std::vector<double> values = rounded(normals(N, 4), DType::f32), targets(static_cast<size_t>(N));
        double sum = 10;
        int64_t count = 3;
        for (size_t i = 0; i < values.size(); ++i) {
            targets[i] = i % 3 == 1 ? -1 : static_cast<double>(i % 5);
            if (targets[i] < 0) values[i] = 0;
            sum += values[i];
            count += targets[i] >= 0;
        }
        const Buffer losses(device, DType::f32, {N}, values), target(device, DType::i32, {N}, targets);
        double sums[2];
        for (double& each : sums) {
            StepBlock start;
            start.sums.loss = 10;
            start.sums.targets = 3;
            const StepOn step(device, start);
            loss_sum(device, {.step = step.get(), .losses = losses, .targets = target});
            each = step.read().sums.loss;
            EXPECT_EQ(step.read().sums.targets, count);
        }
        // In double the order of 1e5 terms near 1 shows only here.
        EXPECT_NEAR(sums[0], sum, 1e-9);
        EXPECT_EQ(sums[0], sums[1]);
    }
}

}  // namespace ingot::test
