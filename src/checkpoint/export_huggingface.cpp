#include "src/checkpoint/export_huggingface.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "src/base/output_folder.h"
#include "src/base/progress.h"
#include "src/base/text.h"
#include "src/checkpoint/export.h"
#include "src/checkpoint/export_huggingface_config.h"
#include "src/checkpoint/export_huggingface_tokenizer.h"
#include "src/checkpoint/modeling_ingot.h"
#include "src/checkpoint/safetensors.h"
#include "src/model/parameters.h"

namespace ingot {

using nlohmann::ordered_json;

namespace {

struct ShardFile {
    std::string file;
    std::vector<NamedTensor> tensors;  // of the checkpoint, in fp32, without data
};

NamedTensor in_type(NamedTensor named, DType dtype) {
    named.tensor.dtype = dtype;
    return named;
}

uint64_t bytes_in(const NamedTensor& named, DType dtype) {
    return static_cast<uint64_t>(named.tensor.numel() * size_of(dtype));
}

// Assigns the tensors to files of at most `limit` bytes; a larger tensor gets its own file.
std::vector<ShardFile> plan_shards(const std::vector<NamedTensor>& tensors, DType dtype, uint64_t limit) {
    std::vector<ShardFile> shards;
    uint64_t bytes = 0;
    for (const NamedTensor& named : tensors) {
        const uint64_t more = bytes_in(named, dtype);
        if (shards.empty() || bytes + more > limit) {
            shards.emplace_back();
            bytes = 0;
        }
        shards.back().tensors.push_back(named);
        bytes += more;
    }
    for (size_t i = 0; i < shards.size(); ++i) {
        char name[64] = "model.safetensors";
        if (shards.size() > 1)
            std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
        shards[i].file = name;
    }
    return shards;
}

// Returns the tensors by checkpoint name, without data, in the order of the model's parameter table.
std::vector<NamedTensor> tensors_of(const Checkpoint& checkpoint) {
    const ParameterTable table(checkpoint.manifest.config.model);
    std::vector<NamedTensor> tensors;
    for (const Parameter& parameter : table.parameters())
        for (const CheckpointPart& part : parameter.parts)
            tensors.push_back({part.name, checkpoint.weights->describe(part.name)});
    return tensors;
}

void write_shard(const OutputFolder& folder, const ShardFile& shard, const TensorFiles& source, DType dtype,
                 Progress* progress) {
    std::vector<NamedTensor> described;
    for (const NamedTensor& named : shard.tensors) described.push_back(in_type(named, dtype));
    const std::string head = safetensors_head(described, {{"format", "pt"}});
    OutputFile file = folder.create(shard.file);
    file.write(head.data(), head.size());
    std::vector<float> memory;
    for (const NamedTensor& named : shard.tensors) {
        write_rounded(&file, source.tensor(named.name, &memory), dtype, named.name);
        progress->advance(1);
    }
    file.sync_and_close();
}

std::string index_json(const std::vector<ShardFile>& shards, uint64_t total_bytes) {
    ordered_json index;
    index["metadata"]["total_size"] = total_bytes;
    for (const ShardFile& shard : shards)
        for (const NamedTensor& named : shard.tensors) index["weight_map"][named.name] = shard.file;
    return index.dump(2) + "\n";
}

}  // namespace

void export_huggingface(const Checkpoint& checkpoint, const std::string& output, DType dtype, uint64_t shard_bytes) {
    const Config& config = checkpoint.manifest.config;
    const HuggingFaceClass kind = huggingface_class(config.model);
    const HuggingFaceTokenizer tokenizer = huggingface_tokenizer(checkpoint);
    const std::vector<NamedTensor> tensors = tensors_of(checkpoint);
    const std::vector<ShardFile> shards = plan_shards(tensors, dtype, shard_bytes);
    uint64_t bytes = 0;
    int64_t num_parameters = 0;
    for (const NamedTensor& named : tensors) {
        bytes += bytes_in(named, dtype);
        num_parameters += named.tensor.numel();
    }

    OutputFolder folder(output);
    folder.require_space(bytes);
    Progress progress("exporting", static_cast<int64_t>(tensors.size()), "tensors");
    for (const ShardFile& shard : shards) write_shard(folder, shard, *checkpoint.weights, dtype, &progress);
    progress.finish();
    checkpoint.weights->require_intact();
    if (shards.size() > 1) folder.write_text("model.safetensors.index.json", index_json(shards, bytes));
    folder.write_text("config.json", huggingface_config(config, dtype).dump(2) + "\n");
    folder.write_text("generation_config.json", huggingface_generation_config(config).dump(2) + "\n");
    if (kind.is_own) folder.write_text("modeling_ingot.py", std::string(kModelingIngot));
    for (const HuggingFaceTokenizer::File& file : tokenizer.files) folder.write_text(file.name, file.text);
    folder.commit();

    std::fprintf(stderr, "checkpoint: %s (step %ld)\n", checkpoint.folder.c_str(),
                 static_cast<long>(checkpoint.manifest.step));
    std::fprintf(stderr, "wrote %s: %s, %s parameters in %s, %s%s\n", output.c_str(), kind.architecture.c_str(),
                 with_commas(num_parameters).c_str(), torch_name(dtype), format_bytes(bytes).c_str(),
                 shards.size() > 1 ? join(" in ", shards.size(), " files").c_str() : "");
    if (!kind.reason.empty()) std::fprintf(stderr, "note: not LlamaForCausalLM: %s\n", kind.reason.c_str());
    for (const std::string& note : tokenizer.notes) std::fprintf(stderr, "note: %s\n", note.c_str());
    std::fprintf(stderr, "load it:  AutoModelForCausalLM.from_pretrained(\"%s\"%s)\n", output.c_str(),
                 kind.is_own ? ", trust_remote_code=True" : "");
}

}  // namespace ingot
