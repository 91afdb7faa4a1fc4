// Checkpoints that several ranks write, each its part, and that any number of ranks reads.
//
// Seen to catch: XXX
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "kernels/core/rng.h"
#include "src/checkpoint/checkpoint.h"
#include "src/checkpoint/export_gguf.h"
#include "src/checkpoint/export_huggingface.h"
#include "src/checkpoint/store.h"
#include "src/checkpoint/writer.h"
#include "src/train/run_start.h"
#include "tests/src/parallel/thread_ranks.h"
#include "tests/support/errors.h"

namespace ingot::test {
namespace {

namespace fs = std::filesystem;
using Channel = Ranks::Channel;

constexpr int64_t kCounts[] = {1, 2, 3, 4, 7};
constexpr int64_t kSteps = 3, kRows = 12;

std::string what_of(const std::exception_ptr& thrown) {
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
float value_of(const std::string& name, int64_t index) {
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

// ---- Any number of ranks ----

TEST_F(CheckpointRanks, AnyNumberReadsWhatAnyNumberHasWritten) {
    for (const int64_t writers : kCounts) {
        SCOPED_TRACE(join(writers, " ranks write"));
        Config saved = config(join("run", writers));
        // Every way of copying the state before an update changes it.
        saved.checkpoint.async = writers != 2;
        if (writers == 3) saved.checkpoint.host_memory = 0;
        if (writers == 4)  // what two of three tensors take: the moments alone
            saved.checkpoint.host_memory = 2 * 4 * ParameterTable(saved.model, writers).flat_size() / writers;
        save(writers, saved);
        const std::string folder = saved.run_dir + "/checkpoints/step-00000003";
        for (const int64_t readers : kCounts)
            for (const int64_t zero : {1, 0}) {
                SCOPED_TRACE(join(readers, " ranks read"));
                ThreadRanks group(readers);
                group.run_all([&](Ranks* ranks) {
                    const Checkpoint checkpoint = open_checkpoint(folder, true, ranks);
                    RankModel rank(saved, ranks, zero);
                    const TrainingState state = load_training(checkpoint, rank.model, &rank.optimizer);
                    EXPECT_EQ(state.rows_consumed, kRows);
                    EXPECT_EQ(rank.num_wrong_elements(), 0);
                    EXPECT_EQ(rank.num_wrong_weights(), 0);
                    RankModel initial(saved, ranks, zero);
                    load_weights(checkpoint, initial.model, &initial.optimizer);
                    EXPECT_EQ(initial.num_wrong_weights(), 0);
                });
            }
        const std::unique_ptr<Ranks> alone = one_rank();
        const RankModel evaluated(saved, alone.get());
        load_weights(open_checkpoint(folder, false), evaluated.model);
        EXPECT_EQ(evaluated.num_wrong_weights(), 0);
    }
}

TEST_F(CheckpointRanks, EachRankWritesWhatItOwnsAndNoPadding) {
    const Config saved = config("run");
    save(3, saved);
    std::vector<std::string> expected = {"manifest.json"};
    for (const char* const kind : {"model", "optimizer"})
        for (const char* const rank : {"0", "1", "2"})
            expected.push_back(join(kind, "-0000", rank, "-of-00003.safetensors"));
    expected.push_back("tokenizer.json");
    EXPECT_EQ(names("run/checkpoints/step-00000003"), expected);
    const std::string folder = saved.run_dir + "/checkpoints/step-00000003";
    const nlohmann::json manifest = nlohmann::json::parse(read_file(folder + "/manifest.json", size_t{1} << 20));
    EXPECT_EQ(manifest.at("format_version"), 3);
    EXPECT_EQ(manifest.at("world_size"), 3);
    EXPECT_EQ(manifest.at("environment").at("world_size"), 3);
    EXPECT_EQ(manifest.at("files").size(), 7u);

    const ParameterTable table(saved.model, 3);
    const Partition partition(table, 3);
    int64_t num_elements = 0, num_fragments = 0, num_whole = 0;
    for (int64_t rank = 0; rank < 3; ++rank) {
        const SafetensorsFile file(folder + "/" + model_file(rank, 3));
        int64_t bytes = 0;
        for (const std::string& name : file.names()) {
            bytes += file.tensor(name).bytes();
            (name.back() == ']' ? num_fragments : num_whole) += 1;
        }
        int64_t owned = 0;
        for (const FlatRange& range : partition.ranges_of(rank)) owned += range.numel();
        EXPECT_LE(bytes, 4 * owned);
        num_elements += bytes / 4;
    }
    EXPECT_EQ(num_elements, table.num_parameters());
    EXPECT_GT(num_fragments, 0);
    EXPECT_GT(num_whole, 0);
}

// Programs from before there were several ranks read it.
TEST_F(CheckpointRanks, TheFilesOfOneRankAreWholeTensorsInOrder) {
    const Config saved = config("run");
    save(1, saved);
    const std::string folder = "run/checkpoints/step-00000003/";
    const ParameterTable table(saved.model);
    for (const bool is_model : {true, false}) {
        std::vector<std::vector<float>> memory;
        std::vector<NamedTensor> tensors;
        for (const char* const prefix : is_model ? std::vector{""} : std::vector{"m.", "v."})
            for (const Parameter& parameter : table.parameters())
                for (const CheckpointPart& part : parameter.parts) {
                    memory.emplace_back();
                    for (int64_t i = 0; i < part.rows * parameter.columns; ++i)
                        memory.back().push_back(value_of(prefix + part.name, i));
                    float* const data = memory.back().data();
                    tensors.push_back({prefix + part.name,
                                       parameter.is_matrix
                                           ? Tensor::contiguous(data, DType::f32, {part.rows, parameter.columns})
                                           : Tensor::contiguous(data, DType::f32, {part.rows * parameter.columns})});
                }
        write_safetensors(OutputFile(path("expected")), tensors, {{"format", "pt"}});
        EXPECT_TRUE(bytes(folder + (is_model ? "model" : "optimizer") + "-00000-of-00001.safetensors") ==
                    bytes("expected"));
        fs::remove(path("expected"));
    }
    const nlohmann::json manifest = nlohmann::json::parse(bytes(folder + "manifest.json"));
    EXPECT_EQ(manifest.at("format_version"), 2);
    EXPECT_EQ(manifest.at("world_size"), 1);
    EXPECT_EQ(manifest.at("files").at(2).at("name"), "tokenizer.json");
}

TEST_F(CheckpointRanks, ExportsDoNotShowHowManyWroteIt) {
    for (const int64_t count : {1, 3}) {
        Config saved = config(join("run", count));
        saved.data.tokenizer.clear();
        save(count, saved);
        const Checkpoint checkpoint = open_checkpoint(saved.run_dir, false);
        for (const DType dtype : {DType::f32, DType::bf16}) {
            export_huggingface(checkpoint, path(join("hf", count, name_of(dtype))), dtype);
            export_gguf(checkpoint, path(join("gguf", count, name_of(dtype))), dtype);
        }
    }
    for (const DType dtype : {DType::f32, DType::bf16}) {
        const std::string type = name_of(dtype);
        EXPECT_TRUE(bytes("gguf1" + type) == bytes("gguf3" + type));
        EXPECT_EQ(names("hf1" + type), names("hf3" + type));
        for (const std::string& name : names("hf1" + type))
            EXPECT_TRUE(bytes("hf1" + type + "/" + name) == bytes("hf3" + type + "/" + name)) << name;
    }
}

// ---- Faults while saving ----

TEST_F(CheckpointRanks, AFaultOfOneRankIsTheFaultOfAllAndCommitsNothing) {
    const Config saved = config("run");
    ThreadRanks group(3);
    const auto draft = [&] {
        for (const std::string& name : names("run/checkpoints"))
            if (name.find(".tmp-") != std::string::npos) return path("run/checkpoints/" + name);
        return path("no draft");
    };
    const auto all_hear = [&](const std::string& start, const std::string& part) {
        const std::vector<std::string> faults = save(&group, saved);
        EXPECT_EQ(faults[0].rfind(start, 0), 0u) << faults[0];
        EXPECT_NE(faults[0].find(part), std::string::npos) << faults[0];
        EXPECT_EQ(faults[1], faults[0]);
        EXPECT_EQ(faults[2], faults[0]);
    };
    // Rank 1 finds that it cannot create its file.
    group.before_exchange = [&](int64_t rank, Channel channel, int64_t number) {
        if (rank == 0 && channel == Channel::save && number == 0)
            fs::create_directory(draft() + "/" + model_file(1, 3));
    };
    all_hear("rank 1: ", model_file(1, 3));
    EXPECT_EQ(names("run/checkpoints"), std::vector<std::string>{});
    // What rank 2 has written does not come to the folder that the first rank sees.
    group.before_exchange = [&](int64_t rank, Channel channel, int64_t number) {
        if (rank == 2 && channel == Channel::save && number == 1) fs::remove(draft() + "/" + optimizer_file(2, 3));
    };
    all_hear("rank 0: ", optimizer_file(2, 3));
    EXPECT_EQ(names("run/checkpoints"), std::vector<std::string>{});
    // The first rank cannot make a draft.
    group.before_exchange = nullptr;
    fs::remove(path("run/checkpoints"));
    {
        const RunFolder folder(saved);
        CheckpointStore store(folder);
        fs::remove(path("run/checkpoints"));
        std::ofstream(path("run/checkpoints")) << "a file";
        std::vector<std::string> faults(3);
        group.run_all([&](Ranks* ranks) {
            RankModel rank(saved, ranks);
            rank.fill();
            rank.writer.start(ranks->is_first() ? &store : nullptr, saved, training(), "");
            rank.writer.wait_until_copied();
            faults[static_cast<size_t>(ranks->rank())] = rank.writer.wait()->fault;
            // The next save is another.
            ranks->from_first([&]() -> std::string {
                if (ranks->is_first()) fs::remove(path("run/checkpoints"));
                return "";
            }());
            rank.writer.start(ranks->is_first() ? &store : nullptr, saved, training(), "");
            EXPECT_EQ(rank.writer.wait()->fault, "");
        });
        EXPECT_EQ(faults[0].rfind("rank 0: ", 0), 0u) << faults[0];
        EXPECT_EQ(faults[1], faults[0]);
        EXPECT_EQ(faults[2], faults[0]);
    }
    EXPECT_EQ(open_checkpoint(saved.run_dir).manifest.num_ranks, 3);
}

TEST_F(CheckpointRanks, ADeadRankEndsTheSaveOfTheOthersAndCommitsNothing) {
    for (const int64_t moment : {0, 1, 2})
        for (const bool polls : {false, true}) {
            SCOPED_TRACE(join("exchange ", moment));
            const Config saved = config(join("run", moment, polls));
            const RunFolder folder(saved);
            CheckpointStore store(folder);
            ThreadRanks group(3);
            group.before_exchange = [&](int64_t rank, Channel channel, int64_t number) {
                if (rank == 2 && channel == Channel::save && number == moment) throw std::runtime_error("killed");
            };
            const std::vector<std::exception_ptr> thrown = group.run([&](Ranks* ranks) {
                RankModel rank(saved, ranks);
                rank.fill();
                rank.writer.start(ranks->is_first() ? &store : nullptr, saved, training(), "");
                rank.writer.wait_until_copied();
                while (polls && !rank.writer.poll()) {}
                if (!polls) rank.writer.wait();
            });
            for (const size_t rank : {0, 1}) EXPECT_EQ(what_of(thrown[rank]), "peer: rank 2 has died");
            // At its last word the others know that its files are whole.
            const std::vector<std::string> left = names(join("run", moment, polls, "/checkpoints"));
            EXPECT_EQ(left, moment < 2 ? std::vector<std::string>{} : std::vector<std::string>{step_name(kSteps)});
            if (moment == 2) {
                EXPECT_EQ(open_checkpoint(saved.run_dir).manifest.num_ranks, 3);
            }
        }
}

// ---- Faults while reading ----

// The files that three ranks wrote, changed.
class ChangedFiles : public CheckpointRanks {
  protected:
    void SetUp() override {
        CheckpointRanks::SetUp();
        saved_ = config("run");
        save(3, saved_);
        for (int64_t rank = 0; rank < 3; ++rank) {
            files_.push_back(saved_.run_dir + "/checkpoints/step-00000003/" + model_file(rank, 3));
            const SafetensorsFile file(files_.back());
            for (const std::string& name : file.names()) {
                const Tensor tensor = file.tensor(name);
                memory_.emplace_back(tensor.get<float>(), tensor.get<float>() + tensor.numel());
                tensors_[static_cast<size_t>(rank)].push_back({name, tensor});
                tensors_[static_cast<size_t>(rank)].back().tensor.data = memory_.back().data();
            }
        }
    }

    // Returns the text of the error that the files with these tensors are refused with.
    std::string refusal(const std::vector<NamedTensor> (&tensors)[3]) const {
        for (size_t rank = 0; rank < 3; ++rank) {
            fs::remove(files_[rank]);
            write_safetensors(OutputFile(files_[rank]), tensors[rank], {});
        }
        try {
            const TensorFiles files(files_, ParameterTable(saved_.model), {""});
        } catch (const DamagedCheckpoint& error) {
            return error.what();
        }
        return "";
    }
    // The rank and place of a tensor in fragments, and of one that is whole.
    std::pair<size_t, size_t> find(bool is_fragment) const {
        for (size_t rank = 1; rank < 3; ++rank)
            for (size_t i = 0; i < tensors_[rank].size(); ++i)
                if ((tensors_[rank][i].name.back() == ']') == is_fragment) return {rank, i};
        throw std::logic_error("none");
    }

    Config saved_;
    std::vector<std::string> files_;
    std::vector<std::vector<float>> memory_;
    std::vector<NamedTensor> tensors_[3];
};

TEST_F(ChangedFiles, AreRefusedByName) {
    EXPECT_EQ(refusal(tensors_), "");
    for (const bool is_fragment : {true, false}) {
        SCOPED_TRACE(is_fragment ? "a fragment" : "a whole tensor");
        const auto [rank, place] = find(is_fragment);
        const NamedTensor original = tensors_[rank][place];
        const std::string name = original.name.substr(0, original.name.find('['));
        int64_t begin = 0, end = original.tensor.numel();
        if (is_fragment) {
            ASSERT_EQ(std::sscanf(original.name.c_str() + name.size(), "[%ld:%ld]", &begin, &end), 2);
            ASSERT_EQ(end - begin, original.tensor.numel());
        }
        const auto changed = [&, rank = rank, place = place](const auto& change) {
            std::vector<NamedTensor> tensors[3] = {tensors_[0], tensors_[1], tensors_[2]};
            change(&tensors[rank], &tensors[rank][place]);
            return refusal(tensors);
        };
        const auto renamed = [&](const std::string& other) {
            return changed([&](auto*, NamedTensor* tensor) { tensor->name = other; });
        };
        const auto expect = [&](const std::string& error, const std::string& file, const std::string& text) {
            EXPECT_NE(error.find(file), std::string::npos) << error;
            EXPECT_NE(error.find(text), std::string::npos) << error;
        };
        const std::string own = files_[rank];
        expect(changed([&, place = place](auto* all, NamedTensor*) {
                   all->erase(all->begin() + static_cast<long>(place));
               }),
               files_[0], is_fragment ? join("hold no elements") : "hold no tensor " + name);
        expect(renamed("model.other.weight"), own, "is no tensor of the model");
        expect(renamed("model.other.weight[0:3]"), own, "is no tensor of the model");
        for (const char* const odd : {"[00:5]", "[0:05]", "[ 0:5]", "[+0:5]", "[0:5", "0:5]", "[:]", "[0:]", "[]",
                                      "[a:b]", "[0:99999999999999999999999]", "[0:5]]", "[0:5] "})
            expect(renamed(name + odd), own, "is no tensor of the model");
        expect(renamed(fragment_name(name, -3, original.tensor.numel() - 3)), own, "lies outside");
        expect(renamed(fragment_name(name, int64_t{1} << 40, (int64_t{1} << 40) + original.tensor.numel())), own,
               "lies outside");
        expect(renamed(fragment_name(name, 5, 5)), own, "lies outside");
        expect(renamed(fragment_name(name, begin, end - 1)), own, "which its name does not say");
        const auto reshaped = [&](Tensor tensor) {
            return changed([&](auto*, NamedTensor* named) { named->tensor = tensor; });
        };
        const int64_t numel = original.tensor.numel();
        expect(reshaped(original.tensor.view({numel, 1})), own, name);
        Tensor halves = original.tensor.view({numel});
        halves.dtype = DType::f16;
        expect(reshaped(halves), own, name);
        // The same elements a second time, in the file of another rank.
        const size_t other = rank == 1 ? 2 : 1;
        std::vector<NamedTensor> tensors[3] = {tensors_[0], tensors_[1], tensors_[2]};
        tensors[other].push_back(original);
        expect(refusal(tensors), name, "stand in another place too");
        // One element a second time.
        tensors[other].back() = {fragment_name(name, end - 1, end),
                                 original.tensor.view({numel}).slice(0, numel - 1, numel)};
        expect(refusal(tensors), name, "stand in another place too");
    }
}

TEST_F(ChangedFiles, TheLastElementsAndTheFirstAreAskedForToo) {
    // The embedding is cut into two fragments, and its padding into three.
    for (const size_t rank : {0, 1}) {
        std::vector<NamedTensor> tensors[3] = {tensors_[0], tensors_[1], tensors_[2]};
        const size_t erased = std::erase_if(tensors[rank], [](const NamedTensor& tensor) {
            return tensor.name.rfind("model.embed_tokens.weight[", 0) == 0;
        });
        ASSERT_EQ(erased, 1u);
        EXPECT_NE(refusal(tensors).find("of model.embed_tokens.weight"), std::string::npos);
    }
}

TEST_F(CheckpointRanks, ADamagedFileIsFoundByTheRankThatReadsItAndPassedOverByAll) {
    const Config saved = config("run");
    save(3, saved, 2);
    save(3, saved, 3);
    for (const int64_t readers : {1, 2, 3, 7}) {
        ThreadRanks group(readers);
        std::vector<int64_t> steps(static_cast<size_t>(readers));
        const auto read_all = [&] {
            group.run_all([&](Ranks* ranks) {
                steps[static_cast<size_t>(ranks->rank())] = open_checkpoint(saved.run_dir, true, ranks).manifest.step;
            });
            for (const int64_t step : steps) EXPECT_EQ(step, steps[0]);
            return steps[0];
        };
        EXPECT_EQ(read_all(), 3);
        for (const std::string& name : names("run/checkpoints/step-00000003")) {
            SCOPED_TRACE(name);
            const std::string file = path("run/checkpoints/step-00000003/" + name), whole = read_file(file, 1 << 24);
            std::string changed = whole;
            changed[whole.size() - 3] ^= 4;
            std::ofstream(file, std::ios::binary) << changed;
            EXPECT_EQ(read_all(), 2);
            fs::remove(file);
            EXPECT_EQ(read_all(), 2);
            std::ofstream(file, std::ios::binary) << whole;
        }
        EXPECT_EQ(read_all(), 3);
    }
}

// The others do not go on with what the first rank refuses, and say nothing of their own.
TEST_F(CheckpointRanks, AnErrorOfTheFirstRankEndsAll) {
    const Config saved = config("run");
    save(3, saved);
    const RunFolder folder(saved);
    CheckpointStore store(folder);
    ThreadRanks group(3);
    const auto resume = [&](const std::string& how) {
        std::vector<std::string> texts;
        for (const std::exception_ptr& thrown : group.run([&](Ranks* ranks) {
                 const auto checkpoint =
                     checkpoint_to_resume(saved.run_dir, ranks->is_first() ? &store : nullptr, how, ranks);
                 EXPECT_EQ(checkpoint->manifest.step, kSteps);
                 ranks->agree(0);
             }))
            texts.push_back(what_of(thrown));
        return texts;
    };
    EXPECT_EQ(resume("auto"), std::vector<std::string>(3));
    const auto ends_all = [&](const std::string& how, const std::string& part) {
        const std::vector<std::string> texts = resume(how);
        EXPECT_NE(texts[0].find(part), std::string::npos) << texts[0];
        EXPECT_EQ(texts[1], "peer: rank 0 has died");
        EXPECT_EQ(texts[2], "peer: rank 0 has died");
    };
    ends_all("none", "holds a checkpoint");
    ends_all(path("nowhere"), "there is no checkpoint");
    fs::copy(path("run/checkpoints/step-00000003"), path("other"), fs::copy_options::recursive);
    ends_all(path("other"), "belongs to another run");
    fs::remove(path("other/" + model_file(1, 3)));
    ends_all(path("other"), model_file(1, 3));
    fs::remove(path("run/checkpoints/step-00000003/" + optimizer_file(2, 3)));
    ends_all("auto", "none of the 1 checkpoints");
}

TEST_F(CheckpointRanks, RanksShareTheChunksThatTheyVerify) {
    // Of the first file there are two chunks, of the others one each: chunk i is for rank i mod R.
    std::vector<FileRecord> files;
    for (const char* const name : {"a", "b", "c", "d"}) {
        const std::string content(files.empty() ? FileRecord::kChunkBytes + 5 : 9, name[0]);
        std::ofstream(path(name), std::ios::binary) << content;
        ChunkedSha256 checksums;
        checksums.update(content.data(), content.size());
        files.push_back(checksums.finish(name));
    }
    for (int64_t damaged = 0; damaged < 5; ++damaged) {
        const std::string file = path(damaged == 0 ? "a" : std::string(1, static_cast<char>('a' + damaged - 1)));
        const int64_t at = damaged == 1 ? static_cast<int64_t>(FileRecord::kChunkBytes) + 1 : 3;
        std::fstream stream(file, std::ios::binary | std::ios::in | std::ios::out);
        const char right = static_cast<char>(stream.seekg(at).get());
        stream.seekp(at).put('!').flush();
        for (const int64_t count : {1, 2, 3, 7})
            for (int64_t rank = 0; rank < count; ++rank) {
                const std::string error = user_error_of([&] { verify_files(root_.string(), files, rank, count); });
                EXPECT_EQ(error.empty(), rank != damaged % count) << damaged << " " << rank << " of " << count;
            }
        stream.seekp(at).put(right).flush();
    }
    EXPECT_EQ(user_error_of([&] { verify_files(root_.string(), files); }), "");
}

}  // namespace
}  // namespace ingot::test
