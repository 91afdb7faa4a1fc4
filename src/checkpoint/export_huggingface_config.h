// Chooses the class of transformers that computes a model, and writes its config.json.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "kernels/core/dtype.h"
#include "src/config/config.h"

namespace ingot {

struct HuggingFaceClass {
    std::string architecture;  // "LlamaForCausalLM"
    std::string model_type;    // "llama"
    bool is_own = false;       // IngotForCausalLM, whose code is exported with the weights
    std::string reason;        // why it is not LlamaForCausalLM; empty if it is
};

// Returns the library's class that computes exactly this model, else our own. Other programs (vLLM, SGLang,
// llama.cpp's converter) read only the library's classes.
HuggingFaceClass huggingface_class(const ModelConfig& model);

// Returns config.json. A key that versions 4 and 5 of transformers spell differently is written in both spellings.
nlohmann::ordered_json huggingface_config(const Config& config, DType dtype);
nlohmann::ordered_json huggingface_generation_config(const Config& config);

// Returns PyTorch's name of a type: "bfloat16".
const char* torch_name(DType dtype);

}  // namespace ingot
