// Writes the tokenizer's files of an export for transformers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/checkpoint/checkpoint.h"

namespace ingot {

struct HuggingFaceTokenizer {
    struct File {
        std::string name, text;
    };
    std::vector<File> files;         // empty if the run has no tokenizer
    std::vector<std::string> notes;  // for the user, a sentence each
};

// Returns tokenizer.json, tokenizer_config.json and special_tokens_map.json, which AutoTokenizer reads. A
// tokenizer.json is copied unchanged. Throws UserError if the checkpoint lacks the one of its run.
HuggingFaceTokenizer huggingface_tokenizer(const Checkpoint& checkpoint);

// Returns a tokenizer.json that makes every byte of a text a token with the byte's number: a byte-level BPE without
// merges. `eot_token` is the id of "<|endoftext|>" if it is not a byte; -1 if there is none.
std::string byte_tokenizer_json(int64_t eot_token);

}  // namespace ingot
