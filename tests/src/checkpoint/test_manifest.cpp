// Checksums of files, and manifests that notice any change.
// Seen to catch: a seal that is not compared.
#include "src/checkpoint/manifest.h"

#include <gtest/gtest.h>

#include <limits>

#include "src/base/text.h"
#include "tests/support/errors.h"
#include "tests/support/in_folder.h"

namespace ingot::test {
namespace {

class Manifest : public InFolder {};

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
    EXPECT_NE(user_error_of([&] { verify_file(folder_, record); }).find("file: No such file"), std::string::npos);
    write("file", bytes);
    int64_t seen = 0;
    EXPECT_EQ(user_error_of([&] { verify_file(folder_, record, [&](int64_t count) { seen += count; }); }), "");
    EXPECT_EQ(seen, static_cast<int64_t>(bytes.size()));
    bytes.back() = 'b';
    write("file", bytes);
    EXPECT_NE(user_error_of([&] { verify_file(folder_, record); }).find("bytes 67108864 to 67108868"),
              std::string::npos);
    bytes.pop_back();
    write("file", bytes);
    EXPECT_NE(user_error_of([&] { verify_file(folder_, record); }).find("cut short"), std::string::npos);
    bytes += "aa";
    write("file", bytes);
    EXPECT_NE(user_error_of([&] { verify_file(folder_, record); }).find("longer"), std::string::npos);
}

// Returns the manifest of a run of three steps with four rows each.
nlohmann::ordered_json small_manifest() {
    const Config config = parse_config(R"({"model": {"n_layers": 1, "d_model": 16, "n_heads": 1, "context_length": 8,
        "vocab_size": 10}, "data": {"train": ["a.bin"]}, "training": {"steps": 5, "batch_tokens": 32}})",
                                       "test", {});
    StepReport report{.step = 3, .loss = 2.5, .tokens = 96};
    nlohmann::ordered_json manifest;
    manifest["format_version"] = kCheckpointFormatVersion;
    manifest["step"] = 3;
    manifest["tokens"] = 96;
    manifest["rows_consumed"] = 12;
    BlendState::Dataset dataset;
    dataset.name = "a.bin";
    dataset.tokens = 50;
    dataset.next_row = 12;
    BlendState data;
    data.datasets.push_back(dataset);
    manifest["data"] = data;
    manifest["seed"] = config.seed;
    manifest["step_state"] = {{"updates_applied", 3}, {"loss_scale", 1.0}, {"good_steps", 3}, {"consecutive_skips", 0}};
    manifest["report"] = report_to_json(report);
    manifest["world_size"] = 1;
    manifest["environment"] = {{"ingot", "1"}, {"world_size", 1}};
    manifest["config"] = config_to_json(config);
    manifest["files"] = to_json({{.name = model_file(), .bytes = 4, .sha256 = {sha256("abcd", 4)}},
                                 {.name = optimizer_file(), .bytes = 4, .sha256 = {sha256("abcd", 4)}}});
    return manifest;
}

TEST_F(Manifest, AFormerNameOfTheAttentionKernelIsTaken) {
    nlohmann::ordered_json manifest = small_manifest();
    manifest["config"]["training"]["attention"] = manifest["environment"]["attention"] = "plain";
    write("manifest.json", manifest_text(manifest));
    const ingot::Manifest read = read_manifest(folder_);
    EXPECT_EQ(read.config.training.attention, AttentionRequest::simt);
    EXPECT_EQ(read.environment["attention"], "simt");
}

TEST_F(Manifest, KeepsTheScalesOfFp8) {
    const std::vector<float> recent = {0, 1.5f, 0x1p-149f, 3.4028235e38f, 0.1f};
    nlohmann::ordered_json manifest = small_manifest();
    manifest["fp8"] = {{"recent", recent}};
    write("manifest.json", manifest_text(manifest));
    EXPECT_EQ(read_manifest(folder_).fp8_recent, recent);
}

TEST_F(Manifest, EveryChangedByteAndEveryCutIsNoticed) {
    nlohmann::ordered_json manifest = small_manifest();
    const std::string text = manifest_text(manifest);
    write("manifest.json", text);
    EXPECT_EQ(read_manifest(folder_).step, 3);
    const nlohmann::ordered_json read = nlohmann::ordered_json::parse(text);
    EXPECT_EQ(read.items().begin().key(), "format_version");
    EXPECT_EQ(std::prev(read.end()).key(), "sha256");
    for (size_t at = 0; at < text.size(); ++at) {
        const size_t bit = at % 7;
        std::string changed = text;
        changed[at] = static_cast<char>(changed[at] ^ (1 << bit));
        write("manifest.json", changed);
        EXPECT_THROW(read_manifest(folder_), DamagedCheckpoint) << "byte " << at << ", bit " << bit;
        write("manifest.json", text.substr(0, at));
        EXPECT_THROW(read_manifest(folder_), DamagedCheckpoint) << "cut to " << at;
    }
    write("manifest.json", text + "\n");
    EXPECT_THROW(read_manifest(folder_), DamagedCheckpoint);
    // Whole, and of a future version: no damage.
    manifest["format_version"] = kSeveralRanksFormatVersion + 1;
    write("manifest.json", manifest_text(manifest));
    const std::string error = user_error_of([&] { read_manifest(folder_); });
    EXPECT_NE(error.find("use the version of Ingot that wrote it"), std::string::npos) << error;
    try {
        read_manifest(folder_);
    } catch (const DamagedCheckpoint&) {
        FAIL() << "another version is not damage";
    } catch (const UserError&) {}
}

// The seal is right in all of these: anybody can compute one.
TEST_F(Manifest, ValuesThatCannotBeAreRefused) {
    const nlohmann::json good = small_manifest();
    const auto refused = [&](const char* pointer, const nlohmann::json& value) {
        nlohmann::ordered_json changed = small_manifest();
        changed[nlohmann::ordered_json::json_pointer(pointer)] = value;
        write("manifest.json", manifest_text(changed));
        const std::string error = user_error_of([&] { read_manifest(folder_); });
        EXPECT_NE(error.find("manifest.json: "), std::string::npos) << pointer << " " << value.dump() << ": " << error;
        EXPECT_EQ(error, printable_line(error)) << pointer;
    };
    const int64_t top = std::numeric_limits<int64_t>::max();
    for (const nlohmann::json& value : {nlohmann::json(-1), nlohmann::json(top), nlohmann::json(uint64_t{1} << 63),
                                        nlohmann::json("3"), nlohmann::json(3.5), nlohmann::json::object()})
        for (const char* const pointer :
             {"/step", "/tokens", "/rows_consumed", "/seed", "/step_state/updates_applied", "/step_state/good_steps",
              "/step_state/consecutive_skips", "/report/step", "/report/tokens", "/files/0/chunk_bytes"})
            refused(pointer, value);
    for (const nlohmann::json& value : {nlohmann::json(0), nlohmann::json(3), nlohmann::json(-1), nlohmann::json("1"),
                                        nlohmann::json(32768), nlohmann::json(1e-5), nlohmann::json()})
        refused("/step_state/loss_scale", value);
    for (const char* const pointer : {"/environment", "/data", "/config", "/step_state", "/report", "/files"})
        for (const nlohmann::json& value : {nlohmann::json(3), nlohmann::json("a"), nlohmann::json({1, 2})})
            refused(pointer, value);
    refused("/step", 2);  // the report is of step 3
    refused("/report/loss", "abc");
    refused("/environment/blas", nlohmann::json::array());
    refused("/environment/blas", std::string(2000, 'x'));
    refused("/environment/\x1b[2J", nullptr);
    refused("/matmul_choices", {{"a", 1}});
    for (const nlohmann::json& value :
         {nlohmann::json(-1), nlohmann::json(1e39), nlohmann::json("1"), nlohmann::json()})
        refused("/fp8", {{"recent", {1, value}}});
    refused("/fp8", {{"recent", 1}});
    refused("/fp8", 1);
    refused("/world_size", 0);
    refused("/config/model/n_kv_heads", 3);
    refused("/config/surplus", 1);
    refused("/files/0/name", "../../x.safetensors");
    refused("/files/0/name", optimizer_file());
    refused("/files/0/name", std::string(200, 'x'));
    refused("/files/0/bytes", uint64_t{1} << 63);
    refused("/files/0/bytes", int64_t{1} << 40);  // its checksums are those of one chunk
    refused("/files/0/sha256", nlohmann::json::array());
    refused("/files/0/sha256/0", std::string(64, 'g'));
    refused("/files/0/sha256/0", std::string(63, 'a'));
    // A key that a later program may add is no fault.
    nlohmann::ordered_json more = small_manifest();
    more["later"] = {{"a", {1, 2, 3}}};
    write("manifest.json", manifest_text(more));
    EXPECT_EQ(read_manifest(folder_).step, 3);
}

// An imported model: nothing was trained yet, so there are no moments.
TEST_F(Manifest, TheOptimizersFileMayBeMissingAtStepZero) {
    nlohmann::ordered_json manifest = small_manifest();
    for (const char* const key : {"step", "tokens", "rows_consumed"}) manifest[key] = 0;
    manifest["data"] = BlendState();
    manifest["step_state"]["updates_applied"] = manifest["step_state"]["good_steps"] = 0;
    manifest["report"] = report_to_json(StepReport());
    manifest["files"].erase(1);
    write("manifest.json", manifest_text(manifest));
    EXPECT_EQ(read_manifest(folder_).find(optimizer_file()), nullptr);
    manifest["files"].erase(0);
    write("manifest.json", manifest_text(manifest));
    EXPECT_THROW(read_manifest(folder_), DamagedCheckpoint) << "but weights there must be";
}

// The same run's, of three ranks.
nlohmann::ordered_json manifest_of_three() {
    nlohmann::ordered_json manifest = small_manifest();
    manifest["format_version"] = kSeveralRanksFormatVersion;
    manifest["world_size"] = 3;
    std::vector<FileRecord> files;
    for (int64_t rank = 0; rank < 3; ++rank)
        for (const std::string& name : {model_file(rank, 3), optimizer_file(rank, 3)})
            files.push_back({.name = name, .bytes = 4, .sha256 = {sha256("abcd", 4)}});
    manifest["files"] = to_json(files);
    return manifest;
}

TEST_F(Manifest, OfSeveralRanksListsTheFilesOfEach) {
    const auto read = [&](const nlohmann::ordered_json& manifest) {
        write("manifest.json", manifest_text(manifest));
        return read_manifest(folder_);
    };
    EXPECT_EQ(model_file(2, 3), "model-00002-of-00003.safetensors");
    EXPECT_EQ(optimizer_file(), "optimizer-00000-of-00001.safetensors");
    EXPECT_EQ(read(small_manifest()).num_ranks, 1);
    EXPECT_EQ(read(manifest_of_three()).num_ranks, 3);
    EXPECT_EQ(read(manifest_of_three()).files.size(), 6u);
    EXPECT_TRUE(read(manifest_of_three()).has_moments());
    for (size_t left_out = 0; left_out < 6; ++left_out) {
        nlohmann::ordered_json manifest = manifest_of_three();
        const std::string name = manifest["files"][left_out]["name"];
        manifest["files"].erase(left_out);
        EXPECT_THROW(read(manifest), DamagedCheckpoint);
        EXPECT_NE(user_error_of([&] { read(manifest); }).find(name), std::string::npos);
        manifest["files"].push_back(manifest["files"][0]);
        EXPECT_NE(user_error_of([&] { read(manifest); }).find("there once"), std::string::npos);
    }
    // One of another number of ranks, one too many, and a version that does not fit the number.
    const auto refused = [&](const char* pointer, const nlohmann::json& value, const std::string& why) {
        nlohmann::ordered_json manifest = manifest_of_three();
        manifest[nlohmann::ordered_json::json_pointer(pointer)] = value;
        const std::string error = user_error_of([&] { read(manifest); });
        EXPECT_NE(error.find(why), std::string::npos) << pointer << ": " << error;
    };
    refused("/files/2/name", model_file(1, 4), "files[2].name");
    refused("/files/2/name", model_file(3, 3), "files[2].name");
    refused("/files/2/name", model_file(), "files[2].name");
    refused("/world_size", 1, "world_size");
    refused("/world_size", 2, "files");
    refused("/world_size", 4, "files[0].name");
    refused("/world_size", 1 << 20, "files does not list");
    refused("/world_size", (1 << 20) + 1, "world_size");
    refused("/format_version", kCheckpointFormatVersion, "world_size");
}

// Then nothing would say that the weights are whole.
TEST_F(Manifest, AFileThatIsNotListedIsDamage) {
    for (const size_t left_out : {0, 1}) {
        nlohmann::ordered_json manifest = small_manifest();
        manifest["files"].erase(left_out);
        write("manifest.json", manifest_text(manifest));
        EXPECT_THROW(read_manifest(folder_), DamagedCheckpoint);
    }
}

}  // namespace
}  // namespace ingot::test
