// Reads config.json of a Hugging Face model as the same computation here. A key that asks for another computation is
// refused by name; keys that change nothing are ignored.
#pragma once

#include <cstdint>
#include <string>

#include "src/config/config.h"

namespace ingot {

struct ImportedConfig {
    std::string architecture;          // "Qwen2ForCausalLM"
    ModelConfig model;                 // without context_length
    int64_t longest_context = 0;       // max_position_embeddings
    std::optional<int64_t> eot_token;  // the first of eos_token_id, if it is within the vocabulary
};

// Errors call the text `path`. Throws UserError with the key that is missing, wrong or not supported.
ImportedConfig parse_import_config(const std::string& text, const std::string& path);

// Does the same for a file. Throws UserError also if there is none.
ImportedConfig read_import_config(const std::string& path);

}  // namespace ingot
