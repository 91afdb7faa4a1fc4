#include "src/checkpoint/import_tensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>

#include "kernels/core/check.h"
#include "src/base/files.h"
#include "src/base/json_text.h"
#include "src/base/text.h"

namespace ingot {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

// A tensor takes about 100 bytes, so the limit allows forty thousand.
constexpr JsonLimits kIndexLimits = {
    .max_bytes = size_t{4} << 20, .max_depth = 8, .advice = "it must be the index of a Hugging Face model's shards"};

// Old Llama checkpoints store the wavelengths of RoPE, which follow from the config.
bool is_ignored(const std::string& name) {
    return name.ends_with("rotary_emb.inv_freq");
}

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text;
    for (const int64_t extent : shape) text += join(text.empty() ? "(" : ", ", extent);
    return text + ")";
}

// Lists names for an error: the first few, and how many more there are.
std::string list_of(const std::vector<std::string>& items) {
    constexpr size_t kShown = 3;
    std::string text;
    for (size_t i = 0; i < std::min(kShown, items.size()); ++i) text += (i == 0 ? "" : "; ") + items[i];
    if (items.size() > kShown) text += join("; and ", items.size() - kShown, " more");
    return text;
}

bool exists(const std::string& path) {
    std::error_code error;
    return fs::exists(path, error);
}

}  // namespace

std::map<std::string, std::string> parse_import_index(const std::string& text, const std::string& path) {
    const json values = parse_json(text, path, kIndexLimits);
    const JsonFields root(values, path, "", kIndexLimits.advice);
    const JsonFields map = root.object("weight_map");
    std::map<std::string, std::string> files;
    constexpr size_t kLongest = 255;  // longest name in file systems
    for (const auto& [tensor, file] : map.value().items()) {
        const bool is_text = file.is_string() && file.get_ref<const std::string&>().size() <= kLongest;
        const std::string name = is_text ? file.get<std::string>() : "";
        const bool is_own = name.ends_with(".safetensors") && printable_line(name) == name &&
                            name.find('/') == std::string::npos && name.find('\\') == std::string::npos;
        if (!is_own) map.refuse(tensor, "the name of a .safetensors file in the same folder");
        files[tensor] = name;
    }
    if (files.empty()) root.refuse("weight_map", "an object with a file for each tensor");
    return files;
}

void ImportedTensors::open(const std::string& path) {
    files_.push_back(std::make_unique<SafetensorsFile>(path));
    paths_.push_back(path);
    for (const std::string& name : files_.back()->names()) {
        const auto [slot, is_new] = file_of_.emplace(name, files_.size() - 1);
        REQUIRE(is_new, path, ": has ", excerpt(name, 100), ", which ", paths_[slot->second],
                " has too: the shards are of two models, or one was copied twice");
    }
}

ImportedTensors::ImportedTensors(const std::string& folder) : folder_(folder) {
    const std::string index_path = folder + "/" + kIndexFile, single = folder + "/" + kSingleFile;
    if (!exists(index_path)) {
        const bool is_pickled =
            exists(folder + "/pytorch_model.bin") || exists(folder + "/pytorch_model.bin.index.json");
        REQUIRE(exists(single), folder, " has neither ", kSingleFile, " nor ", kIndexFile,
                is_pickled
                    ? ": its weights are pickled (pytorch_model.bin): load it in transformers, and save it again "
                      "with save_pretrained()"
                    : ": name the folder that a Hugging Face model was downloaded to");
        open(single);
        return;
    }
    const auto index = parse_import_index(read_file(index_path, kIndexLimits.max_bytes), index_path);
    std::set<std::string> names;
    for (const auto& [tensor, file] : index) names.insert(file);
    REQUIRE(names.count(kSingleFile) == 1 || !exists(single), folder, " has ", kSingleFile, ", and a ", kIndexFile,
            " that does not name it: two models lie there, move the files of one away");
    for (const std::string& name : names) open(folder + "/" + name);
    for (const auto& [tensor, file] : index) {
        const auto found = file_of_.find(tensor);
        const std::string place = found == file_of_.end() ? "no shard has it" : paths_[found->second] + " has it";
        REQUIRE(found != file_of_.end() && paths_[found->second] == folder + "/" + file, index_path, ": ",
                excerpt(tensor, 100), " is in ", file, ", but ", place,
                ": the index belongs to other shards, download both again");
    }
    for (const auto& [tensor, file] : file_of_)
        REQUIRE(index.count(tensor) == 1, paths_[file], ": has ", excerpt(tensor, 100), ", which ", kIndexFile,
                " does not list: the index belongs to other shards, download both again");
}

void ImportedTensors::require_fit(const ParameterTable& table, bool tie_embeddings) const {
    std::vector<std::string> faults;
    std::set<std::string> known;
    for (const Parameter& parameter : table.parameters())
        for (const CheckpointPart& part : parameter.parts) {
            known.insert(part.name);
            const auto found = file_of_.find(part.name);
            if (found == file_of_.end()) {
                faults.push_back(part.name + " is missing");
                continue;
            }
            const Tensor tensor = files_[found->second]->tensor(part.name);
            const std::vector<int64_t> actual(tensor.shape, tensor.shape + tensor.rank);
            const std::vector<int64_t> expected = parameter.is_matrix
                                                      ? std::vector<int64_t>{part.rows, parameter.columns}
                                                      : std::vector<int64_t>{part.rows * parameter.columns};
            if (actual != expected)
                faults.push_back(
                    join(part.name, " has the shape ", shape_text(actual), ", the model ", shape_text(expected)));
            else if (tensor.dtype != DType::f32 && tensor.dtype != DType::bf16 && tensor.dtype != DType::f16)
                faults.push_back(join(part.name, " is ", tensor.describe(), ", it must be bf16, fp16 or fp32"));
        }
    for (const auto& [name, file] : file_of_) {
        if (known.count(name) == 1 || is_ignored(name)) continue;
        if (tie_embeddings && name == kHead) continue;
        faults.push_back(excerpt(name, 100) + " is not a tensor of this model");
    }
    REQUIRE(faults.empty(), folder_, ": ", list_of(faults),
            ": the weights do not fit the config.json beside them, or the model computes something else");
    if (!tie_embeddings || file_of_.count(kHead) == 0) return;
    const Tensor embedding = tensor(kEmbedding), head = tensor(kHead);
    const bool is_alike = head.dtype == embedding.dtype && head.rank == 2 && head.shape[0] == embedding.shape[0] &&
                          head.shape[1] == embedding.shape[1];
    const bool is_equal =
        is_alike && std::memcmp(head.data, embedding.data, static_cast<size_t>(embedding.bytes())) == 0;
    require_intact(kHead);
    require_intact(kEmbedding);
    REQUIRE(is_equal, folder_, ": ", kHead, " differs from ", kEmbedding,
            ", but config.json says tie_word_embeddings: remove the one that is not used, or set that to false");
}

Tensor ImportedTensors::tensor(const std::string& name) const {
    const auto found = file_of_.find(name);
    CHECK(found != file_of_.end(), folder_, " has no tensor ", name);
    return files_[found->second]->tensor(name);
}

void ImportedTensors::require_intact(const std::string& name) const {
    const auto found = file_of_.find(name);
    CHECK(found != file_of_.end(), folder_, " has no tensor ", name);
    files_[found->second]->require_intact();
}

}  // namespace ingot
