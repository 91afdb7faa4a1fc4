// Several ranks, each with a part of the optimizer's state, against one rank that has all of it.
//
// Gradients are whole numbers here, whose sums are exact in any order: so the weights must have the same bits. Seen to
// catch: a norm of one rank's part alone; an update of what another rank owns; a bucket that is not gathered.
#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "tests/src/model/model_on.h"
#include "tests/src/parallel/ranks_in_threads.h"

namespace ingot::test {
namespace {

using Named = std::map<std::string, std::vector<double>>;  // tensors of a checkpoint

ModelConfig config_of() {
    ModelConfig config = tiny_config();
    config.d_model = 12;  // so that tensors end within a block
    config.tie_embeddings = false;
    return config;
}

// The sum of the gradients of ranks [begin, end) is set: whole numbers, so that any share of them can be summed first.
void set_gradients(const ModelOn& on, int64_t step, int64_t begin, int64_t end) {
    for (const Parameter& parameter : on.model.table().parameters())
        for (const CheckpointPart& part : parameter.parts) {
            const Tensor gradient = part_view(on.model.gradients(), parameter, part);
            float* const values = gradient.get<float>();
            for (int64_t i = 0; i < gradient.numel(); ++i) {
                values[i] = 0;
                for (int64_t of_rank = begin; of_rank < end; ++of_rank)
                    values[i] += static_cast<float>(
                        static_cast<int64_t>(random_bits(static_cast<uint64_t>(step), stream_of(part.name.c_str()),
                                                         static_cast<uint64_t>(i * 64 + of_rank)) %
                                             41) -
                        20);
            }
        }
}

Named values_of(const ModelOn& on, const Tensor& flat) {
    Named values;
    for (const Parameter& parameter : on.model.table().parameters())
        for (const CheckpointPart& part : parameter.parts)
            values[part.name] = on.values_of(part_view(flat, parameter, part));
    return values;
}

// Three steps, the second of which is skipped if `fails`: one rank's gradient is not a number then. Returns the
// weights.
Named train(ModelOn& on, int64_t first, int64_t end, bool fails) {
    on.optimizer.initialize_weights(7);
    on.optimizer.refresh_model();
    StepSettings settings;
    settings.lr = 0.01;
    settings.grad_clip = 0.5;  // so that the norm of all gradients counts
    for (int64_t step = 1; step <= 3; ++step) {
        on.begin(settings);
        set_gradients(on, step, first, end);
        if (fails && step == 2 && first == 0) on.model.gradients().get<float>()[3] = std::nanf("");
        StepBlock block = on.step.read();
        block.sums.loss = static_cast<double>(end - first);
        block.sums.targets = 10 * (end - first);
        on.step.write(block);
        on.optimizer.start_reducing();
        for (int64_t bucket = on.model.table().num_buckets() - 1; bucket >= 0; --bucket)
            on.optimizer.after_gradients(bucket);
        on.optimizer.finish_reducing();
        block = on.update();
        EXPECT_EQ(block.decision.apply, fails && step == 2 ? 0 : 1);
        EXPECT_EQ(block.decision.loss, 0.1);
        on.optimizer.gather_weights();
    }
    return values_of(on, on.model.weights());
}

class ShardedOptimizer : public ::testing::TestWithParam<std::tuple<int64_t, int64_t, bool>> {};

TEST_P(ShardedOptimizer, HasTheBitsOfOneRank) {
    const auto [size, zero, fails] = GetParam();
    ModelOn alone(Device::cpu(), config_of(), {.dtype = DType::f32});
    const Named expected = train(alone, 0, size, fails);
    int64_t owned = 0;
    std::mutex mutex;
    with_ranks(size, [&, num_ranks = size, stage = zero, has_nan = fails](Ranks& ranks) {
        ModelOn on(Device::cpu(), config_of(), {.dtype = DType::f32, .num_ranks = num_ranks}, &ranks, stage);
        const Named weights = train(on, ranks.rank(), ranks.rank() + 1, has_nan);
        for (const auto& [name, values] : expected) EXPECT_TRUE(same(weights.at(name), values)) << name;
        const std::lock_guard lock(mutex);
        owned += on.optimizer.num_owned();
        EXPECT_EQ(on.optimizer.num_owned() * num_ranks, on.model.table().flat_size());
    });
    EXPECT_EQ(owned, ParameterTable(config_of(), size).flat_size());
}

INSTANTIATE_TEST_SUITE_P(Ranks, ShardedOptimizer,
                         ::testing::Combine(::testing::Values(1, 2, 3, 4, 7), ::testing::Values(0, 1),
                                            ::testing::Bool()));

}  // namespace
}  // namespace ingot::test
