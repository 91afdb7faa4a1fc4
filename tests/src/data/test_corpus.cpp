// Token files of every format: what is read, every refusal, document boundaries, segments, offsets beyond 32 bits.
//
// Seen to catch (among others): in Shard::scan_ids, `start < end` turned into `<=` (an empty document after an EOT that
// ends its shard: EotClosesDocuments); offsets computed in int32 (OffsetsBeyond32Bits: a crash).
#include "src/data/corpus.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "tests/src/data/token_files.h"

namespace ingot {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kVocab = 100, kEot = 99;

class CorpusTest : public TokenFiles {
  protected:
    template <typename... Header>
    std::string write(const std::string& name, const std::vector<int64_t>& ids, Header... header) const {
        return TokenFiles::write(name, llmc(ids, header...));
    }
    std::string write_wide(const std::string& name, const std::vector<int64_t>& ids) const {
        return TokenFiles::write(name, wide_llmc(ids));
    }

    static std::vector<DataEntry> entries_of(const std::vector<std::string>& patterns) {
        std::vector<DataEntry> entries;
        for (const std::string& pattern : patterns) entries.push_back(entry(pattern));
        return entries;
    }
    static std::unique_ptr<const Corpus> open(const std::vector<std::string>& patterns,
                                              EotSide side = EotSide::automatic, int64_t eot = kEot,
                                              int64_t vocab = kVocab) {
        return open(entries_of(patterns), side, eot, vocab);
    }
    static std::unique_ptr<const Corpus> open(const std::vector<DataEntry>& entries, EotSide side = EotSide::automatic,
                                              int64_t eot = kEot, int64_t vocab = kVocab) {
        return std::make_unique<Corpus>(entries, "data.train",
                                        CorpusOptions{.vocab_size = vocab, .eot_token = eot, .eot_side = side});
    }
    static std::string refusal(const std::vector<std::string>& patterns, int64_t vocab = kVocab) {
        return refusal(entries_of(patterns), vocab);
    }
    static std::string refusal(const std::vector<DataEntry>& entries, int64_t vocab = kVocab) {
        return refusal_of([&] { open(entries, EotSide::automatic, -1, vocab); });
    }
};

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

// Seen to catch: the mask of a document's first token looked at, a mask that is not looked at, the EOT that opens a
// document left out, the second shard not looked at.
TEST_F(CorpusTest, ATargetHasATokenBeforeItAndItsMaskAllowsIt) {
    const auto has_target = [&](const std::vector<int64_t>& ids, const std::string& mask, EotSide side,
                                bool is_masked) {
        DataEntry one = entry(write("a.bin", ids));
        if (!mask.empty()) one.mask = TokenFiles::write("a.mask", mask);
        return open({one}, side)->has_target(is_masked);
    };
    const std::string none(3, '\0'), first("\1\0\0", 3), last("\0\0\1", 3);
    EXPECT_TRUE(has_target({1, 2, 3}, "", EotSide::end, true));
    EXPECT_TRUE(has_target({1, 2, 3}, last, EotSide::end, true));
    EXPECT_FALSE(has_target({1, 2, 3}, first, EotSide::end, true));
    EXPECT_TRUE(has_target({1, 2, 3}, first, EotSide::end, false));  // of the next epoch
    EXPECT_FALSE(has_target({1, 2, 3}, none, EotSide::end, true));
    EXPECT_FALSE(has_target({1, 2, 3}, none, EotSide::end, false));
    EXPECT_FALSE(has_target({kEot, kEot, kEot}, "", EotSide::end, true));
    EXPECT_TRUE(has_target({kEot, kEot, kEot}, "", EotSide::end, false));
    EXPECT_TRUE(has_target({kEot, kEot, kEot}, "", EotSide::start, true));
    EXPECT_FALSE(has_target({kEot, kEot, kEot}, none, EotSide::start, true));
    EXPECT_TRUE(has_target({kEot, 1, kEot}, last, EotSide::end, true));
    write("b.bin", {kEot}), write("c.bin", {7, 8});
    EXPECT_FALSE(open({path("b.bin")}, EotSide::end)->has_target(true));
    EXPECT_TRUE(open({path("b.bin"), path("c.bin")}, EotSide::end)->has_target(true));
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
    EXPECT_REFUSED(refusal(std::vector<std::string>{}), "data.train names no file", "add a path");
    EXPECT_REFUSED(refusal({folder_.string()}), folder_.c_str(), "not a regular file");
    fs::create_symlink(path("gone"), path("dangling.bin"));
    EXPECT_REFUSED(refusal({path("*.bin")}), "dangling.bin", "No such file");
}

TEST_F(CorpusTest, RefusesHeadersThatAreWrong) {
    EXPECT_REFUSED(refusal({TokenFiles::write("empty.bin", "")}), "empty.bin", "0 bytes", "too few", "prepare.py");
    TokenFiles::write("short.bin", std::string(1023, 'x'));
    EXPECT_REFUSED(refusal({path("short.bin")}), "short.bin", "1023 bytes", "too few");
    EXPECT_REFUSED(refusal({write("magic.bin", {1, 2}, 1234)}), "magic.bin", "1234", "20240520", "20240801", "format");
    TokenFiles::write("raw.bin", std::string(4096, 'x'));
    EXPECT_REFUSED(refusal({path("raw.bin")}), "raw.bin", "give the format", "raw", "prepare.py");
    EXPECT_REFUSED(refusal({write("v2.bin", {1}, 20240520, 2)}), "v2.bin", "version 2", "only version 1", "20240520");
    EXPECT_REFUSED(refusal({write("v1.bin", {1}, 20240801, 1, -1, 4)}), "v1.bin", "version 1", "only version 7");
}

TEST_F(CorpusTest, RefusesCountsThatAreWrong) {
    EXPECT_REFUSED(refusal({write("cut.bin", {1, 2, 3}, 20240520, 1, 5)}), "cut.bin", "5 tokens", "1034 bytes", "1030",
                   "cut short");
    EXPECT_REFUSED(refusal({write("long.bin", {1, 2, 3}, 20240520, 1, 2)}), "long.bin", "2 tokens", "1028", "1030",
                   "longer than it says");
    write("odd.bin", {1, 2});
    EXPECT_REFUSED(refusal({append("odd.bin", "x")}), "odd.bin", "longer than it says");
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

// ---- Other formats ----

TEST_F(CorpusTest, RawIdsAndMasks) {
    TokenFiles::write("a.raw", ids_of<uint16_t>({1, 2, kEot, 3}));
    TokenFiles::write("b.raw", ids_of<uint32_t>({4, kEot}));
    TokenFiles::write("a.mask", std::string("\0\1\1\0", 4));
    const auto corpus = open({entry(path("a.raw"), DataFormat::raw, RawType::uint16, path("*.mask")),
                              entry(path("b.raw"), DataFormat::raw, RawType::uint32)});
    EXPECT_EQ(documents_of(*corpus), (Text{{1, 2, 99}, {3}, {4, 99}}));
    EXPECT_TRUE(corpus->place(1).shard->any_target(1, 1));
    EXPECT_FALSE(corpus->place(3).shard->any_target(3, 1));
    EXPECT_FALSE(corpus->place(4).shard->has_mask());

    const auto masked = [&](const std::string& mask) {
        return refusal({entry(path("a.raw"), DataFormat::raw, RawType::uint16, mask)});
    };
    EXPECT_REFUSED(masked(path("none-*")), "no file matches", "none-*");
    TokenFiles::write("short.mask", "\1\1");
    EXPECT_REFUSED(masked(path("short.mask")), "short.mask", "2 bytes", "4 tokens", "check");
    EXPECT_REFUSED(masked(path("*.mask")), "is 1 file", "is 2", "one mask for each");
    TokenFiles::write("text.mask", "1010");
    EXPECT_REFUSED(masked(path("text.mask")), "byte 49", "token 0", "0 (no target) or 1");
    EXPECT_REFUSED(refusal({path("a.raw")}), "a.raw", "too few");
    EXPECT_REFUSED(refusal({entry(path("a.raw"), DataFormat::raw, RawType::uint32)}), "token 0 is 131073");
}

TEST_F(CorpusTest, MegatronDocumentsAreThoseOfItsIndex) {
    // Documents of 5 tokens (two sequences), none, and 4: the index says so, EOT or not.
    TokenFiles::write("a.bin", ids_of<int32_t>({1, kEot, 3, 4, 5, 6, 7, 8, 9}));
    TokenFiles::write("a.idx", megatron(4, 4, {3, 2, 4}, {0, 2, 2, 3}));
    const auto corpus = open({path("a.bin")});
    EXPECT_EQ(documents_of(*corpus), (Text{{1, 99, 3, 4, 5}, {6, 7, 8, 9}}));
    EXPECT_EQ(corpus->describe(), "1 shard, 9 tokens, 2 documents, documents as their index has them");
    for (const uint8_t code : {1, 5, 8}) {
        const std::vector<int64_t> ids = {1, 2, 3, 4, 5, 6, 7, 8, 9};
        TokenFiles::write("a.bin", code == 1   ? ids_of<uint8_t>(ids)
                                   : code == 5 ? ids_of<int64_t>(ids)
                                               : ids_of<uint16_t>(ids));
        TokenFiles::write("a.idx", megatron(code, code == 1 ? 1 : code == 5 ? 8 : 2, {3, 2, 4}, {0, 2, 2, 3}));
        EXPECT_EQ(documents_of(*open({path("a.bin")})), (Text{{1, 2, 3, 4, 5}, {6, 7, 8, 9}})) << int{code};
    }
    fs::remove(path("a.idx"));
    EXPECT_REFUSED(refusal({entry(path("a.bin"), DataFormat::megatron)}), "a.idx", "No such file");
    EXPECT_REFUSED(refusal({path("a.bin")}), "a.bin", "too few");
}

TEST_F(CorpusTest, RefusesIdsThatAreNoIds) {
    TokenFiles::write("a.idx", megatron(4, 4, {3}, {0, 1}));
    TokenFiles::write("a.bin", ids_of<int32_t>({1, -2, 3}));
    EXPECT_REFUSED(refusal({path("a.bin")}), "token 1 is -2", "negative");
    TokenFiles::write("b.idx", megatron(5, 8, {3}, {0, 1}));
    // Their low halves are in range.
    TokenFiles::write("b.bin", ids_of<int64_t>({1, 2, (int64_t{1} << 32) + 3}));
    EXPECT_REFUSED(refusal({path("b.bin")}), "token 2 is 4294967299", "at least 4294967300");
    TokenFiles::write("b.bin", ids_of<int64_t>({1, INT64_MIN, 3}));
    EXPECT_REFUSED(refusal({path("b.bin")}), "token 1 is -9223372036854775808", "negative");
}

// ---- Segments ----

TEST_F(CorpusTest, SegmentsAreCutAtDocumentStarts) {
    std::vector<int64_t> ids;
    std::vector<int32_t> lengths;
    std::vector<int64_t> first_sequences = {0};
    for (int64_t d = 0; ids.size() < 20000; ++d) {
        const int64_t length = d == 40 ? 9000 : 1 + d * 37 % 90;
        for (int64_t i = 1; i < length; ++i) ids.push_back(i % 90);
        ids.push_back(kEot);
        lengths.push_back(static_cast<int32_t>(length));
        first_sequences.push_back(d + 1);
    }
    const int64_t num_tokens = static_cast<int64_t>(ids.size());
    TokenFiles::write("end.bin", llmc(ids));
    ids.insert(ids.begin(), kEot);
    ids.pop_back();
    TokenFiles::write("start.bin", llmc(ids));
    ids.erase(ids.begin());
    ids.push_back(kEot);
    TokenFiles::write("indexed.bin", ids_of<uint16_t>(ids));
    TokenFiles::write("indexed.idx", megatron(8, 2, lengths, first_sequences));
    std::vector<int64_t> expected;
    for (const char* const name : {"end.bin", "start.bin", "indexed.bin"}) {
        const Corpus whole({entry(path(name))}, "data.train", {.vocab_size = kVocab, .eot_token = kEot});
        ASSERT_EQ(whole.segments().size(), 1u);
        const std::vector<int64_t> documents = starts_of(whole);
        const Corpus cut({entry(path(name))}, "data.train",
                         {.vocab_size = kVocab, .eot_token = kEot, .segment_tokens = 200});
        EXPECT_EQ(starts_of(cut), documents) << name;
        std::vector<int64_t> cuts;
        for (const Segment& segment : cut.segments()) {
            EXPECT_EQ(segment.begin, cuts.empty() ? 0 : cuts.back());
            EXPECT_TRUE(std::binary_search(documents.begin(), documents.end(), segment.begin));
            cuts.push_back(segment.end);
        }
        EXPECT_EQ(cuts.back(), num_tokens);
        // One document has some 9,000 tokens, and there is about one segment for every 200 others.
        EXPECT_NEAR(static_cast<double>(cuts.size()), 1 + (num_tokens - 9000) / 200.0, 3) << name;
        EXPECT_FALSE(cut.is_read());
    }
}

TEST_F(CorpusTest, OffsetsBeyond32Bits) {
    // 3 GB of zeros that take no place on the disk, and a few tokens near the end.
    const int64_t num_tokens = 1'500'000'000, file_bytes = 1024 + 2 * num_tokens;
    write("big.bin", {}, 20240520, 1, num_tokens);
    if (truncate(path("big.bin").c_str(), file_bytes) != 0)
        GTEST_SKIP() << "this file system holds no file of 3 GB: " << std::strerror(errno);
    struct stat info {};
    ASSERT_EQ(stat(path("big.bin").c_str(), &info), 0);
    if (info.st_blocks * 512 > (int64_t{1} << 30)) GTEST_SKIP() << "this file system has no sparse files";
    const uint16_t tail[] = {kEot, 11, 12, 13}, middle[] = {7, kEot, 8};
    const int descriptor = ::open(path("big.bin").c_str(), O_WRONLY);
    ASSERT_EQ(pwrite(descriptor, tail, sizeof tail, file_bytes - 8), 8);
    // 50 tokens after a place where a segment may end; 68 segments, so nothing is read when it is opened.
    const int64_t every = 22'000'000, cut = 60 * every + 50;
    ASSERT_EQ(pwrite(descriptor, middle, sizeof middle, 1024 + 2 * (cut - 2)), 6);
    for (int64_t place = every; place < num_tokens; place += every)
        if (place != 60 * every) {
            ASSERT_EQ(pwrite(descriptor, tail, 2, 1024 + 2 * (place - 1)), 2);
        }
    close(descriptor);

    const Corpus corpus({entry(path("big.bin")), entry(write("then.bin", {21, 22}))}, "data.train",
                        {.vocab_size = kVocab, .eot_token = kEot, .segment_tokens = every});
    EXPECT_FALSE(corpus.is_read());
    EXPECT_EQ(corpus.describe(), "2 shards, 1.5B tokens, 69 segments, documents not counted yet, EOT closes documents");
    EXPECT_EQ(corpus.num_tokens(), num_tokens + 2);
    ASSERT_EQ(corpus.segments().size(), 69u);
    EXPECT_EQ(corpus.segments()[60].begin, cut);
    EXPECT_EQ(corpus.segments()[67].end, num_tokens);
    std::vector<int64_t> starts;
    corpus.append_documents(67, &starts);  // the last 26 M tokens: 52 MB are read
    EXPECT_EQ(starts, (std::vector<int64_t>{67 * every, 68 * every, num_tokens - 3}));
    EXPECT_EQ(tokens_of(corpus, num_tokens - 5, num_tokens), (std::vector<int32_t>{0, kEot, 11, 12, 13}));
    EXPECT_EQ(tokens_of(corpus, cut - 2, cut + 1), (std::vector<int32_t>{7, kEot, 8}));
    EXPECT_EQ(tokens_of(corpus, num_tokens, num_tokens + 2), (std::vector<int32_t>{21, 22}));
}

TEST_F(CorpusTest, ATrillionTokensAreOpenedWithoutReadingThem) {
    // 2 TB of holes. Reading them would take minutes, mapping what was looked at hundreds of megabytes.
    const int64_t num_tokens = 1'000'000'000'000;
    TokenFiles::write("huge.raw", "");
    if (truncate(path("huge.raw").c_str(), 2 * num_tokens) != 0)
        GTEST_SKIP() << "this file system holds no file of 2 TB: " << std::strerror(errno);
    const auto resident_pages = [] {
        std::ifstream file("/proc/self/statm");
        int64_t size = 0, resident = 0;
        file >> size >> resident;
        return resident;
    };
    const int64_t before = resident_pages();
    const auto corpus = open({entry(path("huge.raw"), DataFormat::raw, RawType::uint16)});
    EXPECT_EQ(corpus->num_tokens(), num_tokens);
    EXPECT_FALSE(corpus->is_read());
    EXPECT_LT((resident_pages() - before) * sysconf(_SC_PAGESIZE), int64_t{500} << 20);
}

}  // namespace
}  // namespace ingot
