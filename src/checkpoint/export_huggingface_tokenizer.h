// The tokenizer's files of an export for transformers.
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
    std::vector<File> files;         // none: the run has no tokenizer
    std::vector<std::string> notes;  // what their user should know, a sentence each
};

// tokenizer.json, tokenizer_config.json and special_tokens_map.json, which AutoTokenizer reads. A tokenizer.json goes
// with the model as it is. Throws UserError if the checkpoint lacks the one of its run.
HuggingFaceTokenizer huggingface_tokenizer(const Checkpoint& checkpoint);

// A tokenizer.json that makes every byte of a text a token of the byte's number: a byte-level BPE that merges nothing.
// `eot_token`: the id of "<|endoftext|>" if it is beyond the bytes; -1: there is none.
std::string byte_tokenizer_json(int64_t eot_token);

}  // namespace ingot
