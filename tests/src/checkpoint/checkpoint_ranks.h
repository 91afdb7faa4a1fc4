// Checkpoints of several ranks, which are threads, for tests.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "kernels/core/rng.h"
#include "src/checkpoint/checkpoint.h"
#include "src/checkpoint/store.h"
#include "src/checkpoint/writer.h"
#include "tests/src/parallel/thread_ranks.h"

namespace ingot::test {

namespace fs = std::filesystem;

constexpr int64_t kSteps = 3, kRows = 12;

inline std::string what_of(const std::exception_ptr& thrown) {
    if (!thrown) return "";
    try {
        std::rethrow_exception(thrown);
    } catch (const PeerError& error) {
        return join("peer: ", error.what());
    } catch (const std::exception& error) {
        return error.what();
    }
}

// An element of the state, by its checkpoint name and its index in that tensor.
inline float value_of(const std::string& name, int64_t index) {
    return random_normal(5, stream_of(name.c_str()), static_cast<uint64_t>(index));
}

// What one rank has of a model that several train.
struct RankModel {
    RankModel(const Config& config, Ranks* ranks, int64_t zero = 1)
        : model(Device::cpu(), config.model,
                {.dtype = DType::f32,
                 .max_tokens = 16,
                 .max_positions = 16,
                 .is_training = true,
                 .num_ranks = ranks->size()},
                &plan),
          optimizer(model, ranks, zero, &plan),
          writer(config, model, optimizer, ranks, &plan),
          memory(plan.allocate(Device::cpu(), true)) {}

    // Visits the elements of the state that this rank holds, but for padding: by checkpoint name and index.
    template <typename Visit>
    void for_each_element(const Visit& visit) const {
        for (const OptimizerState& state : optimizer.state())
            for (const Parameter& parameter : model.table().parameters())
                for (const CheckpointPart& part : parameter.parts)
                    for (int64_t i = 0; i < part.rows * parameter.columns; ++i) {
                        const int64_t at = parameter.offset + part.begin * parameter.columns + i;
                        for (const StatePiece& piece : state.pieces)
                            if (at >= piece.begin && at < piece.begin + piece.tensor.numel())
                                visit(state.prefix + part.name, i, piece.tensor.get<float>()[at - piece.begin]);
                    }
    }
    void fill() const {
        for_each_element([](const std::string& name, int64_t i, float& value) { value = value_of(name, i); });
    }
    // As an update does.
    void change() const {
        for_each_element([](const std::string&, int64_t, float& value) { value = -value; });
    }
    int64_t num_wrong_elements() const {
        int64_t count = 0;
        for_each_element(
            [&](const std::string& name, int64_t i, float& value) { count += value != value_of(name, i); });
        return count;
    }
    // All weights that the model computes with, those of other ranks included.
    int64_t num_wrong_weights() const {
        int64_t count = 0;
        for (const Parameter& parameter : model.table().parameters())
            for (const CheckpointPart& part : parameter.parts) {
                const Tensor tensor = part_view(model.weights(), parameter, part);
                for (int64_t i = 0; i < tensor.numel(); ++i) count += tensor.get<float>()[i] != value_of(part.name, i);
            }
        return count;
    }

    MemoryPlan plan;
    Model model;
    Optimizer optimizer;
    CheckpointWriter writer;
    std::shared_ptr<void> memory;
};

class CheckpointRanks : public testing::Test {
  protected:
    void SetUp() override {
        std::string name = (fs::temp_directory_path() / "ingot-XXXXXX").string();
        ASSERT_NE(mkdtemp(name.data()), nullptr);
        root_ = name;
    }
    void TearDown() override { fs::remove_all(root_); }

    std::string path(const std::string& name) const { return (root_ / name).string(); }
    std::string bytes(const std::string& name) const { return read_file(path(name), size_t{1} << 24); }

    // Matrices of odd sizes, so that ranks' borders lie within rows; biases, and a padded vocabulary.
    Config config(const std::string& run) const {
        Config config = parse_config(R"({"model": {"n_layers": 2, "d_model": 24, "n_heads": 3, "n_kv_heads": 1,
            "context_length": 8, "vocab_size": 77, "d_ff": 40, "qkv_bias": true, "tie_embeddings": false},
            "data": {"train": ["a.bin"]}, "training": {"steps": 5, "batch_tokens": 32}})",
                                     "test", {});
        config.run_dir = path(run);
        return config;
    }

    static TrainingState training(int64_t step = kSteps) {
        TrainingState result;
        result.step = step;
        result.rows_consumed = kRows;
        BlendState::Dataset dataset;
        dataset.name = "a.bin";
        dataset.tokens = 50;
        dataset.next_row = kRows;
        result.data.datasets.push_back(dataset);
        result.state.updates_applied = step;
        result.report = {.step = step, .loss = 2.5, .tokens = kRows * 8};
        return result;
    }

    // Saves as a run does, with a state that changes as soon as it may. Returns each rank's fault.
    std::vector<std::string> save(ThreadRanks* group, const Config& config, int64_t step = kSteps) {
        const RunFolder folder(config);
        CheckpointStore store(folder);
        std::vector<std::string> faults(static_cast<size_t>(group->size()));
        group->run_all([&](Ranks* ranks) {
            RankModel rank(config, ranks);
            rank.fill();
            rank.writer.start(ranks->is_first() ? &store : nullptr, config, training(step), "{}");
            rank.writer.wait_until_copied();
            rank.change();
            const std::optional<CheckpointWriter::Result> result = rank.writer.wait();
            EXPECT_TRUE(result && result->step == step);
            faults[static_cast<size_t>(ranks->rank())] = result->fault;
        });
        return faults;
    }
    void save(int64_t num_ranks, const Config& config, int64_t step = kSteps) {
        ThreadRanks group(num_ranks);
        for (const std::string& fault : save(&group, config, step)) EXPECT_EQ(fault, "");
    }

    std::vector<std::string> names(const std::string& folder) const {
        std::vector<std::string> result;
        for (const auto& entry : fs::directory_iterator(root_ / folder)) result.push_back(entry.path().filename());
        std::sort(result.begin(), result.end());
        return result;
    }

    fs::path root_;
};

}  // namespace ingot::test
