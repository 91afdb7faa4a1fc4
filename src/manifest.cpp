#include "src/manifest.h"

#include <fstream>
#include <sstream>

#include "kernels/core/check.h"
#include "src/progress.h"

namespace ingot {

using nlohmann::ordered_json;

namespace {

constexpr const char* kSealKey = "\"sha256\": \"";
constexpr const char* kSealEnd = "\"\n}\n";

}  // namespace

std::string manifest_text(const ordered_json& manifest) {
    CHECK(manifest.is_object() && !manifest.empty(), "a manifest without keys");
    std::string text = manifest.dump(2);
    text.resize(text.size() - 2);  // the closing "\n}"
    text += ",\n  ";
    const std::string seal = sha256(text.data(), text.size());
    return text + kSealKey + seal + kSealEnd;
}

ordered_json read_manifest(const std::string& folder) {
    const std::string path = folder + "/manifest.json";
    std::ifstream stream(path, std::ios::binary);
    if (!stream) throw DamagedCheckpoint(join(path, ": is missing or cannot be read"));
    std::ostringstream buffer;
    buffer << stream.rdbuf();
    const std::string text = buffer.str(), key = kSealKey, end = kSealEnd;
    const size_t tail = key.size() + 64 + end.size();
    const auto damaged = [&](const char* what) {
        return DamagedCheckpoint(join(path, ": ", what, ": it was cut short or changed"));
    };
    if (text.size() <= tail || text.compare(text.size() - end.size(), end.size(), end) != 0 ||
        text.compare(text.size() - tail, key.size(), key) != 0)
        throw damaged("does not end with its checksum");
    const size_t covered = text.size() - tail;
    if (text.compare(covered + key.size(), 64, sha256(text.data(), covered)) != 0)
        throw damaged("its checksum does not match");
    const ordered_json manifest = ordered_json::parse(text, nullptr, false);
    if (!manifest.is_object()) throw damaged("is not JSON");
    const ordered_json version = manifest.value("format_version", ordered_json());
    REQUIRE(version == kCheckpointFormatVersion, path, ": format version ", version.dump(),
            ", this program reads version ", kCheckpointFormatVersion, ": use the version of Ingot that wrote it");
    return manifest;
}

ordered_json to_json(const std::vector<FileRecord>& files) {
    ordered_json list = ordered_json::array();
    for (const FileRecord& file : files)
        list.push_back({{"name", file.name},
                        {"bytes", file.bytes},
                        {"chunk_bytes", FileRecord::kChunkBytes},
                        {"sha256", file.sha256}});
    return list;
}

void verify_files(const std::string& folder, const ordered_json& manifest) {
    try {
        int64_t bytes = 0;
        for (const ordered_json& file : manifest.at("files")) bytes += file.at("bytes").get<int64_t>();
        constexpr int64_t kMegabyte = 1'000'000;
        Progress progress("verifying " + folder, (bytes + kMegabyte - 1) / kMegabyte, "MB");
        int64_t bytes_read = 0;
        const auto advance = [&](int64_t count) {
            const int64_t before = bytes_read / kMegabyte;
            bytes_read += count;
            progress.advance(bytes_read / kMegabyte - before);
        };
        for (const ordered_json& file : manifest.at("files")) {
            if (file.at("chunk_bytes") != FileRecord::kChunkBytes)
                throw DamagedCheckpoint(join(folder, "/manifest.json: chunks of an unknown size"));
            FileRecord record;
            record.name = file.at("name");
            record.bytes = file.at("bytes");
            record.sha256 = file.at("sha256").get<std::vector<std::string>>();
            const uint64_t chunks = (record.bytes + FileRecord::kChunkBytes - 1) / FileRecord::kChunkBytes;
            if (record.sha256.size() != chunks)
                throw DamagedCheckpoint(join(folder, "/manifest.json: ", record.name, " has ", record.sha256.size(),
                                             " checksums instead of ", chunks));
            verify_file(folder, record, advance);
        }
    } catch (const nlohmann::json::exception& error) {
        throw DamagedCheckpoint(join(folder, "/manifest.json: ", error.what()));
    } catch (const UserError& error) {
        throw DamagedCheckpoint(error.what());
    }
}

}  // namespace ingot
