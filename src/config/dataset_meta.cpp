#include "src/config/dataset_meta.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <set>

#include "kernels/core/check.h"
#include "src/base/checksum.h"
#include "src/base/files.h"
#include "src/base/json_text.h"
#include "src/base/text.h"
#include "src/tokenizer/tokenizer.h"

namespace ingot {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

const char* name_of(EotSide side) {
    return side == EotSide::start ? "start" : "end";
}

// Describes a tokenizer by its name and hash, short enough for one line.
std::string tokenizer_name(const std::string& name, const std::string& sha256) {
    return sha256.empty() ? name : join(name, " (sha256 ", sha256.substr(0, 12), "...)");
}

std::string sha256_of_tokenizer(const std::string& name) {
    if (name.empty() || name == kBytesTokenizer) return "";
    const std::string bytes = read_tokenizer_file(name);
    return sha256(bytes.data(), bytes.size());
}

}  // namespace

std::optional<DatasetMeta> read_dataset_meta(const std::string& folder) {
    DatasetMeta meta;
    meta.path = (fs::path(folder) / "meta.json").string();
    std::error_code error;
    if (!fs::exists(meta.path, error)) return std::nullopt;
    constexpr JsonLimits kLimits = {.advice = "prepare the data again, or move it away"};
    const json root = parse_json(read_file(meta.path, kLimits.max_bytes), meta.path + " is no JSON", kLimits);
    const auto refuse = [&](const std::string& what) {
        throw UserError(
            join(meta.path, " ", what,
                 ", so it is not what scripts/prepare.py writes beside shards: prepare the data again, or "
                 "move it away and give model.vocab_size, data.eot_token and data.tokenizer in the config"));
    };
    if (!root.is_object()) refuse("is no JSON object");
    const auto is_id = [&](const char* key, int64_t low) {
        return root.contains(key) && root.at(key).is_number_integer() && root.at(key) >= low &&
               root.at(key) <= 16777216;
    };
    const json format = root.value("format", json());
    if (format != "llmc" && format != "megatron" && format != "raw")
        refuse("does not say \"format\": \"llmc\", \"megatron\" or \"raw\"");
    if (!is_id("vocab_size", 2)) refuse("has no vocab_size that could be one");
    if (!is_id("eot_token", 0) || root.at("eot_token") >= root.at("vocab_size"))
        refuse("has no eot_token below its vocab_size");
    if (!root.contains("tokenizer") || !root.at("tokenizer").is_string()) refuse("names no tokenizer");
    meta.vocab_size = root.at("vocab_size");
    meta.eot_token = root.at("eot_token");
    if (root.contains("eot")) {
        if (root.at("eot") != "end" && root.at("eot") != "start") refuse("has an eot that is neither end nor start");
        meta.eot = root.at("eot") == "end" ? EotSide::end : EotSide::start;
    }
    meta.has_mask = root.value("mask", json()) == true;
    meta.tokenizer = root.at("tokenizer");
    if (meta.tokenizer == kBytesTokenizer) return meta;
    if (meta.tokenizer.find_first_of(std::string_view("/\0", 2)) != std::string::npos ||
        fs::path(meta.tokenizer).extension() != ".json")
        refuse("names a tokenizer that is neither \"bytes\" nor a tokenizer.json beside it");
    meta.tokenizer = (fs::path(folder) / meta.tokenizer).string();
    const json hash = root.value("tokenizer_sha256", json());
    if (!hash.is_string() || hash.get<std::string>().size() != 64) refuse("has no tokenizer_sha256");
    meta.tokenizer_sha256 = hash;
    return meta;
}

std::vector<DatasetMeta> dataset_metas(const std::vector<DataEntry>& entries) {
    std::vector<DatasetMeta> metas;
    std::set<std::string> seen;
    for (const DataEntry& entry : entries)
        for (const std::string& file : expand_glob(entry.path)) {
            const std::string folder = fs::path(file).parent_path().string();
            if (!seen.insert(folder).second) continue;
            if (auto meta = read_dataset_meta(folder)) metas.push_back(std::move(*meta));
        }
    return metas;
}

void check_dataset_meta(const DatasetMeta& meta, const Config& config, const std::string& tokenizer_sha256) {
    const ModelConfig& m = config.model;
    const DataConfig& d = config.data;
    REQUIRE(m.vocab_size == 0 || m.vocab_size >= meta.vocab_size, "model.vocab_size is ", m.vocab_size, ", but ",
            meta.path, " says ", meta.vocab_size, ": use at least that, or leave it out");
    REQUIRE(d.eot_token.value_or(meta.eot_token) == meta.eot_token, "data.eot_token is ", *d.eot_token, ", but ",
            meta.path, " says ", meta.eot_token, ": use that, or leave it out");
    REQUIRE(d.eot == EotSide::automatic || meta.eot == EotSide::automatic || d.eot == meta.eot, "data.eot is ",
            name_of(d.eot), ", but ", meta.path, " says ", name_of(meta.eot), ": use that, or leave it out");
    const bool is_same_kind = (d.tokenizer == kBytesTokenizer) == (meta.tokenizer == kBytesTokenizer);
    REQUIRE(d.tokenizer.empty() || (is_same_kind && tokenizer_sha256 == meta.tokenizer_sha256), "data.tokenizer is ",
            tokenizer_name(d.tokenizer, tokenizer_sha256), ", but the shards beside ", meta.path, " were made with ",
            tokenizer_name(meta.tokenizer, meta.tokenizer_sha256), ": use that, or leave it out");
}

namespace {

void check_masks(const std::vector<DataEntry>& entries, const char* key) {
    for (size_t i = 0; i < entries.size(); ++i) {
        if (!entries[i].mask.empty()) continue;
        for (const DatasetMeta& meta : dataset_metas({entries[i]}))
            REQUIRE(!meta.has_mask, key, "[", i, "] names no mask, but ", meta.path,
                    " says that its shards have masks: use {\"path\": \"", entries[i].path, "\", \"mask\": \"",
                    fs::path(entries[i].path).replace_extension(".mask").string(),
                    "\"}, or prepare the data without --mask-field");
    }
}

constexpr size_t kMaxReason = 400;  // bytes of a reason in a note, which may quote a long pattern of the file

// Clears data.tokenizer with a note if the shards' tokenizer is not supported here, since training only needs ids.
// Throws UserError if the config asks for samples, which need text.
void leave_out_unreadable_tokenizer(Config* config) {
    try {
        open_tokenizer(config->data.tokenizer);
    } catch (const UserError& error) {
        REQUIRE(config->sample.every == 0, error.what(),
                "; the shards can be trained on without it, but sample.every asks for text: set sample.every to 0");
        std::fprintf(stderr,
                     "note: %s; training goes on without text: no samples, no bits per byte, no ./train generate\n",
                     excerpt(error.what(), kMaxReason).c_str());
        config->data.tokenizer.clear();
    }
}

}  // namespace

void fill_from_datasets(Config* config) {
    DataConfig& d = config->data;
    check_masks(d.train, "data.train");
    check_masks(d.val, "data.val");
    std::vector<DataEntry> entries = d.train;
    entries.insert(entries.end(), d.val.begin(), d.val.end());
    const std::vector<DatasetMeta> metas = dataset_metas(entries);
    if (metas.empty()) return;
    const DatasetMeta& first = metas.front();
    for (const DatasetMeta& meta : metas)
        REQUIRE(meta.tokenizer_sha256 == first.tokenizer_sha256 && meta.eot_token == first.eot_token &&
                    meta.vocab_size == first.vocab_size && meta.eot == first.eot,
                "data.train and data.val mix tokens of two tokenizers: ", first.path, " says ",
                tokenizer_name(first.tokenizer, first.tokenizer_sha256), ", ", first.vocab_size, " tokens, EOT ",
                first.eot_token, "; ", meta.path, " says ", tokenizer_name(meta.tokenizer, meta.tokenizer_sha256), ", ",
                meta.vocab_size, ", EOT ", meta.eot_token, ": prepare both with one tokenizer");
    const bool is_tokenizer_given = !d.tokenizer.empty();
    if (!is_tokenizer_given && !first.tokenizer_sha256.empty()) {
        const std::string without =
            join(", or move ", first.path, " away and give model.vocab_size ", first.vocab_size, ", data.eot_token ",
                 first.eot_token, " and data.eot \"", name_of(first.eot), "\" in the config, to train without text");
        REQUIRE(fs::exists(first.tokenizer), first.path, " names ", first.tokenizer,
                ", which is not there: copy it there, set data.tokenizer to the same file elsewhere", without);
        REQUIRE(sha256_of_tokenizer(first.tokenizer) == first.tokenizer_sha256, first.tokenizer,
                " is not the file that the shards beside it were made with (", first.path,
                " has its sha256): put that file back, prepare the data again", without);
    }
    check_dataset_meta(first, *config, is_tokenizer_given ? sha256_of_tokenizer(d.tokenizer) : "");
    if (config->model.vocab_size == 0) config->model.vocab_size = first.vocab_size;
    if (!d.eot_token) d.eot_token = first.eot_token;
    if (d.eot == EotSide::automatic) d.eot = first.eot;
    if (!is_tokenizer_given) d.tokenizer = first.tokenizer;
    if (!first.tokenizer_sha256.empty()) leave_out_unreadable_tokenizer(config);
}

}  // namespace ingot
