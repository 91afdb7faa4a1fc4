// Checkpoints of several ranks that are not what was written: every rank refuses them, or passes over them.
//
// Seen to catch: a gap, a missing end and an overlap of fragments, and a name that is almost a fragment's; chunks that
// no rank verifies; a rank that takes a checkpoint in which another found damage; ranks that do not wait for what the
// first one decides.
#include <cstdio>
#include <fstream>

#include "src/train/run_start.h"
#include "tests/src/checkpoint/checkpoint_ranks.h"
#include "tests/support/errors.h"

namespace ingot::test {
namespace {

using DamagedRanks = CheckpointRanks;

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

TEST_F(DamagedRanks, ADamagedFileIsFoundByTheRankThatReadsItAndPassedOverByAll) {
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
TEST_F(DamagedRanks, AnErrorOfTheFirstRankEndsAll) {
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

TEST_F(DamagedRanks, RanksShareTheChunksThatTheyVerify) {
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
