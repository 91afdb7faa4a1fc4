// Seen to catch: the residual's gradient not passed on, RoPE's backward left out, QK-norm's raw input replaced by the
// normed one, attention_norm not recomputed, the tied head's gradient overwriting the embedding's, each chunk of logits
// overwriting the head's, an untied embedding's gradient not zeroed for a step's first micro-batch.
#include "src/model/model.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>

#include "tests/src/model/small_model.h"
#include "tests/support/finite_difference.h"

namespace ingot::test {
namespace {

const Device cpu = Device::cpu();
const std::vector<int64_t> kPlain = {0, 6}, kPacked = {0, 1, 4, 6, 6, 10, 11};

// Finite differences run the model a few thousand times; threads would only get in each other's way.
struct OneThread {
    OneThread() : before(omp_get_max_threads()) { omp_set_num_threads(1); }
    ~OneThread() { omp_set_num_threads(before); }
    int before;
};

void check_model_gradients(const ModelConfig& config, const std::vector<int64_t>& starts) {
    const OneThread guard;
    SmallModel small(config);
    const Row row = random_row(12, config.vocab_size, starts, 3);
    const RowBuffers buffers(row);
    const MicroBatch batch = buffers;
    small.train(row);
    std::vector<Differentiated> inputs;
    for (const Parameter& parameter : small.model.table().parameters())
        for (const CheckpointPart& part : parameter.parts) {
            const Tensor gradient = part_view(small.model.gradients(), parameter, part);
            inputs.push_back(
                {part.name, part_view(small.model.weights(), parameter, part), SmallModel::values_of(gradient)});
        }
    check_gradients(
        [&] {
            StepBlock step;
            small.model.evaluate(batch, &step);
            return step.sums.loss;
        },
        inputs);
    // Padding rows and the gaps between tensors get no gradient.
    double inside = 0, all = 0;
    for (const Differentiated& input : inputs)
        for (const double value : input.gradient) inside += value * value;
    for (const double value : small.gradients()) all += value * value;
    EXPECT_NEAR(all / inside, 1, 1e-12);
}

TEST(ModelGradients, PlainRowsAgreeWithFiniteDifferences) {
    for_all_configs([](const ModelConfig& config, const std::string& name) {
        SCOPED_TRACE(name);
        check_model_gradients(config, kPlain);
    });
}

TEST(ModelGradients, PackedRowsAgreeWithFiniteDifferences) {
    for_all_configs([](const ModelConfig& config, const std::string& name) {
        SCOPED_TRACE(name);
        check_model_gradients(config, kPacked);
    });
}

TEST(Model, RecomputingGivesTheSameBits) {
    for_all_configs([](const ModelConfig& config, const std::string& name) {
        SCOPED_TRACE(name);
        ModelConfig deep = config;
        deep.n_layers = 3;
        const Row row = random_row(12, config.vocab_size, kPacked, 4);
        for (const DType dtype : {DType::f32, DType::f64}) {
            SmallModel none(deep, {.dtype = dtype, .recompute = Recompute::none});
            none.train(row);
            for (const Recompute recompute : {Recompute::light, Recompute::block}) {
                SmallModel other(deep, {.dtype = dtype, .recompute = recompute});
                other.train(row);
                EXPECT_TRUE(same(other.losses(12), none.losses(12)));
                EXPECT_TRUE(same(other.gradients(), none.gradients()));
                EXPECT_LT(other.plan.total_bytes(), none.plan.total_bytes());
            }
        }
    });
}

TEST(Model, MicroBatchesAddUp) {
    for (const bool is_tied : {true, false}) {
        ModelConfig config = tiny_config();
        config.tie_embeddings = is_tied;
        const Row first = random_row(12, config.vocab_size, {0, 5}, 5),
                  second = random_row(9, config.vocab_size, {0, 3}, 6);
        Row both = first;
        both.tokens.insert(both.tokens.end(), second.tokens.begin(), second.tokens.end());
        both.targets.insert(both.targets.end(), second.targets.begin(), second.targets.end());
        for (const int64_t start : second.starts) both.starts.push_back(first.size() + start);
        SmallModel apart(config, {.max_tokens = 12, .z_loss = 1e-2}),
            together(config, {.max_tokens = 21, .z_loss = 1e-2});
        apart.train(first);
        double sum = 0;
        for (const double loss : apart.losses(12)) sum += loss;
        EXPECT_NEAR(apart.step.sums.loss, sum, 1e-12);
        apart.train(second);
        together.train(both);
        EXPECT_TRUE(close(apart.gradients(), together.gradients(), 1e-12));
        EXPECT_NEAR(apart.step.sums.loss / together.step.sums.loss, 1, 1e-12);
        int64_t count = 0;
        for (const double target : both.targets) count += target >= 0;
        EXPECT_EQ(apart.step.sums.targets, count);
        EXPECT_EQ(together.step.sums.targets, count);
    }
}

// A step's first micro-batch overwrites the gradients of the step before, whatever they were.
TEST(Model, TheFirstMicroBatchOverwritesGradients) {
    for_all_configs([](const ModelConfig& config, const std::string& name) {
        SCOPED_TRACE(name);
        const Row row = random_row(12, config.vocab_size, kPacked, 21);
        SmallModel fresh(config), used(config);
        fresh.train(row);
        // What no parameter owns, between them, stays 0: the plan zeroes it once.
        for (const Parameter& parameter : used.model.table().parameters())
            cpu.fill_bytes(parameter_view(used.model.gradients(), parameter), 0xff);
        const RowBuffers batch(row);
        used.model.train(batch, &used.step, false);
        EXPECT_TRUE(same(used.gradients(), fresh.gradients()));
    });
}

// 64 MiB hold the logits of 83 of these tokens: 100 take two chunks, 50 one.
TEST(Model, ChunksOfLogitsAddUp) {
    ModelConfig config = tiny_config();
    config.vocab_size = 100001;
    const Row whole = random_row(100, config.vocab_size, {0, 50}, 15);
    SmallModel together(config, {.max_tokens = 100}), halves(config, {.max_tokens = 50});
    together.train(whole);
    std::vector<double> losses;
    for (const auto half : {0, 50}) {
        halves.train({{whole.tokens.begin() + half, whole.tokens.begin() + half + 50},
                      {whole.targets.begin() + half, whole.targets.begin() + half + 50},
                      {0}});
        const std::vector<double> own = halves.losses(50);
        losses.insert(losses.end(), own.begin(), own.end());
    }
    EXPECT_TRUE(close(together.losses(100), losses, 1e-12));
    EXPECT_TRUE(close(together.gradients(), halves.gradients(), 1e-12));
    const RowBuffers batch(whole);
    together.model.train(batch, &together.step, false);
    EXPECT_TRUE(close(together.gradients(), halves.gradients(), 1e-12));
}

TEST(Model, TheLossScaleScalesGradientsAlone) {
    SmallModel plain(tiny_config()), scaled(tiny_config());
    const Row row = random_row(12, 11, kPacked, 7);
    scaled.step.state.loss_scale = 4;
    plain.train(row);
    scaled.train(row);
    std::vector<double> expected = plain.gradients();
    for (double& value : expected) value *= 4;
    EXPECT_TRUE(close(scaled.gradients(), expected, 1e-15));
    EXPECT_EQ(scaled.step.sums.loss, plain.step.sums.loss);
}

TEST(Model, BitsDependOnTheSeedAndNotOnThreads) {
    const int threads = omp_get_max_threads();
    ModelConfig config = tiny_config();
    config.d_model = 96;
    config.head_dim = 24;
    config.n_heads = 4;
    config.n_kv_heads = 2;
    config.d_ff = 160;
    config.vocab_size = 300;
    config.position = Position::rope;
    config.qk_norm = true;
    const Row row = random_row(150, config.vocab_size, {0, 70, 71}, 8);
    for (const DType dtype : {DType::f32, DType::f64}) {
        const auto run = [&](int count, uint64_t seed) {
            omp_set_num_threads(count);
            auto small = std::make_unique<SmallModel>(config, SmallOptions{.dtype = dtype, .max_tokens = 150}, seed);
            small->train(row);
            return small;
        };
        const auto one = run(1, 7), again = run(1, 7), two = run(2, 7), other = run(1, 8);
        for (const auto* equal : {&again, &two}) {
            EXPECT_TRUE(same((*equal)->weights(), one->weights()));
            EXPECT_TRUE(same((*equal)->losses(150), one->losses(150)));
            EXPECT_TRUE(same((*equal)->gradients(), one->gradients()));
            EXPECT_EQ((*equal)->step.sums.loss, one->step.sums.loss);
        }
        EXPECT_FALSE(same(other->losses(150), one->losses(150)));
    }
    omp_set_num_threads(threads);
}

TEST(Model, EvaluationGivesTheLossesOfTraining) {
    for_all_configs([](const ModelConfig& config, const std::string& name) {
        SCOPED_TRACE(name);
        ModelConfig deep = config;
        deep.n_layers = 3;  // so that the two residual buffers of evaluation are used again
        const Row row = random_row(12, config.vocab_size, kPacked, 9);
        for (const DType dtype : {DType::f32, DType::f64}) {
            SmallModel training(deep, {.dtype = dtype});
            training.train(row);
            const std::vector<double> losses = training.losses(12);
            const double sum = training.step.sums.loss;
            training.step = StepBlock{};
            training.evaluate(row);
            EXPECT_TRUE(same(training.losses(12), losses));
            EXPECT_EQ(training.step.sums.loss, sum);
            SmallModel without(deep, {.dtype = dtype, .is_training = false});
            without.evaluate(row);
            EXPECT_TRUE(same(without.losses(12), losses));
            EXPECT_LT(without.plan.total_bytes(), training.plan.total_bytes());
        }
    });
}

TEST(Model, ASmallerBatchIsThatOfASmallerPlan) {
    for (const Recompute recompute : {Recompute::none, Recompute::light, Recompute::block})
        for (const bool qk_norm : {false, true}) {
            ModelConfig config = tiny_config();
            config.qk_norm = qk_norm;
            config.position = Position::rope;
            const Row row = random_row(7, config.vocab_size, {0, 4}, 10);
            SmallModel exact(config, {.max_tokens = 7, .recompute = recompute});
            SmallModel larger(config, {.max_tokens = 20, .recompute = recompute});
            exact.train(row);
            larger.train(row);
            EXPECT_TRUE(same(larger.losses(7), exact.losses(7)));
            EXPECT_TRUE(same(larger.gradients(), exact.gradients()));
            // And after a batch of full size, which leaves its numbers in the buffers.
            SmallModel used(config, {.max_tokens = 20, .recompute = recompute});
            used.train(random_row(20, config.vocab_size, {0, 9}, 11));
            cpu.zero(used.model.gradients());
            used.train(row);
            EXPECT_TRUE(same(used.gradients(), exact.gradients()));
        }
}

TEST(Model, LogitsGiveTheLosses) {
    const ModelConfig config = tiny_config();
    const int64_t V = config.vocab_size, VP = config.padded_vocab_size();
    for (const auto& [dtype, bound] : {std::pair{DType::f64, 1e-12}, {DType::f32, 1e-5}}) {
        SmallModel small(config, {.dtype = dtype});
        const Row row = random_row(12, V, kPacked, 12);
        small.evaluate(row);
        const std::vector<double> losses = small.losses(12);
        const std::vector<int64_t> rows = {0, 3, 11, 4};
        const Buffer logits(cpu, dtype, {4, VP});
        small.model.logits(RowBuffers(row), rows, logits);
        const std::vector<double> values = logits.values();
        for (size_t r = 0; r < rows.size(); ++r) {
            const size_t i = static_cast<size_t>(rows[r]);
            ASSERT_GE(row.targets[i], 0);
            double total = 0;
            for (int64_t v = 0; v < V; ++v)
                total += std::exp(values[r * static_cast<size_t>(VP) + static_cast<size_t>(v)]);
            const double logit = values[r * static_cast<size_t>(VP) + static_cast<size_t>(row.targets[i])];
            EXPECT_NEAR(std::log(total) - logit, losses[i], bound);
        }
    }
}

TEST(Model, PackedEqualsEachDocumentAlone) {
    for_all_configs([](const ModelConfig& config, const std::string& name) {
        SCOPED_TRACE(name);
        const Row packed = random_row(12, config.vocab_size, kPacked, 13);
        SmallModel together(config), alone(config);
        together.train(packed);
        std::vector<double> losses;
        for (size_t document = 0; document < kPacked.size(); ++document) {
            const int64_t begin = kPacked[document];
            const int64_t end = document + 1 < kPacked.size() ? kPacked[document + 1] : 12;
            if (begin == end) continue;
            const Row row = {{packed.tokens.begin() + begin, packed.tokens.begin() + end},
                             {packed.targets.begin() + begin, packed.targets.begin() + end},
                             {0}};
            alone.train(row);
            const std::vector<double> own = alone.losses(end - begin);
            losses.insert(losses.end(), own.begin(), own.end());
        }
        EXPECT_TRUE(close(together.losses(12), losses, 1e-12));
        EXPECT_TRUE(close(together.gradients(), alone.gradients(), 1e-12));
    });
}

TEST(Model, LossesSeeNeitherTheFutureNorOtherDocuments) {
    for_all_configs([](const ModelConfig& config, const std::string& name) {
        SCOPED_TRACE(name);
        const Row row = random_row(12, config.vocab_size, kPacked, 14);
        SmallModel small(config, {.dtype = DType::f32});
        small.evaluate(row);
        const std::vector<double> before = small.losses(12);
        for (const size_t changed : {size_t{0}, size_t{2}, size_t{7}, size_t{10}}) {
            Row other = row;
            other.tokens[changed] = std::fmod(row.tokens[changed] + 1, static_cast<double>(config.vocab_size));
            small.evaluate(other);
            const std::vector<double> after = small.losses(12);
            int64_t end = 12;
            for (const int64_t start : kPacked)
                if (start > static_cast<int64_t>(changed)) end = std::min(end, start);
            for (size_t i = 0; i < 12; ++i) {
                const bool may_change = i >= changed && static_cast<int64_t>(i) < end;
                if (!may_change || row.targets[i] < 0)
                    EXPECT_EQ(after[i], before[i]) << "token " << changed << " moved the loss of " << i;
                else
                    EXPECT_NE(after[i], before[i]) << "token " << changed << " does not reach " << i;
            }
        }
    });
}

TEST(Model, Refuses) {
    SmallModel small(tiny_config()), evaluation(tiny_config(), {.is_training = false});
    EXPECT_THROW(small.train(random_row(13, 11, {0}, 1)), Error);
    EXPECT_THROW(evaluation.train(random_row(4, 11, {0}, 1)), Error);
    Row wild = random_row(4, 11, {0}, 1);
    wild.targets[0] = 11;
    EXPECT_THROW(small.evaluate(wild), Error);
    EXPECT_THROW(small.model.table().find("layers.2.qkv"), Error);
}

}  // namespace
}  // namespace ingot::test
