// Token shards: both llm.c formats, every refusal, document boundaries, offsets beyond 32 bits.
//
// Seen to catch (among others): in TokenShards::index, `start < num_tokens` turned into `<=` (an empty document after
// an EOT that ends its shard: EotClosesDocuments); offsets computed in int32 (OffsetsBeyond32Bits).
#include "src/data/corpus.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "kernels/core/check.h"

namespace ingot {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kVocab = 100, kEot = 99;

class CorpusTest : public testing::Test {
  protected:
    void SetUp() override {
        std::string pattern = (fs::temp_directory_path() / "ingot-shards-XXXXXX").string();
        ASSERT_NE(mkdtemp(pattern.data()), nullptr);
        folder_ = pattern;
    }
    void TearDown() override { fs::remove_all(folder_); }

    std::string path(const std::string& name) const { return (folder_ / name).string(); }

    // A file of a header that says what it is told to, then `ids` in `id_bytes` each.
    std::string write(const std::string& name, const std::vector<int64_t>& ids, int32_t magic = 20240520,
                      int32_t version = 1, int64_t count = -1, size_t id_bytes = 2) const {
        int32_t header[256] = {magic, version,
                               count < 0 ? static_cast<int32_t>(ids.size()) : static_cast<int32_t>(count)};
        std::ofstream file(path(name), std::ios::binary);
        file.write(reinterpret_cast<const char*>(header), sizeof header);
        for (const int64_t id : ids)
            file.write(reinterpret_cast<const char*>(&id), static_cast<std::streamsize>(id_bytes));
        return path(name);
    }
    std::string write_wide(const std::string& name, const std::vector<int64_t>& ids) const {
        return write(name, ids, 20240801, 7, -1, 4);
    }

    static std::vector<DataEntry> entries_of(const std::vector<std::string>& patterns) {
        std::vector<DataEntry> entries(patterns.size());
        for (size_t i = 0; i < patterns.size(); ++i) entries[i].path = patterns[i];
        return entries;
    }
    static std::unique_ptr<const Corpus> open(const std::vector<std::string>& patterns,
                                              EotSide side = EotSide::automatic, int64_t eot = kEot,
                                              int64_t vocab = kVocab) {
        return std::make_unique<Corpus>(entries_of(patterns), "data.train",
                                        CorpusOptions{.vocab_size = vocab, .eot_token = eot, .eot_side = side});
    }
    // The one line with which opening is refused.
    static std::string refusal(const std::vector<std::string>& patterns, int64_t vocab = kVocab) {
        try {
            open(patterns, EotSide::automatic, -1, vocab);
        } catch (const UserError& error) {
            EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
            return error.what();
        }
        return "not refused";
    }

    fs::path folder_;
};

std::vector<int64_t> starts_of(const Corpus& corpus) {
    std::vector<int64_t> starts;
    for (size_t s = 0; s < corpus.segments().size(); ++s) corpus.append_documents(static_cast<int64_t>(s), &starts);
    return starts;
}

std::vector<int32_t> tokens_of(const Corpus& corpus, int64_t begin, int64_t end) {
    std::vector<int32_t> tokens(static_cast<size_t>(end - begin));
    const Corpus::Place place = corpus.place(begin);
    EXPECT_LE(end - begin, place.rest);
    place.shard->copy(place.token, end - begin, tokens.data());
    return tokens;
}

using Text = std::vector<std::vector<int32_t>>;
Text documents_of(const Corpus& corpus) {
    std::vector<int64_t> starts = starts_of(corpus);
    starts.push_back(corpus.num_tokens());
    Text documents;
    for (size_t d = 0; d + 1 < starts.size(); ++d) documents.push_back(tokens_of(corpus, starts[d], starts[d + 1]));
    return documents;
}

#define EXPECT_REFUSED(message, ...)       \
    for (const char* part : {__VA_ARGS__}) \
    EXPECT_NE(message.find(part), std::string::npos) << "\"" << part << "\" is missing in: " << message

TEST_F(CorpusTest, BothFormatsReadTheSame) {
    const std::vector<int64_t> ids = {3, 1, 4, kEot, 1, 5, kEot};
    const auto narrow = open({write("a.bin", ids)}), wide = open({write_wide("b.bin", ids)});
    EXPECT_EQ(documents_of(*narrow), (Text{{3, 1, 4, 99}, {1, 5, 99}}));
    EXPECT_EQ(documents_of(*wide), documents_of(*narrow));
    // Shards of one list may differ in format.
    const auto both = open({path("a.bin"), path("b.bin")});
    EXPECT_EQ(documents_of(*both), (Text{{3, 1, 4, 99}, {1, 5, 99}, {3, 1, 4, 99}, {1, 5, 99}}));
    EXPECT_EQ(both->num_tokens(), 14);
    EXPECT_EQ(both->place(7).token, 0);
    EXPECT_EQ(both->place(6).rest, 1);
    EXPECT_EQ(both->place(12).shard->token(5), 5);
}

TEST_F(CorpusTest, WideShardsHoldIdsBeyond16Bits) {
    const auto shards = open({write_wide("a.bin", {70000, 128000, 65535 + 100})}, EotSide::end, 128000, 128256);
    EXPECT_EQ(documents_of(*shards), (Text{{70000, 128000}, {65635}}));
    // An EOT that 16 bits cannot hold is not taken for its low half (here 0).
    const auto narrow = open({write("b.bin", {1, 0, 2})}, EotSide::end, 65536, 128256);
    EXPECT_EQ(documents_of(*narrow), (Text{{1, 0, 2}}));
}

TEST_F(CorpusTest, EotClosesDocuments) {
    write("a.bin", {1, kEot, kEot, 2, 3});  // two in a row: a document of EOT alone; the last one ends with its shard
    write("b.bin", {4, kEot});
    const auto shards = open({path("*.bin")}, EotSide::end);
    EXPECT_EQ(documents_of(*shards), (Text{{1, 99}, {99}, {2, 3}, {4, 99}}));
    EXPECT_EQ(shards->describe(), "2 shards, 7 tokens, 4 documents, EOT closes documents");
}

TEST_F(CorpusTest, EotOpensDocuments) {
    write("a.bin", {1, 2, kEot, kEot, 3});  // what stands before the first EOT is a document of its own
    write("b.bin", {kEot, 4, kEot});
    const auto shards = open({path("*.bin")}, EotSide::start);
    EXPECT_EQ(documents_of(*shards), (Text{{1, 2}, {99}, {99, 3}, {99, 4}, {99}}));
    EXPECT_EQ(shards->describe(), "2 shards, 8 tokens, 5 documents, EOT opens documents");
}

TEST_F(CorpusTest, AutomaticSideLooksAtTheFirstToken) {
    write("a.bin", {kEot, 1, 2});
    write("b.bin", {1, 2, kEot});
    EXPECT_EQ(open({path("a.bin"), path("b.bin")})->eot_side(), EotSide::start);
    EXPECT_EQ(open({path("b.bin"), path("a.bin")})->eot_side(), EotSide::end);
    EXPECT_EQ(open({path("a.bin")}, EotSide::end)->eot_side(), EotSide::end);
}

TEST_F(CorpusTest, WithoutEotAShardIsOneDocument) {
    write("a.bin", {1, kEot, 2});
    write("b.bin", {3});
    const auto shards = open({path("*.bin")}, EotSide::automatic, -1);
    EXPECT_EQ(documents_of(*shards), (Text{{1, 99, 2}, {3}}));
    EXPECT_EQ(shards->describe(), "2 shards, 4 tokens, 2 documents, each shard is one document");
    EXPECT_EQ(open({path("b.bin")})->describe(),
              "1 shard, 1 tokens, 1 document, EOT 99 does not occur: each shard is one document");
}

TEST_F(CorpusTest, BoundariesAgreeWithAPlainScan) {
    // EOTs at, before and after the edges of the blocks in which shards are scanned.
    std::vector<int64_t> ids(2000);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int64_t>(i % 97);
    for (const size_t at : {0, 1, 254, 255, 256, 257, 511, 512, 700, 1023, 1024, 1279, 1791, 1998, 1999})
        ids[at] = kEot;
    for (const EotSide side : {EotSide::start, EotSide::end}) {
        Text expected(1);
        for (const int64_t id : ids) {
            if (side == EotSide::start && id == kEot && !expected.back().empty()) expected.emplace_back();
            expected.back().push_back(static_cast<int32_t>(id));
            if (side == EotSide::end && id == kEot) expected.emplace_back();
        }
        if (expected.back().empty()) expected.pop_back();
        for (const std::string& file : {write("a.bin", ids), write_wide("b.bin", ids)}) {
            const auto shards = open({file}, side);
            EXPECT_EQ(documents_of(*shards), expected);
        }
    }
}

TEST_F(CorpusTest, FilesAreTakenOnceAndInOrder) {
    write("b.bin", {2});
    write("a.bin", {1});
    fs::create_symlink(path("a.bin"), path("z.bin"));
    const auto shards = open({path("b.bin"), path("*.bin"), path("./a.bin")});
    EXPECT_EQ(documents_of(*shards), (Text{{2}, {1}}));
    EXPECT_EQ(documents_of(*open({path("[ab].bin")})), (Text{{1}, {2}}));
    write("x[1].bin", {7});  // a path that exists is no pattern
    EXPECT_EQ(documents_of(*open({path("x[1].bin")})), (Text{{7}}));
}

TEST_F(CorpusTest, SharedFilesAreFoundThroughLinks) {
    write("a.bin", {1});
    write("b.bin", {2});
    fs::create_symlink(path("a.bin"), path("link.bin"));
    const auto train = open({path("[ab].bin")});
    EXPECT_EQ(shared_files(*train, *open({path("link.bin")})), std::vector<std::string>{path("a.bin")});
    EXPECT_TRUE(shared_files(*open({path("b.bin")}), *open({path("link.bin")})).empty());
}

TEST_F(CorpusTest, RefusesWhatIsNotThere) {
    EXPECT_REFUSED(refusal({path("none-*.bin")}), "data.train", "no file matches", "none-*.bin", "check the path");
    EXPECT_REFUSED(refusal({path("none.bin")}), "data.train", "there is no file", "none.bin", "check the path");
    EXPECT_REFUSED(refusal({}), "data.train names no file", "add a path");
    EXPECT_REFUSED(refusal({folder_.string()}), folder_.c_str(), "not a regular file");
    fs::create_symlink(path("gone"), path("dangling.bin"));
    EXPECT_REFUSED(refusal({path("*.bin")}), "dangling.bin", "No such file");
}

TEST_F(CorpusTest, RefusesHeadersThatAreWrong) {
    std::ofstream(path("empty.bin"));
    EXPECT_REFUSED(refusal({path("empty.bin")}), "empty.bin", "0 bytes", "too few", "prepare.py");
    std::ofstream(path("short.bin")) << std::string(1023, 'x');
    EXPECT_REFUSED(refusal({path("short.bin")}), "short.bin", "1023 bytes", "too few");
    EXPECT_REFUSED(refusal({write("magic.bin", {1, 2}, 1234)}), "magic.bin", "1234", "20240520", "20240801", "format");
    std::ofstream(path("raw.bin")) << std::string(4096, 'x');
    EXPECT_REFUSED(refusal({path("raw.bin")}), "raw.bin", "give the format", "raw", "prepare.py");
    EXPECT_REFUSED(refusal({write("v2.bin", {1}, 20240520, 2)}), "v2.bin", "version 2", "only version 1", "20240520");
    EXPECT_REFUSED(refusal({write("v1.bin", {1}, 20240801, 1, -1, 4)}), "v1.bin", "version 1", "only version 7");
}

TEST_F(CorpusTest, RefusesCountsThatAreWrong) {
    EXPECT_REFUSED(refusal({write("cut.bin", {1, 2, 3}, 20240520, 1, 5)}), "cut.bin", "5 tokens", "1034 bytes", "1030",
                   "cut short");
    EXPECT_REFUSED(refusal({write("long.bin", {1, 2, 3}, 20240520, 1, 2)}), "long.bin", "2 tokens", "1028", "1030",
                   "longer than it says");
    std::ofstream(write("odd.bin", {1, 2}), std::ios::app) << 'x';
    EXPECT_REFUSED(refusal({path("odd.bin")}), "odd.bin", "longer than it says");
    EXPECT_REFUSED(refusal({write("narrow.bin", {1, 2}, 20240801, 7)}), "narrow.bin", "cut short");
    EXPECT_REFUSED(refusal({write("zero.bin", {}, 20240520, 1, 0)}), "zero.bin", "holds 0 tokens", "leave it out");
    const std::string negative = write("negative.bin", {1});
    const int32_t count = -7;
    std::fstream file(negative, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(8).write(reinterpret_cast<const char*>(&count), 4);
    file.close();
    EXPECT_REFUSED(refusal({negative}), "negative.bin", "holds -7 tokens", "leave it out");
}

TEST_F(CorpusTest, RefusesIdsOutsideTheVocabulary) {
    std::vector<int64_t> ids(1000, 5);
    ids[777] = 100;
    ids[900] = 120;
    for (const std::string& file : {write("a.bin", ids), write_wide("b.bin", ids)}) {
        EXPECT_REFUSED(refusal({file}), file.c_str(), "token 777 is 100", "model.vocab_size is 100",
                       "set model.vocab_size to at least 121");
        EXPECT_EQ(refusal({file}, 121), "not refused");
    }
    ids[999] = 0xffffffff;  // negative, were it an int32
    EXPECT_REFUSED(refusal({write_wide("c.bin", ids)}, 121), "token 999 is 4294967295", "4294967296");
    // The last shard of a list is checked as the first one is.
    ids.assign({1, 2, 100});
    EXPECT_REFUSED(refusal({write("d.bin", {1}), write("e.bin", ids)}), "e.bin", "token 2 is 100");
}

}  // namespace
}  // namespace ingot
