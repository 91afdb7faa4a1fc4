// Document indexes in files: read back, stale, damaged, where nothing can be written.
//
// Seen to catch: the block's checksum not compared (DamageIsFoundAndMended); the time of the file left out of the key
// (BelongsToOneStateOfTheFile).
#include "src/data/document_index.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "src/base/checksum.h"
#include "tests/src/data/token_files.h"

namespace ingot {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kEot = 99;

class DocumentIndexTest : public TokenFiles {
  protected:
    void SetUp() override {
        for (int64_t i = 0; i < 5000; ++i) ids_.push_back(i % 7 == 0 && i % 5 != 0 ? kEot : i % 50);
        write("a.bin", llmc(ids_));
    }
    std::unique_ptr<Corpus> open(const Folder* run = nullptr) const {
        return std::make_unique<Corpus>(std::vector<DataEntry>{entry(path("a.bin"))}, "data.train",
                                        CorpusOptions{.vocab_size = 100,
                                                      .eot_token = kEot,
                                                      .eot_side = EotSide::end,
                                                      .run = run,
                                                      .segment_tokens = 500,
                                                      .smallest_index = 1});
    }
    std::vector<int64_t> ids_;
};

TEST_F(DocumentIndexTest, ASecondRunReadsWhatTheFirstFound) {
    const std::vector<int64_t> first = starts_of(*open());
    ASSERT_TRUE(fs::exists(path("a.bin.index")));
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator{}), 2) << "something was left over";
    // Ids that nobody would read again: a token that is changed behind the file's time is not noticed.
    struct stat info {};
    ASSERT_EQ(stat(path("a.bin").c_str(), &info), 0);
    const int descriptor = ::open(path("a.bin").c_str(), O_WRONLY);
    const uint16_t other = kEot;
    ASSERT_EQ(pwrite(descriptor, &other, 2, 1024 + 2), 2);
    const timespec times[2] = {info.st_atim, info.st_mtim};
    ASSERT_EQ(futimens(descriptor, times), 0);
    close(descriptor);
    EXPECT_EQ(starts_of(*open()), first);
    EXPECT_EQ(open()->num_documents(), static_cast<int64_t>(first.size()));
    fs::remove(path("a.bin.index"));
    EXPECT_NE(starts_of(*open()), first);
}

TEST_F(DocumentIndexTest, BelongsToOneStateOfTheFile) {
    const std::vector<int64_t> first = starts_of(*open());
    ids_[1] = kEot;
    write("a.bin", llmc(ids_));
    fs::last_write_time(path("a.bin"), fs::last_write_time(path("a.bin")) + std::chrono::seconds(1));
    EXPECT_EQ(starts_of(*open()).size(), first.size() + 1);
    // Another EOT is another index; so is another side.
    const Corpus other({entry(path("a.bin"))}, "data.train",
                       {.vocab_size = 100, .eot_token = 3, .eot_side = EotSide::end, .smallest_index = 1});
    EXPECT_NE(starts_of(other), first);
    // A smaller vocabulary looks at the ids again, and says where the large one is.
    const std::string error = refusal_of([&] {
        Corpus({entry(path("a.bin"))}, "data.train",
               {.vocab_size = 50, .eot_token = 3, .eot_side = EotSide::end, .smallest_index = 1});
    });
    EXPECT_REFUSED(error, "token 1 is 99", "vocab_size is 50", "at least 100");
}

TEST_F(DocumentIndexTest, DamageIsFoundAndMended) {
    const std::vector<int64_t> first = starts_of(*open());
    const std::string good = read("a.bin.index");
    for (size_t at = 8; at < good.size(); at += at < good.size() - 1200 ? 97 : 13) {
        std::string bad = good;
        bad[at] = static_cast<char>(bad[at] ^ 4);
        write("a.bin.index", bad);
        EXPECT_EQ(starts_of(*open()), first) << "byte " << at;
        open();
        EXPECT_TRUE(read("a.bin.index") == good) << "byte " << at << " was not mended";
    }
    for (const size_t size : {size_t{0}, size_t{7}, size_t{100}, good.size() / 2, good.size() - 1}) {
        write("a.bin.index", good.substr(0, size));
        EXPECT_EQ(starts_of(*open()), first) << size << " bytes";
        EXPECT_TRUE(read("a.bin.index") == good);
    }
}

// Another program could have sealed anything. The layout is that of document_index.h: a head of 11 numbers, then for
// the one segment begin, end, largest id, number of starts and their checksum.
TEST_F(DocumentIndexTest, SealedNonsenseIsNotBelieved) {
    const Shard shard(path("a.bin"), entry(path("a.bin")), "");
    const TokenRules rules = {.vocab_size = 100, .eot_token = kEot};
    const std::vector<int64_t> cuts = {0, shard.num_tokens()};
    std::string good;
    DocumentIndex::build(
        shard, rules, cuts, {}, [](int64_t) {},
        [&](const void* data, size_t size) { good.append(static_cast<const char*>(data), size); });
    constexpr size_t kHeadBytes = 11 * 8, kEntryBytes = 4 * 8 + 64, kTailBytes = 64 + 8;
    const size_t footer = good.size() - kTailBytes - kEntryBytes - kHeadBytes;
    const auto sealed = [&](const std::vector<int64_t>& starts) {
        const int64_t count = static_cast<int64_t>(starts.size());
        std::string block = bytes_of(starts), parts = good.substr(footer, kHeadBytes + kEntryBytes);
        std::memcpy(parts.data() + kHeadBytes + 24, &count, 8);
        parts.replace(kHeadBytes + 32, 64, sha256(block.data(), block.size()));
        return good.substr(0, 8) + block + parts + sha256(parts.data(), parts.size()) +
               bytes_of(std::vector<int64_t>{static_cast<int64_t>(parts.size())});
    };
    const auto is_believed = [&](const std::vector<int64_t>& starts) {
        const std::string bytes = sealed(starts);
        std::string why;
        const auto index = DocumentIndex::parse({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()},
                                                nullptr, index_key(shard, rules), cuts, &why);
        EXPECT_TRUE(index) << why;
        std::vector<int64_t> out = {42};
        const bool is_believed = index && index->append_starts(0, &out);
        EXPECT_EQ(out.size(), is_believed ? starts.size() + 1 : 1);
        return is_believed;
    };
    EXPECT_TRUE(is_believed({0, 8, 4999}));
    for (const std::vector<int64_t>& starts :
         {std::vector<int64_t>{0, 5000}, {0, 7, 7}, {0, 9, 8}, {1, 2}, {-1, 3}, {}})
        EXPECT_FALSE(is_believed(starts));
}

TEST_F(DocumentIndexTest, StandsInTheRunsFolderIfItCannotStandBesideTheShard) {
    if (geteuid() == 0) GTEST_SKIP() << "root may write anywhere";
    fs::create_directory(path("run"));
    fs::permissions(folder_, fs::perms::owner_write, fs::perm_options::remove);
    fs::permissions(path("run"), fs::perms::owner_all);
    const Folder run(path("run"));
    const std::vector<int64_t> first = starts_of(*open(&run));
    EXPECT_FALSE(fs::exists(path("a.bin.index")));
    EXPECT_EQ(std::distance(fs::directory_iterator(path("run/index")), fs::directory_iterator{}), 1);
    EXPECT_EQ(starts_of(*open(&run)), first);
    EXPECT_EQ(starts_of(*open()), first) << "in memory";
    fs::permissions(folder_, fs::perms::owner_all);
}

TEST_F(DocumentIndexTest, StandsInTheRunsFolderIfTheNameBesideTheShardIsTaken) {
    fs::create_directory(path("a.bin.index"));
    fs::create_directory(path("run"));
    const Folder run(path("run"));
    const std::vector<int64_t> first = starts_of(*open(&run));
    EXPECT_EQ(std::distance(fs::directory_iterator(path("run/index")), fs::directory_iterator{}), 1);
    EXPECT_EQ(starts_of(*open(&run)), first);
}

TEST_F(DocumentIndexTest, AFileOfTheUsersThatHasItsNameStays) {
    std::ofstream(path("a.bin.index")) << "notes about a.bin";
    fs::create_directory(path("run"));
    const Folder run(path("run"));
    const std::vector<int64_t> first = starts_of(*open(&run));
    EXPECT_EQ(read("a.bin.index"), "notes about a.bin");
    EXPECT_EQ(std::distance(fs::directory_iterator(path("run/index")), fs::directory_iterator{}), 1);
    EXPECT_EQ(starts_of(*open(&run)), first);
}

}  // namespace
}  // namespace ingot
