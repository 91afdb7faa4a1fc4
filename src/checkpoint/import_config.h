// config.json of a Hugging Face model, read as a description of the same computation here. What would be computed
// otherwise is refused by its key; keys that change nothing are passed over.
#pragma once

#include <cstdint>
#include <string>

#include "src/config/config.h"

namespace ingot {

struct ImportedConfig {
    std::string architecture;          // "Qwen2ForCausalLM"
    ModelConfig model;                 // all but context_length
    int64_t longest_context = 0;       // max_position_embeddings
    std::optional<int64_t> eot_token;  // the first of eos_token_id, if it is within the vocabulary
};

// `path` names the text in errors. Throws UserError with the key that is missing, wrong or not supported.
ImportedConfig parse_import_config(const std::string& text, const std::string& path);

// The same from a file. Throws UserError, also if there is none.
ImportedConfig read_import_config(const std::string& path);

}  // namespace ingot
