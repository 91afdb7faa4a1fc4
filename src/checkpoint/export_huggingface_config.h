// Which class of transformers computes a model, and what its config.json says.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "kernels/core/dtype.h"
#include "src/config/config.h"

namespace ingot {

struct HuggingFaceClass {
    std::string architecture;  // "LlamaForCausalLM"
    std::string model_type;    // "llama"
    bool is_own = false;       // IngotForCausalLM, whose code goes with the weights
    std::string reason;        // why it is not LlamaForCausalLM; empty if it is
};

// A class of the library where one computes exactly this model, else our own. Those of the library are what other
// programs read too (vLLM, SGLang, llama.cpp's converter).
HuggingFaceClass huggingface_class(const ModelConfig& model);

// config.json. What versions 4 and 5 of transformers spell differently stands in both spellings.
nlohmann::ordered_json huggingface_config(const Config& config, DType dtype);
nlohmann::ordered_json huggingface_generation_config(const Config& config);

// "bfloat16", as PyTorch names a type.
const char* torch_name(DType dtype);

}  // namespace ingot
