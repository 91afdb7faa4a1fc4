// Writes the tokenizer of a GGUF file: llama.cpp's byte-level BPE, which it calls gpt2.
#pragma once

#include <string>
#include <vector>

#include "src/checkpoint/checkpoint.h"
#include "src/checkpoint/gguf.h"

namespace ingot {

// Adds the tokens, their types, the merges and the name of the pre-tokenizer with which llama.cpp makes the same token
// ids, and the tokens that begin and end a text. For a checkpoint without a tokenizer the file says that it has none.
// Returns notes for the user, one sentence each. Throws UserError with the reason for a tokenizer that llama.cpp
// cannot follow.
std::vector<std::string> add_gguf_tokenizer(const Checkpoint& checkpoint, GgufFile* file);

}  // namespace ingot
