// The tokenizer of a GGUF file: llama.cpp's byte-level BPE, which it calls gpt2.
#pragma once

#include <string>
#include <vector>

#include "src/checkpoint/checkpoint.h"
#include "src/checkpoint/gguf.h"

namespace ingot {

// Adds the tokens, their types, the merges and the name of the pre-tokenizer that give the same token ids in llama.cpp
// as here, and the tokens that begin and end a text. Without a tokenizer in the checkpoint the file says that it has
// none. Returns what the user should know, one sentence each. Throws UserError for a tokenizer that llama.cpp cannot
// follow, with the reason.
std::vector<std::string> add_gguf_tokenizer(const Checkpoint& checkpoint, GgufFile* file);

}  // namespace ingot
