// Text from the model, token by token.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/batch.h"
#include "src/model.h"

namespace ingot {

struct SampleOptions {
    int64_t num_tokens = 64;
    double temperature = 0.8;  // 0: the likeliest token
    uint64_t seed = 0;
    int32_t eot_token = -1;  // ends the text; -1: none
};

// Continues `prompt` (the byte tokenizer: token = byte). Returns the continuation alone. Each token's forward pass runs
// over the whole text so far. prompt + num_tokens must fit the model's planned tokens.
std::string sample_text(Model& model, const BatchBuffers& buffers, const Tensor& logits, const std::string& prompt,
                        const SampleOptions& options);

// The text with control characters and invalid UTF-8 made visible, for a terminal.
std::string printable(const std::string& text);

}  // namespace ingot
