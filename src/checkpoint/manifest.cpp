#include "src/checkpoint/manifest.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <optional>

#include "kernels/core/check.h"
#include "src/base/files.h"
#include "src/base/json_text.h"
#include "src/base/progress.h"
#include "src/base/text.h"
#include "src/config/fields.h"
#include "src/model/matmul_cache.h"

namespace ingot {

using nlohmann::json;
using nlohmann::ordered_json;

namespace {

constexpr const char* kSealKey = "\"sha256\": \"";
constexpr const char* kSealEnd = "\"\n}\n";

// A chunk of 64 MiB has a line of 80 bytes, so that the manifest of a model with 7e11 parameters has 10 MB.
constexpr JsonLimits kManifestLimits = {.max_bytes = size_t{64} << 20,
                                        .max_depth = 16,
                                        .advice =
                                            "it was changed, or another program wrote it: go on from another "
                                            "checkpoint (--resume PATH)"};

constexpr int64_t kMostSteps = static_cast<int64_t>(kManySteps);

// The text up to its own checksum must be what was written.
void check_seal(const std::string& text, const std::string& path) {
    const std::string key = kSealKey, end = kSealEnd;
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
}

// ---- The parts ----

// The attention kernel simt was called plain in older checkpoints.
void take_former_names(json& manifest) {
    for (const char* const path : {"/config/training/attention", "/environment/attention"}) {
        const json::json_pointer place(path);
        if (manifest.contains(place) && manifest[place] == "plain") manifest[place] = "simt";
    }
}

Config config_of(const JsonFields& root, const std::string& path) {
    try {
        return config_from_json(root.at("config"), "config");
    } catch (const UserError& error) {
        throw UserError(join(path, ": ", error.what(), " (", kManifestLimits.advice, ")"));
    }
}

StepState step_state_of(const JsonFields& fields, int64_t step) {
    StepState state;
    state.updates_applied = fields.integer("updates_applied", 0, step);
    state.loss_scale = fields.number("loss_scale", kLossScaleMin, kLossScaleMax);
    int exponent = 0;
    if (std::frexp(state.loss_scale, &exponent) != 0.5) fields.refuse("loss_scale", "a power of two");
    // The counters go on from here as 32-bit numbers.
    constexpr int64_t kMostCounted = int64_t{1} << 30;
    state.good_steps =
        static_cast<int32_t>(fields.integer("good_steps", 0, std::min(state.updates_applied, kMostCounted)));
    state.consecutive_skips = static_cast<int32_t>(
        fields.integer("consecutive_skips", 0, std::min(step - state.updates_applied, kMostCounted)));
    return state;
}

std::vector<float> fp8_recent_of(const JsonFields& fields) {
    constexpr size_t kMostScales = size_t{1} << 20;
    const json& list = fields.at("recent");
    const auto is_largest = [](const json& value) {
        return value.is_number() && value >= 0 && value <= std::numeric_limits<float>::max();
    };
    if (!list.is_array() || list.size() > kMostScales || !std::all_of(list.begin(), list.end(), is_largest))
        fields.refuse("recent", "a list of numbers that are not negative");
    return list.get<std::vector<float>>();
}

ordered_json environment_of(const JsonFields& fields) {
    constexpr size_t kMostKeys = 100, kLongest = 1000;
    ordered_json result = ordered_json::object();
    for (const auto& [key, value] : fields.value().items()) {
        const bool is_short =
            key.size() <= kLongest && (!value.is_string() || value.get_ref<const std::string&>().size() <= kLongest);
        if (!is_short || value.is_null() || value.is_structured() || fields.value().size() > kMostKeys)
            fields.refuse(key, join("one of at most ", kMostKeys, " texts, numbers or truth values of at most ",
                                    kLongest, " bytes"));
        result[key] = value;
    }
    return result;
}

std::vector<MatmulChoice> matmul_choices_of(const JsonFields& fields) {
    for (const auto& [product, algorithm] : fields.value().items())
        if (!algorithm.is_string()) fields.refuse(product, "a text: the algorithm of a GEMM");
    return matmul_choices_from_json(fields.value());
}

FileRecord file_of(const JsonFields& fields) {
    constexpr int64_t kMostBytes = int64_t{1} << 55;
    FileRecord record;
    record.name = fields.text("name", 100);
    record.bytes = static_cast<uint64_t>(fields.integer("bytes", 1, kMostBytes));
    constexpr auto kChunk = static_cast<int64_t>(FileRecord::kChunkBytes);
    fields.integer("chunk_bytes", kChunk, kChunk);
    const uint64_t chunks = (record.bytes + FileRecord::kChunkBytes - 1) / FileRecord::kChunkBytes;
    record.sha256 = fields.texts("sha256", static_cast<size_t>(chunks), 64);
    const auto is_digest = [](const std::string& text) {
        return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
    };
    if (record.sha256.size() != chunks || !std::all_of(record.sha256.begin(), record.sha256.end(), is_digest))
        fields.refuse("sha256", join(chunks, " SHA-256 in hexadecimal digits, one for each chunk of the file"));
    return record;
}

int64_t num_ranks_of(const JsonFields& root, bool is_of_several) {
    constexpr int64_t kMostRanks = 1 << 20;
    return is_of_several ? root.integer("world_size", 2, kMostRanks) : root.integer("world_size", 1, 1);
}

std::vector<FileRecord> files_of(const JsonFields& root, const std::string& path, int64_t step, int64_t num_ranks) {
    const std::vector<JsonFields> objects = root.objects("files", static_cast<size_t>(2 * num_ranks + 1));
    std::vector<FileRecord> files;
    std::map<std::string, const JsonFields*> listed;
    for (const JsonFields& fields : objects) {
        files.push_back(file_of(fields));
        if (!listed.emplace(files.back().name, &fields).second) fields.refuse("name", "there once");
    }
    const auto damaged = [&](const std::string& what) {
        return DamagedCheckpoint(join(path, ": files does not list ", what, ", so nothing says that it is whole"));
    };
    // Before a long list of names is made for a number that cannot be.
    if (static_cast<int64_t>(files.size()) < num_ranks) throw damaged("a file of each rank");
    std::string missing;
    const bool has_moments = step > 0 || listed.count(optimizer_file(0, num_ranks)) > 0;
    for (int64_t rank = 0; rank < num_ranks; ++rank)
        for (const bool is_optimizer : {false, true}) {
            if (is_optimizer && !has_moments) continue;
            const std::string name = is_optimizer ? optimizer_file(rank, num_ranks) : model_file(rank, num_ranks);
            if (listed.erase(name) == 0 && missing.empty()) missing = name;
        }
    listed.erase(kTokenizerFile);
    for (const auto& [name, fields] : listed)
        fields->refuse("name", join(model_file(0, num_ranks), ", ", optimizer_file(0, num_ranks),
                                    num_ranks > 1 ? ", those of the other ranks" : "", " or ", kTokenizerFile));
    if (!missing.empty()) throw damaged(missing);
    return files;
}

std::string file_of_rank(const char* kind, int64_t rank, int64_t num_ranks) {
    char name[80];
    std::snprintf(name, sizeof name, "%s-%05ld-of-%05ld.safetensors", kind, static_cast<long>(rank),
                  static_cast<long>(num_ranks));
    return name;
}

}  // namespace

std::string model_file(int64_t rank, int64_t num_ranks) {
    return file_of_rank("model", rank, num_ranks);
}

std::string optimizer_file(int64_t rank, int64_t num_ranks) {
    return file_of_rank("optimizer", rank, num_ranks);
}

const FileRecord* Manifest::find(const std::string& file) const {
    for (const FileRecord& record : files)
        if (record.name == file) return &record;
    return nullptr;
}

std::string manifest_text(const ordered_json& manifest) {
    CHECK(manifest.is_object() && !manifest.empty(), "a manifest without keys");
    std::string text = manifest.dump(2);
    text.resize(text.size() - 2);  // the closing "\n}"
    text += ",\n  ";
    const std::string seal = sha256(text.data(), text.size());
    return text + kSealKey + seal + kSealEnd;
}

Manifest read_manifest(const std::string& folder) {
    const std::string path = folder + "/manifest.json";
    std::string text;
    try {
        text = read_file(path, kManifestLimits.max_bytes);
    } catch (const UserError& error) {
        throw DamagedCheckpoint(error.what());
    }
    return parse_manifest(text, path);
}

Manifest parse_manifest(const std::string& text, const std::string& path) {
    check_seal(text, path);
    json values = parse_json(text, path, kManifestLimits);
    take_former_names(values);
    const JsonFields root(values, path, "", kManifestLimits.advice);
    const json version = values.value("format_version", json());
    const bool is_of_several = version == kSeveralRanksFormatVersion;
    REQUIRE(is_of_several || version == kCheckpointFormatVersion, path, ": format version ", shown(version),
            ", this program reads versions ", kCheckpointFormatVersion, " and ", kSeveralRanksFormatVersion,
            ": use the version of Ingot that wrote it");
    Manifest manifest;
    manifest.config = config_of(root, path);
    const int64_t T = manifest.config.model.context_length, step = root.integer("step", 0, kMostSteps);
    manifest.step = step;
    if (root.has("run")) manifest.run_id = root.text("run", 100);
    // A step has one row at least, and at most as many as training.batch_tokens may be.
    constexpr int64_t kMostTokens = int64_t{1} << 60, kMostStepTokens = int64_t{1} << 31;
    const int64_t most_rows = std::min(kMostTokens / T, step * std::max<int64_t>(1, kMostStepTokens / T));
    manifest.rows_consumed = root.integer("rows_consumed", std::min(step, most_rows), most_rows);
    const int64_t tokens = manifest.rows_consumed * T;
    root.integer("tokens", tokens, tokens);
    root.integer("seed", manifest.config.seed, manifest.config.seed);
    manifest.num_ranks = num_ranks_of(root, is_of_several);
    if (root.has("data")) manifest.data = blend_state_from_json(root.object("data"), manifest.rows_consumed);
    manifest.state = step_state_of(root.object("step_state"), step);
    if (root.has("fp8")) manifest.fp8_recent = fp8_recent_of(root.object("fp8"));
    manifest.report = report_from_json(root.object("report"));
    root.object("report").integer("step", step, step);
    root.object("report").integer("tokens", tokens, tokens);
    manifest.environment = ordered_json::object();
    if (root.has("environment")) manifest.environment = environment_of(root.object("environment"));
    if (root.has("matmul_choices")) manifest.matmul_choices = matmul_choices_of(root.object("matmul_choices"));
    manifest.files = files_of(root, path, step, manifest.num_ranks);
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

void verify_files(const std::string& folder, const std::vector<FileRecord>& files, int64_t rank, int64_t num_ranks) {
    // The chunks of all files are counted on, so that few large files are shared too.
    std::vector<ChunkSelection> chunks;
    int64_t bytes = 0, bytes_read = 0, next = rank;
    for (const FileRecord& file : files) {
        chunks.push_back({.first = next, .step = num_ranks});
        bytes += bytes_of(file, chunks.back());
        const auto count = static_cast<int64_t>(file.sha256.size());
        next += next < count ? (count - next + num_ranks - 1) / num_ranks * num_ranks : 0;
        next -= count;
    }
    constexpr int64_t kMegabyte = 1'000'000;
    std::optional<Progress> progress;  // one rank shows its own part for all
    if (rank == 0) progress.emplace("verifying " + folder, (bytes + kMegabyte - 1) / kMegabyte, "MB");
    const auto advance = [&](int64_t count) {
        const int64_t before = bytes_read / kMegabyte;
        bytes_read += count;
        if (progress) progress->advance(bytes_read / kMegabyte - before);
    };
    try {
        for (size_t i = 0; i < files.size(); ++i) verify_file(folder, files[i], advance, chunks[i]);
    } catch (const UserError& error) {
        throw DamagedCheckpoint(error.what());
    }
}

}  // namespace ingot
