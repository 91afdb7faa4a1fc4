// AdamW and the gradient norm.
//
// Seen to catch: decay applied to the updated weight; eps inside the root; bias corrections swapped; apply ignored; the
// flag of the block before; the last element of a range left out; the head of a range left out of the norm; squares in
// fp32; a range left out of the norm; ranges added up in another order.
#include "kernels/adamw.h"

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/step.h"
#include "tests/support/on_device.h"
#include "tests/support/step_on.h"

namespace ingot::test {
namespace {

INGOT_ON_EACH_DEVICE(AdamW);
INGOT_ON_EACH_DEVICE(GradientNorm);

const Device cpu = Device::cpu();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kInfinity = std::numeric_limits<double>::infinity();

// Settings that let every term show.
StepBlock step_block(double gradient_factor, int64_t updates) {
    StepBlock step;
    step.settings.lr = 0.01;
    step.settings.beta1 = 0.8;
    step.settings.beta2 = 0.9;
    step.settings.eps = 1e-3;
    step.settings.weight_decay = 0.3;
    step.decision.apply = 1;
    step.decision.gradient_factor = gradient_factor;
    step.decision.bias_correction1 = 1 - power(step.settings.beta1, updates);
    step.decision.bias_correction2 = 1 - power(step.settings.beta2, updates);
    return step;
}

struct State {
    explicit State(int64_t n)
        : weights(rounded(normals(n, 1), DType::f32)),
          m(rounded(normals(n, 2, 0.1), DType::f32)),
          v(rounded(normals(n, 3, 0.1), DType::f32)),
          gradient(rounded(normals(n, 4, 5), DType::f32)) {
        for (double& value : v) value = std::abs(value);
    }
    std::vector<double> weights, m, v, gradient;
};

// The state on a device, and updates of parts of it. `copy` is the type of the compute copy; f32 and f64: none. Each
// tensor is a range of a longer one, whose other elements are NaN before and after; the moments may begin one element
// later, so that not all tensors lie alike.
class StateOn {
  public:
    StateOn(const Device& device, DType dtype, const State& state, DType copy, int64_t begin = 0,
            bool lies_alike = true)
        : device_(device),
          n_(static_cast<int64_t>(state.weights.size())),
          copy_(copy),
          margins_{begin, 3},
          askew_{begin + (lies_alike ? 0 : 1), 2},
          weights(margins_, device, dtype, {n_}, state.weights),
          m(askew_, device, dtype, {n_}, state.m),
          v(askew_, device, dtype, {n_}, state.v),
          gradient(margins_, device, dtype, {n_}, state.gradient),
          compute(margins_, device, copy, {n_}) {}
    // Elements [begin, end).
    void update(const StepBlock& step, bool decays, int64_t begin, int64_t end, const Tensor& decay_blocks = {}) const {
        const StepOn on(device_, step);
        const auto part = [&](const Buffer& buffer) { return buffer.tensor().slice(0, begin, end); };
        const int64_t num_blocks = (end - begin + kDecayBlock - 1) / kDecayBlock;
        const Buffer no_block(device_, DType::u8, {num_blocks}, std::vector<double>(static_cast<size_t>(num_blocks)));
        adamw(device_, {.weights = part(weights),
                        .m = part(m),
                        .v = part(v),
                        .gradient = part(gradient),
                        .compute = has_copy() ? part(compute) : Tensor{},
                        .step = on.get(),
                        .decay_blocks = decays || decay_blocks ? decay_blocks : no_block.tensor()});
        device_.synchronize();
    }
    void update(const StepBlock& step, bool decays) const { update(step, decays, 0, n_); }
    bool has_copy() const { return size_of(copy_) == 2; }
    Outputs outputs() const {
        const DType dtype = weights.tensor().dtype;
        const double slack = device_.is_cpu() ? 8 * Output::unit(dtype) : 0;
        Outputs result = {
            {"weights", dtype, weights.values()}, {"m", dtype, m.values(), slack}, {"v", dtype, v.values(), slack}};
        if (has_copy()) {
            EXPECT_TRUE(same(compute.values(), rounded(weights.values(), copy_)));
        }
        return result;
    }

  private:
    Device device_;
    int64_t n_;
    DType copy_;
    Margins margins_, askew_;

  public:
    Buffer weights, m, v, gradient, compute;
};

constexpr int64_t kUpdates = 3;

// The algorithm as published, in long double.
Outputs definition(State state, bool decays) {
    for (int64_t update = 1; update <= kUpdates; ++update) {
        const StepBlock step = step_block(0.25, update);
        const StepSettings& s = step.settings;
        for (size_t i = 0; i < state.gradient.size(); ++i) {
            const long double g = static_cast<long double>(state.gradient[i]) * step.decision.gradient_factor;
            const long double m =
                s.beta1 * static_cast<long double>(state.m[i]) + (1 - static_cast<long double>(s.beta1)) * g;
            const long double v =
                s.beta2 * static_cast<long double>(state.v[i]) + (1 - static_cast<long double>(s.beta2)) * g * g;
            const long double m_hat = m / step.decision.bias_correction1, v_hat = v / step.decision.bias_correction2;
            const long double w = state.weights[i];
            state.weights[i] = static_cast<double>(
                w - s.lr * (m_hat / (std::sqrt(v_hat) + s.eps) + (decays ? s.weight_decay : 0) * w));
            state.m[i] = static_cast<double>(m);
            state.v[i] = static_cast<double>(v);
        }
    }
    return {{"weights", {}, state.weights}, {"m", {}, state.m}, {"v", {}, state.v}};
}

// fp32: m and v round three and four times an update, the weight twice more, its update a tenth of it at most.
void check_range(const Device& device, DType dtype, int64_t begin, int64_t n, DType copy, bool decays,
                 bool lies_alike) {
    SCOPED_TRACE(join(name_of(dtype), " begin ", begin, " n ", n, " copy ", name_of(copy), decays ? " decays" : "",
                      lies_alike ? "" : " askew"));
    const State start(n);
    check_outputs(device, dtype, dtype == DType::f64 ? 8 : 4, definition(start, decays),
                  [&](const Device& on, DType type) {
                      const StateOn state(on, type, start, copy, begin, lies_alike);
                      for (int64_t update = 1; update <= kUpdates; ++update)
                          state.update(step_block(0.25, update), decays);
                      EXPECT_TRUE(same(state.gradient.values(), start.gradient));
                      if (!state.has_copy()) {
                          for (const double value : state.compute.values())
                              EXPECT_TRUE(std::isnan(value)) << "written unasked";
                      }
                      return state.outputs();
                  });
}

constexpr DType kCopies[] = {DType::f32, DType::bf16, DType::f16};  // f32: no copy

TEST_P(AdamW, RangesSmall) {
    for (const DType dtype : {DType::f32, DType::f64})
        for (const DType copy : kCopies) {
            if (is_cuda() && dtype == DType::f64) continue;
            check_range(device(), dtype, 0, 1, copy, true, true);
            check_range(device(), dtype, 0, 1000, copy, true, true);
            check_range(device(), dtype, 0, 1000, copy, false, true);
            check_range(device(), dtype, 3, 30, copy, false, true);
            check_range(device(), dtype, 1, 50, copy, true, false);
        }
}

TEST_P(AdamW, RangesThatBeginAnywhere) {
    for (const DType copy : kCopies)
        for (const int64_t begin : {0, 1, 2, 3, 4, 7})
            for (const int64_t n : {1, 2, 3, 4, 5, 7, 8, 2047, 2048, 2049, 70001})
                for (const bool lies_alike : {true, false}) {
                    if (skips(n)) continue;
                    check_range(device(), DType::f32, begin, n, copy, n % 2 == 0, lies_alike);
                    if (HasFailure()) return;
                }
}

// On the CPU, of its threads.
TEST_P(AdamW, BitsDoNotDependOnWhereARangeBegins) {
    const int64_t n = 5003;
    const State start(n);
    const auto run = [&](std::initializer_list<int64_t> cuts) {
        const StateOn state(device(), DType::f32, start, DType::f32);
        int64_t begin = 0;
        for (const int64_t end : cuts) {
            state.update(step_block(0.25, 2), true, begin, end);
            begin = end;
        }
        return state.outputs();
    };
    const Outputs whole = run({n}), cut = run({1, 2, 77, 2050, 4999, n});
    for (size_t i = 0; i < whole.size(); ++i) EXPECT_TRUE(same(cut[i].values, whole[i].values)) << whole[i].name;
    check_same_bits(device(), DType::f32, [&](const Device&, DType) { return run({n}); });
}

// A space of several tensors in one call gives the bits that a call for each gives; also where it begins anywhere.
TEST_P(AdamW, BlocksSayWhatDecaysSmall) {
    for (const DType dtype : {DType::f32, DType::f64})
        for (const DType copy : kCopies)
            for (const int64_t begin : {0, 3, 4})
                for (const int64_t n : {64, 200, 203, 1000, 5000}) {
                    if (is_cuda() && dtype == DType::f64) continue;
                    SCOPED_TRACE(join(name_of(dtype), " begin ", begin, " n ", n, " copy ", name_of(copy)));
                    std::vector<double> blocks(static_cast<size_t>((n + kDecayBlock - 1) / kDecayBlock), 1);
                    for (size_t block = 1; block < blocks.size(); block += 3) blocks[block] = 0;
                    const Buffer decay_blocks(device(), DType::u8, {static_cast<int64_t>(blocks.size())}, blocks);
                    const State start(n);
                    const StepBlock step = step_block(0.25, 2);
                    const StateOn whole(device(), dtype, start, copy, begin),
                        parts(device(), dtype, start, copy, begin);
                    whole.update(step, false, 0, n, decay_blocks);
                    for (int64_t from = 0; from < n; from += kDecayBlock)
                        parts.update(step, blocks[static_cast<size_t>(from / kDecayBlock)] != 0, from,
                                     std::min(n, from + kDecayBlock));
                    const Outputs a = whole.outputs(), b = parts.outputs();
                    for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(same(a[i].values, b[i].values)) << a[i].name;
                }
}

TEST_P(AdamW, ASkippedStepChangesNothing) {
    for (const int64_t n : {9, 3001}) {
        State start(n);
        start.gradient.assign(start.gradient.size(), kInfinity);
        StepBlock skipped = step_block(kNaN, 1);
        skipped.decision.apply = 0;
        StateOn state(device(), DType::f32, start, DType::bf16);
        const std::vector<double> old = rounded(normals(n, 5), DType::bf16);
        state.compute.set(old);
        state.update(skipped, true);
        EXPECT_TRUE(same(state.weights.values(), start.weights));
        EXPECT_TRUE(same(state.m.values(), start.m));
        EXPECT_TRUE(same(state.v.values(), start.v));
        EXPECT_TRUE(same(state.compute.values(), old));
    }
}

Buffer norm_workspace(const Device& device, size_t num_gradients = 1) {
    return Buffer(device, DType::u8, {static_cast<int64_t>(gradient_norm_workspace(device, num_gradients))});
}

TEST_P(GradientNorm, AddsSquaresInDouble) {
    const Buffer workspace = norm_workspace(device());
    // On CUDA the last is more than one round of the fixed grid, which takes 1,024 x 256 x 4 x 4 elements at once.
    for (const int64_t n : {0, 1, 2, 3, 4, 5, 255, 256, 1000, 1048577, 5000003})
        for (const int64_t begin : {0, 1, 2, 3})
            for (const DType dtype : {DType::f32, DType::f64}) {
                if (skips(n) || (n > 5000 && begin > 0) || (is_cuda() && dtype == DType::f64)) continue;
                SCOPED_TRACE(join(name_of(dtype), " n ", n, " begin ", begin));
                // Squares that fp32 cannot hold.
                const std::vector<double> values = rounded(normals(n, 6, 1e20), dtype);
                long double expected = 1e40L;
                for (const double value : values) expected += static_cast<long double>(value) * value;
                const Buffer gradient(Margins{begin, 0}, device(), dtype, {n}, values);
                double sums[2];
                for (const int i : {0, 1}) {
                    StepBlock block;
                    block.sums.squared_norm = 1e40;
                    const StepOn step(device(), block);
                    with_threads(i + 1, [&] {
                        gradient_norm(device(), {.step = step.get(), .gradients = {gradient}, .workspace = workspace});
                    });
                    sums[i] = step.read().sums.squared_norm;
                }
                // Each thread adds at most a few dozen terms in double, then come ten levels of a tree.
                EXPECT_NEAR(sums[0] / static_cast<double>(expected), 1, (is_cuda() ? 100 : 80) * 0x1p-53);
                EXPECT_EQ(sums[0], sums[1]);
            }
}

TEST_P(GradientNorm, NanIsSeenSmall) {
    const Buffer workspace = norm_workspace(device());
    for (const int64_t where : {0, 1, 5}) {
        std::vector<double> values(7, 3);
        values[static_cast<size_t>(where)] = kNaN;
        const StepOn step(device(), StepBlock{});
        const Buffer gradient(device(), DType::f32, {7}, values);
        gradient_norm(device(), {.step = step.get(), .gradients = {gradient}, .workspace = workspace});
        EXPECT_TRUE(std::isnan(step.read().sums.squared_norm)) << "NaN at " << where;
    }
}

// A rank's ranges of the flat space: what lies between them belongs to others, and is NaN here.
TEST_P(GradientNorm, ManyHaveTheBitsOfACallForEach) {
    // On CUDA one launch takes 64 gradients, and the last kernel 32 at a time.
    for (const int64_t count : {0, 1, 2, 31, 33, 70, 130}) {
        SCOPED_TRACE(count);
        const std::vector<int64_t> sizes = {64, 1, 0, 5003, 3, 12, 1000, 2};
        const auto size_of_range = [&](int64_t i) {
            return i == 3 ? 300007 : sizes[static_cast<size_t>(i) % sizes.size()];
        };
        std::vector<double> values;
        std::vector<std::pair<int64_t, int64_t>> ranges;
        for (int64_t i = 0; i < count; ++i) {
            const auto begin = static_cast<int64_t>(values.size());
            const std::vector<double> more =
                rounded(normals(size_of_range(i), 100 + static_cast<uint64_t>(i)), DType::f32);
            values.insert(values.end(), more.begin(), more.end());
            ranges.emplace_back(begin, begin + size_of_range(i));
            values.insert(values.end(), static_cast<size_t>(1 + i % 4), kNaN);
        }
        const Buffer flat(device(), DType::f32, {static_cast<int64_t>(values.size())}, values);
        std::vector<Tensor> gradients;
        for (const auto& [begin, end] : ranges) gradients.push_back(flat.tensor().slice(0, begin, end));
        StepBlock block;
        block.sums.squared_norm = 0.3;
        const StepOn together(device(), block), one_by_one(device(), block);
        const Buffer workspace = norm_workspace(device(), gradients.size()), small = norm_workspace(device());
        gradient_norm(device(), {.step = together.get(), .gradients = gradients, .workspace = workspace});
        for (const Tensor& gradient : gradients)
            gradient_norm(device(), {.step = one_by_one.get(), .gradients = {gradient}, .workspace = small});
        const double sum = together.read().sums.squared_norm;
        EXPECT_EQ(sum, one_by_one.read().sums.squared_norm);
        long double expected = 0.3L;
        for (const double value : values)
            if (!std::isnan(value)) expected += static_cast<long double>(value) * value;
        EXPECT_NEAR(sum / static_cast<double>(expected), 1, 1e-13);
    }
}

// The sum in the order of the CUDA kernels, on the host. `head`: elements before the first boundary of 16 bytes.
double sum_in_order_of_cuda(const std::vector<double>& gradient, size_t head) {
    constexpr size_t kBlocks = 1024, kThreads = 256, kWarp = 32;
    // As a warp's butterfly: in each round a lane adds what its partner has.
    const auto add_up_block = [](const std::vector<double>& of_threads) {
        double sum = 0;
        for (size_t warp = 0; warp < of_threads.size(); warp += kWarp) {
            std::vector<double> lanes(of_threads.begin() + static_cast<int64_t>(warp),
                                      of_threads.begin() + static_cast<int64_t>(warp + kWarp));
            for (size_t distance = kWarp / 2; distance > 0; distance /= 2) {
                const std::vector<double> before = lanes;
                for (size_t lane = 0; lane < kWarp; ++lane) lanes[lane] = before[lane] + before[lane ^ distance];
            }
            sum += lanes[0];
        }
        return sum;
    };
    const size_t n = gradient.size(), num_vectors = (n - head) / 4;
    std::vector<double> of_blocks;
    for (size_t block = 0; block < kBlocks; ++block) {
        std::vector<double> of_threads;
        for (size_t thread = 0; thread < kThreads; ++thread) {
            double sums[4] = {};
            const auto add = [&](size_t lane, size_t i) {
                sums[lane] = std::fma(gradient[i], gradient[i], sums[lane]);
            };
            for (size_t i = block * kThreads + thread; i < num_vectors; i += kBlocks * kThreads)
                for (size_t lane = 0; lane < 4; ++lane) add(lane, head + 4 * i + lane);
            const size_t tail = head + 4 * num_vectors + thread;
            if (block == 0 && thread < head) add(0, thread);
            if (block == 0 && tail < n) add(1, tail);
            of_threads.push_back((sums[0] + sums[1]) + (sums[2] + sums[3]));
        }
        of_blocks.push_back(add_up_block(of_threads));
    }
    return add_up_block(of_blocks);
}

// Runs of the past are repeated with the same bits only while the order of the sum stays what it was.
TEST(GradientNormCuda, KeepsItsOrder) {
    INGOT_CUDA_OR_SKIP(device);
    const Buffer workspace = norm_workspace(device, 2);
    for (const int64_t n : {1, 7, 1000, 262144, 1048577, 5000003})
        for (const int64_t begin : {0, 1}) {
            SCOPED_TRACE(join("n ", n, " begin ", begin));
            const std::vector<double> values = rounded(normals(n, 8), DType::f32);
            const Buffer gradient(Margins{begin, 0}, device, DType::f32, {n}, values);
            const auto head = static_cast<size_t>(std::min<int64_t>(n, (4 - begin) % 4));
            const double expected = sum_in_order_of_cuda(values, head);
            const StepOn step(device, StepBlock{});
            gradient_norm(device, {.step = step.get(), .gradients = {gradient}, .workspace = workspace});
            EXPECT_EQ(step.read().sums.squared_norm, expected);
            gradient_norm(device, {.step = step.get(), .gradients = {gradient, gradient}, .workspace = workspace});
            EXPECT_EQ(step.read().sums.squared_norm, expected + expected + expected);
        }
}

TEST(AdamWCopy, RoundsToNearestEven) {
    // lr = 0 keeps the weights: ties to even, up, down, overflow to infinity, a subnormal of fp16.
    const std::vector<double> values = {1 + 0x1p-8, 1 + 3 * 0x1p-8, 1 + 0x1p-8 + 0x1p-20, -1 - 0x1p-9, 1e5, 0x1p-24};
    StepBlock step = step_block(1, 1);
    step.settings.lr = 0;
    for (const DType dtype : {DType::bf16, DType::f16}) {
        const Buffer weights(cpu, DType::f32, {6}, values), m(cpu, DType::f32, {6}, std::vector<double>(6));
        const Buffer v(cpu, DType::f32, {6}, std::vector<double>(6)), g(cpu, DType::f32, {6}, std::vector<double>(6));
        const Buffer compute(cpu, dtype, {6});
        adamw(cpu, {.weights = weights, .m = m, .v = v, .gradient = g, .compute = compute, .step = &step});
        const std::vector<double> expected =
            dtype == DType::bf16
                ? std::vector<double>{1, 1 + 0x1p-6, 1 + 0x1p-7, -1, 99840, 0x1p-24}
                : std::vector<double>{1 + 0x1p-8, 1 + 3 * 0x1p-8, 1 + 0x1p-8, -1 - 0x1p-9, kInfinity, 0x1p-24};
        EXPECT_TRUE(same(compute.values(), expected)) << name_of(dtype);
    }
}

// begin, norm, decide and update together: clipping makes the step's gradient exactly grad_clip long.
TEST(AdamWStep, FromEndToEnd) {
    const int64_t n = 50;
    const std::vector<double> gradient = normals(n, 7, 3);
    StepSettings settings;
    settings.lr = 1;
    settings.beta1 = settings.beta2 = 0;
    settings.eps = 1;
    settings.weight_decay = 0;
    settings.grad_clip = 0.5;
    StepBlock step;
    step.sums.loss = 99;
    step_begin(cpu, &step, settings);
    EXPECT_EQ(step.sums.loss, 0);
    step.sums.loss = 12;
    step.sums.targets = 4;
    const std::vector<double> zeros(static_cast<size_t>(n));
    const Buffer weights(cpu, DType::f64, {n}, zeros), m(cpu, DType::f64, {n}, zeros), v(cpu, DType::f64, {n}, zeros);
    const Buffer g(cpu, DType::f64, {n}, gradient);
    gradient_norm(cpu, {.step = &step, .gradients = {g}});
    step_decide(cpu, &step);
    EXPECT_EQ(step.decision.apply, 1);
    EXPECT_DOUBLE_EQ(step.decision.loss, 3);
    EXPECT_NEAR(step.decision.grad_norm, std::sqrt(step.sums.squared_norm) / 4, 1e-14);
    adamw(cpu, {.weights = weights, .m = m, .v = v, .gradient = g, .compute = {}, .step = &step});
    double square = 0;
    for (const double value : m.values()) square += value * value;  // beta1 = 0: m is the clipped gradient
    EXPECT_NEAR(std::sqrt(square), 0.5, 1e-14);
}

TEST(GradientNormCuda, RefusesASmallWorkspace) {
    INGOT_CUDA_OR_SKIP(device);
    const Buffer small(device, DType::u8, {8}), gradient(device, DType::f32, {4});
    const StepOn step(device, StepBlock{});
    EXPECT_THROW(gradient_norm(device, {.step = step.get(), .gradients = {gradient}, .workspace = small}), Error);
    EXPECT_THROW(gradient_norm(device, {.step = step.get(), .gradients = {gradient}}), Error);
}

TEST(AdamWArguments, Refuses) {
    const Buffer a(cpu, DType::f32, {4}), b(cpu, DType::f32, {5}), wide(cpu, DType::f64, {4}),
        half(cpu, DType::bf16, {4});
    const Buffer integers(cpu, DType::i32, {4}), matrix(cpu, DType::f32, {2, 2});
    const StepBlock step = step_block(1, 1);
    const auto run = [&](const Tensor& w, const Tensor& m, const Tensor& g, const Tensor& compute) {
        adamw(cpu, {.weights = w, .m = m, .v = a, .gradient = g, .compute = compute, .step = &step});
    };
    EXPECT_THROW(run(b, a, a, {}), Error);
    EXPECT_THROW(run(a, wide, a, {}), Error);
    EXPECT_THROW(run(a, a, half, {}), Error);
    EXPECT_THROW(run(half, a, a, {}), Error);
    EXPECT_THROW(run(a, a, a, integers), Error);
    EXPECT_THROW(run(a, a, a, b), Error);
    EXPECT_THROW(run(matrix, a, a, {}), Error);
    const Buffer two(cpu, DType::u8, {2}, {1, 1});
    EXPECT_THROW(adamw(cpu, {.weights = a, .m = a, .v = a, .gradient = a, .step = &step, .decay_blocks = two}), Error);
    EXPECT_THROW(adamw(cpu, {.weights = a, .m = a, .v = a, .gradient = a, .step = &step, .decay_blocks = a}), Error);
    StepBlock block;
    EXPECT_THROW(gradient_norm(cpu, {.step = &block, .gradients = {half}}), Error);
    EXPECT_THROW(gradient_norm(cpu, {.step = &block, .gradients = {matrix}}), Error);
    EXPECT_THROW(gradient_norm(cpu, {.step = &block, .gradients = {Tensor{}}}), Error);
    EXPECT_THROW(gradient_norm(cpu, {.step = &block, .gradients = {a, wide}}), Error);
    EXPECT_EQ(block.sums.squared_norm, 0);
}

}  // namespace
}  // namespace ingot::test
