// Text from the model, token by token.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/batch.h"
#include "src/model.h"
#include "src/text.h"

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

// `./train generate`.
struct Sampling {
    double temperature = 0.8;
    int64_t top_k = 50;
    double top_p = 0.95;
};
struct GenerateOptions {
    std::string checkpoint, prompt;
    int64_t num_tokens = 200;
    Sampling sampling;
    uint64_t seed = 1;
    std::string device = "auto";
};
int generate(const GenerateOptions& options);

}  // namespace ingot
