// Checksums of files, and manifests that notice any change.
// Seen to catch: a seal that is not compared.
#include "src/manifest.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace ingot::test {
namespace {

namespace fs = std::filesystem;

class Manifest : public testing::Test {
  protected:
    void SetUp() override {
        std::string name = (fs::temp_directory_path() / "ingot-XXXXXX").string();
        ASSERT_NE(mkdtemp(name.data()), nullptr);
        folder_ = name;
    }
    void TearDown() override { fs::remove_all(folder_); }

    void write(const std::string& name, const std::string& bytes) const {
        std::ofstream(folder_ + "/" + name, std::ios::binary) << bytes;
    }
    std::string folder_;
};

std::string error_of(const std::function<void()>& function) {
    try {
        function();
    } catch (const UserError& error) {
        return error.what();
    }
    return "none";
}

TEST(Sha256, KnownAnswers) {  // FIPS 180-4, examples
    EXPECT_EQ(sha256("abc", 3), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EXPECT_EQ(sha256("", 0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST_F(Manifest, FilesAreCheckedInChunks) {
    std::string bytes(FileRecord::kChunkBytes + 5, 'a');
    ChunkedSha256 checksums;
    // Pieces that lie across the chunks' border.
    checksums.update(bytes.data(), 7);
    checksums.update(bytes.data(), FileRecord::kChunkBytes - 9);
    checksums.update(bytes.data(), 7);
    const FileRecord record = checksums.finish("file");
    EXPECT_EQ(record.bytes, bytes.size());
    ASSERT_EQ(record.sha256.size(), 2u);
    EXPECT_EQ(record.sha256[1], sha256("aaaaa", 5));
    EXPECT_NE(error_of([&] { verify_file(folder_, record); }).find("file: No such file"), std::string::npos);
    write("file", bytes);
    int64_t seen = 0;
    EXPECT_EQ(error_of([&] { verify_file(folder_, record, [&](int64_t count) { seen += count; }); }), "none");
    EXPECT_EQ(seen, static_cast<int64_t>(bytes.size()));
    bytes.back() = 'b';
    write("file", bytes);
    EXPECT_NE(error_of([&] { verify_file(folder_, record); }).find("bytes 67108864 to 67108868"), std::string::npos);
    bytes.pop_back();
    write("file", bytes);
    EXPECT_NE(error_of([&] { verify_file(folder_, record); }).find("cut short"), std::string::npos);
    bytes += "aa";
    write("file", bytes);
    EXPECT_NE(error_of([&] { verify_file(folder_, record); }).find("longer"), std::string::npos);
}

TEST_F(Manifest, EveryChangedByteAndEveryCutIsNoticed) {
    nlohmann::ordered_json manifest = {{"format_version", kCheckpointFormatVersion}, {"step", 7}, {"files", {}}};
    const std::string text = manifest_text(manifest);
    write("manifest.json", text);
    const nlohmann::ordered_json read = read_manifest(folder_);
    EXPECT_EQ(read["step"], 7);
    EXPECT_EQ(read.items().begin().key(), "format_version");
    EXPECT_EQ(std::prev(read.end()).key(), "sha256");
    for (size_t at = 0; at < text.size(); ++at) {
        for (const int bit : {0, 5}) {
            std::string changed = text;
            changed[at] = static_cast<char>(changed[at] ^ (1 << bit));
            write("manifest.json", changed);
            EXPECT_THROW(read_manifest(folder_), DamagedCheckpoint) << "byte " << at << ", bit " << bit;
        }
        write("manifest.json", text.substr(0, at));
        EXPECT_THROW(read_manifest(folder_), DamagedCheckpoint) << "cut to " << at;
    }
    write("manifest.json", text + "\n");
    EXPECT_THROW(read_manifest(folder_), DamagedCheckpoint);
    // Whole, and of a future version: no damage.
    manifest["format_version"] = kCheckpointFormatVersion + 1;
    write("manifest.json", manifest_text(manifest));
    const std::string error = error_of([&] { read_manifest(folder_); });
    EXPECT_NE(error.find("use the version of Ingot that wrote it"), std::string::npos) << error;
    try {
        read_manifest(folder_);
    } catch (const DamagedCheckpoint&) {
        FAIL() << "another version is not damage";
    } catch (const UserError&) {}
}

}  // namespace
}  // namespace ingot::test
