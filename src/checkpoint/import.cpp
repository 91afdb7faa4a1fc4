#include "src/checkpoint/import.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <type_traits>

#include "kernels/core/check.h"
#include "src/base/checksum.h"
#include "src/base/json_text.h"
#include "src/base/output.h"
#include "src/base/output_folder.h"
#include "src/base/progress.h"
#include "src/base/signals.h"
#include "src/base/text.h"
#include "src/checkpoint/import_config.h"
#include "src/checkpoint/import_tensors.h"
#include "src/checkpoint/manifest.h"
#include "src/checkpoint/writer.h"
#include "src/config/config.h"
#include "src/tokenizer/tokenizer.h"

namespace ingot {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

namespace {

struct Interrupted {};

// Models are made for more tokens than most texts have and most machines can train on. The user can set it.
constexpr int64_t kUsualContext = 4096;

// ---- Tokenizer ----

struct ImportedTokenizer {
    std::string json;      // of its file; empty if none is supported
    std::string eot_name;  // text of the token that ends a document; empty if there is none
    std::string what;      // a description for messages
};

// Throws for a file that is not JSON, since it is damaged. Leaves out an unsupported tokenizer, since a model trains
// on ids.
ImportedTokenizer read_tokenizer(const std::string& folder, const ImportedConfig& imported) {
    const std::string path = folder + "/" + kTokenizerFile;
    constexpr const char* kWithout =
        "the checkpoint is written without a tokenizer; train on shards of ids made with the model's own "
        "(data/README.md)";
    ImportedTokenizer result;
    std::error_code error;
    if (!fs::exists(path, error)) {
        result.what = join("none: ", folder, " has no ", kTokenizerFile, "; ", kWithout);
        return result;
    }
    std::string json = read_tokenizer_file(path);
    parse_json(json, path, {.max_bytes = kMaxTokenizerBytes, .advice = "it must be the model's tokenizer.json"});
    std::unique_ptr<Tokenizer> tokenizer;
    try {
        tokenizer = parse_tokenizer(json, path);
    } catch (const UserError& fault) {
        result.what = join("none: ", excerpt(fault.what(), 400), "; ", kWithout);
        return result;
    }
    REQUIRE(tokenizer->vocab_size() <= imported.model.vocab_size, path, " has ", tokenizer->vocab_size(),
            " tokens, but the model has embeddings for ", imported.model.vocab_size,
            ": it is another model's, move it away to import without a tokenizer");
    result.json = std::move(json);
    result.what = tokenizer->describe();
    if (imported.eot_token) {
        const std::string name(tokenizer->bytes_of(static_cast<int32_t>(*imported.eot_token)));
        if (printable_line(name) == name) result.eot_name = name;
    }
    return result;
}

// ---- The config that fits ----

// Returns the last part of the path, which names the run and its data.
std::string name_of(const std::string& output) {
    fs::path path = fs::path(output).lexically_normal();
    if (path.filename().empty()) path = path.parent_path();
    return path.filename().string();
}

// Writes the config as a user would: fields with their default value are left out, except in the model.
ordered_json config_for(const ImportOptions& options, const ImportedConfig& imported, bool has_tokenizer) {
    const std::string name = name_of(options.output);
    Config config;
    config.model = imported.model;
    config.model.init_from = options.output;
    ordered_json model = config_to_json(config)["model"];
    model.erase("init_std");  // no weights are drawn
    if (imported.model.rope_scaling.type == RopeScalingType::none) model.erase("rope_scaling");
    ordered_json data = {{"train", {join("data/", name, "/train-*.bin")}},
                         {"val", {join("data/", name, "/val-*.bin")}}};
    // With a tokenizer, the meta.json beside the shards determines the EOT; without one there may be no meta.json.
    if (has_tokenizer)
        data["tokenizer"] = options.output + "/" + kTokenizerFile;
    else if (imported.eot_token)
        data["eot_token"] = *imported.eot_token;
    return {{"name", name + "-continued"},
            {"model", model},
            {"data", data},
            {"training", {{"steps", 1000}}},
            // This is far below the rate of training from scratch, so that the model forgets little.
            {"optimizer", {{"lr", 2e-5}}},
            {"eval", {{"every", 100}}},
            {"checkpoint", {{"every", 250}}}};
}

// ---- Weights ----

using Sink = std::function<void(const void* data, size_t bytes)>;

template <typename T>
void write_as_fp32(const Sink& sink, const Tensor& source, const std::string& name, Progress* progress) {
    constexpr int64_t kPiece = 1 << 20;
    std::vector<float> piece(static_cast<size_t>(std::min(kPiece, source.numel())));
    for (int64_t begin = 0; begin < source.numel(); begin += kPiece) {
        if (stop_signal() != 0) throw Interrupted();
        const int64_t count = std::min(kPiece, source.numel() - begin);
        const T* const from = static_cast<const T*>(source.data) + begin;
        bool is_finite = true;
        for (int64_t i = 0; i < count; ++i) {
            float value;
            if constexpr (std::is_same_v<T, float>)
                value = from[i];
            else
                value = to_float(from[i]);
            is_finite &= std::isfinite(value);
            piece[static_cast<size_t>(i)] = value;
        }
        REQUIRE(is_finite, name, " holds values that are not finite: the model is damaged, or its training diverged");
        sink(piece.data(), static_cast<size_t>(count) * sizeof(float));
        progress->advance(count);
    }
}

FileRecord write_weights(const OutputFolder& folder, const ImportedTensors& tensors, const ParameterTable& table) {
    std::vector<NamedTensor> written;  // names and shapes, without data
    int64_t count = 0;
    for (const Parameter& parameter : table.parameters())
        for (const CheckpointPart& part : parameter.parts) {
            written.push_back({part.name, tensors.tensor(part.name)});
            written.back().tensor.dtype = DType::f32;
            written.back().tensor.data = nullptr;
            count += written.back().tensor.numel();
        }
    OutputFile file = folder.create(model_file());
    ChunkedSha256 checksums;
    const Sink sink = [&](const void* data, size_t bytes) {
        file.write(data, bytes);
        checksums.update(data, bytes);
    };
    const std::string header = safetensors_head(written, {{"format", "pt"}});
    sink(header.data(), header.size());
    Progress progress("importing", count, "parameters");
    for (const auto& [name, tensor] : written) {
        const Tensor source = tensors.tensor(name);
        if (source.dtype == DType::bf16)
            write_as_fp32<bf16>(sink, source, name, &progress);
        else if (source.dtype == DType::f16)
            write_as_fp32<f16>(sink, source, name, &progress);
        else
            write_as_fp32<float>(sink, source, name, &progress);
        tensors.require_intact(name);
    }
    progress.finish();
    file.sync_and_close();
    return checksums.finish(model_file());
}

// ---- Messages ----

// Quotes the text for a shell.
std::string quoted(const std::string& text) {
    const bool is_plain =
        text.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./") ==
        std::string::npos;
    if (is_plain && !text.empty()) return text;
    std::string result = "'";
    for (const char letter : text) result += letter == '\'' ? std::string("'\\''") : std::string(1, letter);
    return result + "'";
}

void print_next(const ImportOptions& options, const ImportedTokenizer& tokenizer) {
    const std::string output = quoted(options.output), name = name_of(options.output);
    std::fprintf(stderr, "train on from it:\n");
    if (!tokenizer.json.empty()) {
        const std::string eot = tokenizer.eot_name.empty() ? "" : " --eot-token " + quoted(tokenizer.eot_name);
        std::fprintf(stderr, "  python3 scripts/prepare.py --input TEXT... --tokenizer %s%s --output %s\n",
                     quoted(options.output + "/" + kTokenizerFile).c_str(), eot.c_str(),
                     quoted("data/" + name).c_str());
    }
    std::fprintf(stderr, "  ./train --config %s\n", quoted(options.output + "/config.json").c_str());
}

void check_source(const std::string& from) {
    std::error_code error;
    REQUIRE(fs::exists(from, error), "there is no folder ", from, ": name the folder of a Hugging Face model");
    REQUIRE(fs::is_directory(from, error), from, " is a file: name the folder of a Hugging Face model");
    REQUIRE(!fs::exists(from + "/manifest.json", error), from,
            " is a checkpoint of Ingot already: name it in model.init_from as it is");
    REQUIRE(fs::exists(from + "/config.json", error), from,
            " has no config.json: name the folder that a Hugging Face model was downloaded to");
}

void write_model(ImportOptions options) {
    check_source(options.from);
    OutputPlace::require_absent(options.output);
    while (options.output.back() == '/') options.output.pop_back();  // cannot be the root, which exists
    REQUIRE(printable_line(options.output) == options.output,
            "--output is no path that can stand in a config: leave out control characters, and write it in UTF-8");
    ImportedConfig imported = read_import_config(options.from + "/config.json");
    const int64_t longest = imported.longest_context;
    REQUIRE(options.context_length <= longest, "--context-length is ", options.context_length,
            ", the model was made for at most ", longest, " tokens (max_position_embeddings): use at most that");
    imported.model.context_length =
        options.context_length > 0 ? options.context_length : std::min(longest, kUsualContext);
    const ImportedTokenizer tokenizer = read_tokenizer(options.from, imported);
    const ordered_json for_user = config_for(options, imported, !tokenizer.json.empty());
    Config config;
    try {
        config = config_from_json(for_user, options.output);
    } catch (const UserError& fault) {
        throw UserError(join(options.from, "/config.json: ", fault.what()));
    }
    const ParameterTable table(config.model);
    const ImportedTensors tensors(options.from);
    tensors.require_fit(table, config.model.tie_embeddings);
    std::fprintf(stderr, "model: %s, %s parameters, %s in %s\ntokenizer: %s\n", imported.architecture.c_str(),
                 short_count(static_cast<double>(table.num_parameters())).c_str(),
                 tensors.tensor("model.embed_tokens.weight").describe().c_str(),
                 counted(static_cast<int64_t>(tensors.num_files()), "file").c_str(),
                 printable_line(tokenizer.what).c_str());
    if (config.model.context_length < longest)
        std::fprintf(stderr,
                     "note: context_length is %ld, the model was made for up to %ld tokens: --context-length N imports "
                     "it with N, model.context_length trains with another\n",
                     static_cast<long>(config.model.context_length), static_cast<long>(longest));

    OutputFolder output(options.output);
    const uint64_t bytes = static_cast<uint64_t>(table.num_parameters()) * sizeof(float) + tokenizer.json.size();
    output.require_space(bytes);
    std::vector<FileRecord> files = {write_weights(output, tensors, table)};
    if (!tokenizer.json.empty()) {
        output.write_text(kTokenizerFile, tokenizer.json);
        ChunkedSha256 checksums;
        checksums.update(tokenizer.json.data(), tokenizer.json.size());
        files.push_back(checksums.finish(kTokenizerFile));
    }
    output.write_text("config.json", for_user.dump(2) + "\n");
    // The checkpoint's own config: it was not started from another one, and generation ends at the model's own token.
    config.model.init_from.clear();
    config.data.eot_token = imported.eot_token;
    ordered_json manifest = manifest_head("", config, TrainingState(), Device::cpu(), 1);
    manifest["files"] = to_json(files);
    output.write_text("manifest.json", manifest_text(manifest));
    output.commit();
    std::fprintf(stderr, "wrote %s: %s\n", options.output.c_str(), format_bytes(bytes).c_str());
    print_next(options, tokenizer);
}

}  // namespace

int import_model(const ImportOptions& options) {
    // Stdout is unused, and a closed stderr is no reason to leave an incomplete folder behind.
    outlive_the_reader();
    catch_stop_signals();
    try {
        write_model(options);
    } catch (const Interrupted&) {
        std::fprintf(stderr, "stopped by signal %d: nothing was written\n", stop_signal());
        return exit_code_of_signal(stop_signal());
    }
    return kExitDone;
}

}  // namespace ingot
