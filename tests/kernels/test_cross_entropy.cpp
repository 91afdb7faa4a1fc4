// Seen to catch: padding that counts, or keeps its logits; z-loss's factor 1 instead of 2; ignored rows left as logits,
// ignored targets counted; a sum that is not rescaled to a new maximum; -inf subtracted from -inf; on CUDA, the last
// block of a cluster left out, the wait for the copies left out.
#include <cmath>
#include <limits>

#include "kernels/core/rng.h"
#include "kernels/cross_entropy.h"
#include "tests/support/on_device.h"
#include "tests/support/step_on.h"

namespace ingot::test {
namespace {

INGOT_ON_EACH_DEVICE(CrossEntropy);
INGOT_ON_EACH_DEVICE(LossSum);

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kInfinity = std::numeric_limits<double>::infinity();

// (n, V) logits in rows of VP; the padding is NaN, and nobody may notice.
struct Case {
    DType dtype;
    int64_t n, V, VP;
    double z_loss = 0, loss_scale = 1;
    int64_t first_element = 0;  // where the logits begin in their buffer
    std::vector<double> logits = {}, targets = {};
};

Case with_inputs(Case c) {
    const std::vector<double> x = rounded(normals(c.n * c.V, 1, 2.5), c.dtype);
    c.logits.assign(static_cast<size_t>(c.n * c.VP), kNaN);
    for (int64_t i = 0; i < c.n; ++i) {
        std::copy_n(x.begin() + i * c.V, c.V, c.logits.begin() + i * c.VP);
        // The last column, an ignored row, the first column, then any; later every seventh row is ignored.
        const auto any = static_cast<int64_t>(random_bits(3, 1, static_cast<uint64_t>(i)) % static_cast<uint64_t>(c.V));
        c.targets.push_back(static_cast<double>(i == 0 ? c.V - 1 : i % 7 == 1 ? -1 : i == 2 ? 0 : any));
    }
    return c;
}

// The elements without those of the targets, which are near -S and would hide all others in a norm.
std::vector<double> without_targets(std::vector<double> gradient, const Case& c) {
    for (size_t i = 0; i < c.targets.size(); ++i)
        if (c.targets[i] >= 0) gradient[i * static_cast<size_t>(c.VP) + static_cast<size_t>(c.targets[i])] = 0;
    return gradient;
}

Outputs outputs_of(const Case& c, DType dtype, const std::vector<double>& losses, const std::vector<double>& gradient) {
    return {{"losses", accumulation_dtype(dtype), losses},
            {"gradient", dtype, gradient},
            {"gradient without targets", dtype, without_targets(gradient, c)}};
}

// The padding of the gradient is 0.
Outputs definition(const Case& c) {
    std::vector<double> losses(c.targets.size()), gradient(c.logits.size());
#pragma omp parallel for if (gradient.size() > 20000)
    for (size_t i = 0; i < losses.size(); ++i) {
        if (c.targets[i] < 0) continue;
        const size_t begin = i * static_cast<size_t>(c.VP), V = static_cast<size_t>(c.V);
        const auto target = static_cast<size_t>(c.targets[i]);
        const double maximum = *std::max_element(&c.logits[begin], &c.logits[begin] + V);
        long double total = 0;
        for (size_t v = 0; v < V; ++v) total += std::exp(c.logits[begin + v] - maximum);
        const double log_total = static_cast<double>(std::log(total)), lse = maximum + log_total;
        losses[i] = log_total - (c.logits[begin + target] - maximum);
        for (size_t v = 0; v < V; ++v)
            gradient[begin + v] =
                c.loss_scale * (std::exp(c.logits[begin + v] - maximum - log_total) * (1 + 2 * c.z_loss * lse) -
                                (v == target ? 1 : 0));
    }
    return outputs_of(c, c.dtype, losses, gradient);
}

Outputs run(const Case& c, const Device& device, DType dtype, bool write_gradient = true) {
    const Buffer flat(Margins{c.first_element, 0}, device, dtype, {c.n * c.VP}, c.logits);
    const Buffer losses(device, accumulation_dtype(dtype), {c.n}), targets(device, DType::i32, {c.n}, c.targets);
    const Buffer scale(device, DType::f64, {1}, {c.loss_scale});
    cross_entropy(device, {.logits = flat.tensor().view({c.n, c.VP}),
                           .losses = losses,
                           .targets = targets,
                           .vocab_size = c.V,
                           .z_loss = c.z_loss,
                           .loss_scale = c.loss_scale == 1 ? nullptr : scale.tensor().get<double>(),
                           .write_gradient = write_gradient});
    return outputs_of(c, dtype, losses.values(), flat.values());
}

// The CPU's sums round once for each of a few hundred partial sums, and exp and log a few times more.
void check(const Device& device, const Case& shape) {
    const Case c = with_inputs(shape);
    SCOPED_TRACE(join(name_of(c.dtype), " n ", c.n, " V ", c.V, " VP ", c.VP, " z ", c.z_loss, " S ", c.loss_scale,
                      " first ", c.first_element));
    const Outputs exact = definition(c);
    const double ulps = c.dtype == DType::f64 ? 64 : 16;
    const Outputs actual =
        check_outputs(device, c.dtype, ulps, exact, [&](const Device& on, DType type) { return run(c, on, type); });
    const std::vector<double>&gradient = values_of(actual, "gradient"), &losses = values_of(actual, "losses");
    for (size_t i = 0; i < gradient.size(); ++i) {
        const auto VP = static_cast<size_t>(c.VP);
        ASSERT_TRUE((i % VP < static_cast<size_t>(c.V) && c.targets[i / VP] >= 0) || gradient[i] == 0)
            << "row " << i / VP << " column " << i % VP;
    }
    for (size_t i = 0; i < losses.size(); ++i) EXPECT_TRUE(c.targets[i] >= 0 || losses[i] == 0);

    const Outputs evaluated =
        check_outputs(device, c.dtype, ulps, {exact[0]}, [&](const Device& on, DType type) -> Outputs {
            const Outputs all = run(c, on, type, false);
            for (size_t i = 0; i < c.logits.size(); ++i)
                EXPECT_TRUE(all[1].values[i] == c.logits[i] || std::isnan(c.logits[i])) << "logit " << i << " changed";
            return {all[0]};
        });
    if (device.is_cpu()) {
        EXPECT_TRUE(same(evaluated[0].values, losses)) << "losses depend on write_gradient";
    }
}

// On Hopper: a small and a large row in one block, clusters of small shares, one of large shares, and the streaming
// kernel, with and without vectors.
TEST_P(CrossEntropy, Small) {
    for (const DType dtype : dtypes()) {
        const int64_t per_vector = 16 / size_of(dtype);
        for (const int64_t vectors : {48, 6000, 8000, 19000, 32000, 70000}) {
            if (skips_row(vectors * per_vector)) continue;
            check(device(), {.dtype = dtype,
                             .n = 3,
                             .V = vectors * per_vector - 3,
                             .VP = vectors * per_vector,
                             .z_loss = 1e-3,
                             .loss_scale = 4});
        }
        check(device(), {.dtype = dtype, .n = 3, .V = 50, .VP = 61, .z_loss = 1e-3});
    }
}

TEST_P(CrossEntropy, Shapes) {
    for (const DType dtype : dtypes())
        for (const auto& [n, V, VP] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 8},
                                       {4, 2, 2},
                                       {4, 2, 8},
                                       {5, 1, 4},
                                       {5, 5, 8},
                                       {5, 11, 16},
                                       {5, 61, 128},
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
            for (const auto& [z, S] : {std::pair{0.0, 1.0}, {0.02, 1.0}, {0.02, 8.0}}) {
                if (skips(n * VP) || (S == 1 && z > 0 && n * VP > 1000)) continue;
                check(device(), {.dtype = dtype, .n = n, .V = V, .VP = VP, .z_loss = z, .loss_scale = S});
                if (HasFailure()) return;
            }
}

// More rows than the persistent blocks of an H200 work on at a time, so that every block takes three, some of them
// ignored: in small blocks of one warp and of several, in large ones, and in clusters.
TEST_P(CrossEntropy, ManyRowsPerBlock) {
    for (const auto& [n, V, VP] : {std::tuple<int64_t, int64_t, int64_t>{9001, 1000, 1008},
                                   {1701, 8190, 8320},
                                   {541, 29001, 29008},
                                   {401, 57997, 58000}})
        if (!skips(n * VP)) check(device(), {.dtype = dtypes()[1], .n = n, .V = V, .VP = VP, .z_loss = 1e-3});
}

TEST_P(CrossEntropy, Misaligned) {
    for (const DType dtype : dtypes())
        for (const int64_t first : {1, 4, 8})
            check(device(), {.dtype = dtype, .n = 3, .V = 1020, .VP = 1024, .z_loss = 1e-3, .first_element = first});
}

TEST_P(CrossEntropy, HugeLogitsStayFinite) {
    // log2(e) times 49984 is as far from a float as can be.
    std::vector<std::pair<DType, double>> cases;
    for (const DType dtype : dtypes()) cases.emplace_back(dtype, dtype == DType::f16 ? 49984 : 1e4);
    if (is_cuda()) cases.emplace_back(DType::bf16, 1e12);
    for (const auto& [dtype, big] : cases)
        for (const bool write_gradient : {true, false}) {
            const std::vector<double> logits = {big,  -big, 0,    big,  3,    kNaN, kNaN, kNaN,
                                                -big, -big, -big, -big, -big, kNaN, kNaN, kNaN};
            const Case c = {.dtype = dtype,
                            .n = 2,
                            .V = 5,
                            .VP = 8,
                            .z_loss = dtype == DType::f16 ? 0 : 1e-4,
                            .logits = rounded(logits, dtype),
                            .targets = {1, 2}};
            const Outputs exact = definition(c), actual = run(c, device(), dtype, write_gradient);
            // The losses are differences of numbers of that size, of which fp32 keeps 2^-24.
            EXPECT_LE(max_abs_error(actual[0].values, exact[0].values), dtype == DType::f64 ? 1e-11
                                                                        : is_cuda()         ? 2 * big * 0x1p-23
                                                                                            : 2e-3);
            if (!write_gradient) continue;
            const double bound = dtype == DType::bf16 ? 0x1p-8 : dtype == DType::f16 ? 0x1p-10 : 1e-6;
            EXPECT_TRUE(close(actual[1].values, exact[1].values, bound));
        }
}

TEST_P(CrossEntropy, BrokenLogitsAreSeen) {
    // On CUDA in one block, in a cluster, and in the streaming kernel.
    for (const int64_t V : {5, 1000, 151936, 1001}) {
        if (skips(V)) continue;
        for (const double broken : {kNaN, kInfinity})
            for (const bool write_gradient : {true, false}) {
                Case c = with_inputs({.dtype = dtypes()[1], .n = 5, .V = V, .VP = V});
                for (const int64_t where : {V - 1, 2 * V, 4 * V + V / 2}) c.logits[static_cast<size_t>(where)] = broken;
                const std::vector<double> losses = run(c, device(), c.dtype, write_gradient)[0].values;
                EXPECT_TRUE(std::isnan(losses[0])) << V;
                EXPECT_EQ(losses[1], 0);
                EXPECT_TRUE(std::isnan(losses[2]));
                EXPECT_TRUE(std::isfinite(losses[3]));
                EXPECT_TRUE(std::isnan(losses[4]) || c.targets[4] == static_cast<double>(V / 2));
            }
    }
}

// A logit of -inf is a token that cannot come: probability 0, and no NaN.
TEST_P(CrossEntropy, MinusInfinityIsAProbabilityOfZero) {
    const int64_t V = 4000;
    for (const DType dtype : {DType::f32, dtypes()[1]}) {
        Case c = with_inputs({.dtype = dtype, .n = 2, .V = V, .VP = 4096});
        // So many that whole threads see nothing else.
        for (int64_t v = 0; v < V; ++v)
            if (v != 7 && v != V - 1) c.logits[static_cast<size_t>(v)] = -kInfinity;
        const Outputs exact = definition(c);
        for (const bool write_gradient : {true, false}) {
            const Outputs actual = run(c, device(), dtype, write_gradient);
            EXPECT_TRUE(close(actual[0].values, exact[0].values, 1e-6));
            if (write_gradient) {
                EXPECT_TRUE(close(actual[1].values, exact[1].values, dtype == DType::bf16 ? 0x1p-8 : 1e-6));
            }
        }
    }
}

TEST_P(CrossEntropy, SameBitsEveryTime) {
    for (const int64_t V : {50, 257, 50304, 151936}) {
        if (skips(V)) continue;
        const DType dtype = dtypes()[1];
        const Case c =
            with_inputs({.dtype = dtype, .n = V < 1000 ? 67 : 6, .V = V, .VP = (V + 127) / 128 * 128, .z_loss = 1e-4});
        check_same_bits(device(), dtype, [&](const Device& on, DType type) { return run(c, on, type); });
    }
}

TEST(CrossEntropyGradient, AgreesWithFiniteDifferences) {
    Case c = {.dtype = DType::f64, .n = 4, .V = 9, .VP = 9, .z_loss = 0.05, .targets = {3, -1, 0, 8}};
    c.logits = normals(c.n * c.V, 2);
    // The z-loss is differentiated but not reported: it is added here, from lse = loss + target logit.
    const auto loss = [&] {
        const std::vector<double> losses = run(c, Device::cpu(), DType::f64, false)[0].values;
        double sum = 0;
        for (size_t i = 0; i < losses.size(); ++i) {
            sum += losses[i];
            if (c.targets[i] < 0) continue;
            const double lse = losses[i] + c.logits[i * 9 + static_cast<size_t>(c.targets[i])];
            sum += c.z_loss * lse * lse;
        }
        return sum;
    };
    check_host_gradients(loss, {{"logits", &c.logits, run(c, Device::cpu(), DType::f64)[1].values}});
}

TEST_P(LossSum, AddsLossesAndCountsTargets) {
    for (const int64_t N : {0, 1, 31, 63, 64, 65, 500, 1024, 1025, 65536, 100003})
        for (const DType dtype : {DType::f32, DType::f64}) {
            if (is_cuda() && dtype == DType::f64) continue;
            std::vector<double> values = rounded(normals(N, 4), dtype), targets(static_cast<size_t>(N));
            double sum = 10;
            int64_t count = 3;
            for (size_t i = 0; i < values.size(); ++i) {
                targets[i] = i % 3 == 1 ? -1 : static_cast<double>(i % 5);
                if (targets[i] < 0) values[i] = 0;
                sum += values[i];
                count += targets[i] >= 0;
            }
            const Buffer losses(device(), dtype, {N}, values), target(device(), DType::i32, {N}, targets);
            double sums[2];
            for (double& each : sums) {
                StepBlock start;
                start.sums.loss = 10;
                start.sums.targets = 3;
                const StepOn step(device(), start);
                with_threads(&each == sums ? 1 : 2,
                             [&] { loss_sum(device(), {.step = step.get(), .losses = losses, .targets = target}); });
                each = step.read().sums.loss;
                EXPECT_EQ(step.read().sums.targets, count);
            }
            // In double the order of 1e5 terms near 1 shows only here.
            EXPECT_NEAR(sums[0], sum, N > 1000 ? 1e-9 : 1e-11);
            EXPECT_EQ(sums[0], sums[1]);
        }
}

TEST(CrossEntropyArguments, Refuses) {
    const Device cpu = Device::cpu();
    const Buffer logits(cpu, DType::f32, {2, 8}, std::vector<double>(16)), losses(cpu, DType::f32, {2});
    const Buffer good(cpu, DType::i32, {2}, {0, 1}), late(cpu, DType::i32, {2}, {0, 5}),
        below(cpu, DType::i32, {2}, {0, -2});
    const Buffer wide(cpu, DType::f64, {2}), three(cpu, DType::f32, {3});
    const auto run = [&](const Tensor& l, const Tensor& out, const Tensor& t, int64_t V) {
        cross_entropy(cpu, {.logits = l, .losses = out, .targets = t, .vocab_size = V});
    };
    EXPECT_THROW(run(logits, losses, late, 5), Error);
    EXPECT_THROW(run(logits, losses, below, 5), Error);
    EXPECT_THROW(run(logits, losses, good, 9), Error);
    EXPECT_THROW(run(logits, losses, good, 0), Error);
    EXPECT_THROW(run(logits, wide, good, 5), Error);
    EXPECT_THROW(run(logits, three, good, 5), Error);
    EXPECT_THROW(run(logits.tensor().slice(1, 0, 6), losses, good, 5), Error);
    EXPECT_THROW(run(losses, losses, good, 2), Error);
    StepBlock step;
    EXPECT_THROW(loss_sum(cpu, {.step = &step, .losses = three, .targets = good}), Error);
    EXPECT_THROW(loss_sum(cpu, {.step = &step, .losses = logits, .targets = good}), Error);
}

}  // namespace
}  // namespace ingot::test
