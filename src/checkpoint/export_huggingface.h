// Exports a folder that Hugging Face's transformers loads: safetensors, config.json and generation_config.json
// (export_huggingface_config.h), the tokenizer's files (export_huggingface_tokenizer.h) and, for a model that no class
// of the library computes, modeling_ingot.py.
#pragma once

#include <cstdint>
#include <string>

#include "src/checkpoint/checkpoint.h"

namespace ingot {

// Bytes of tensors in one file. transformers and its hub split larger files.
constexpr uint64_t kHuggingFaceShardBytes = 5'000'000'000;

// Writes FOLDER in full or not at all; refuses one that exists. Prints on stderr what was written. Throws UserError,
// and as file_failed() does.
void export_huggingface(const Checkpoint& checkpoint, const std::string& folder, DType dtype,
                        uint64_t shard_bytes = kHuggingFaceShardBytes);

}  // namespace ingot
