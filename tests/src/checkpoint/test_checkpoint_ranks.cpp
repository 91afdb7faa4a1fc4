// Checkpoints that several ranks write, each its part, and that any number of ranks reads.
//
// Seen to catch: a fault of which one rank hears alone, or that the first rank does not hear of; a PeerError that ends
// a save as a fault; a committed checkpoint whose file is missing; pieces that overwrite each other in the snapshot; a
// fragment read or put together from its beginning; the format version of one rank.
#include <fstream>

#include "src/checkpoint/export_gguf.h"
#include "src/checkpoint/export_huggingface.h"
#include "tests/src/checkpoint/checkpoint_ranks.h"

namespace ingot::test {
namespace {

using Channel = Ranks::Channel;

constexpr int64_t kCounts[] = {1, 2, 3, 4, 7};

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

TEST_F(CheckpointRanks, TheDraftIsFoundAfterARenameAndThroughALink) {
    fs::create_directory(path("real"));
    fs::create_directory_symlink(path("real"), path("run"));
    const Config saved = config("run");
    ThreadRanks group(3);
    // Where the link leads is another path when the others look for the draft.
    group.before_exchange = [&](int64_t rank, Channel channel, int64_t number) {
        if (rank != 0 || channel != Channel::save || number != 0) return;
        fs::rename(path("real"), path("other"));
        fs::remove(path("run"));
        fs::create_directory_symlink(path("other"), path("run"));
    };
    EXPECT_EQ(save(&group, saved), std::vector<std::string>(3));
    EXPECT_EQ(open_checkpoint(path("other")).manifest.num_ranks, 3);
    // The run's folder has another name since it was opened, and run_dir leads nowhere.
    group.before_exchange = nullptr;
    const RunFolder folder(saved);
    CheckpointStore store(folder);
    fs::rename(path("other"), path("renamed"));
    group.run_all([&](Ranks* ranks) {
        RankModel rank(saved, ranks);
        rank.fill();
        rank.writer.start(ranks->is_first() ? &store : nullptr, saved, training(4), "");
        EXPECT_EQ(rank.writer.wait()->fault, "");
    });
    EXPECT_EQ(open_checkpoint(path("renamed")).manifest.step, 4);
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
            // Rank 1 may still write when the first rank takes the draft away: the next run removes the rest.
            store.remove_unfinished();
            const std::vector<std::string> left = names(join("run", moment, polls, "/checkpoints"));
            // Before its last word the others know already that its files are whole.
            EXPECT_EQ(left, moment < 2 ? std::vector<std::string>{} : std::vector<std::string>{step_name(kSteps)});
            if (moment == 2) {
                EXPECT_EQ(open_checkpoint(saved.run_dir).manifest.num_ranks, 3);
            }
        }
}

}  // namespace
}  // namespace ingot::test
