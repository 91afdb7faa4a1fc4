#include "src/checkpoint/export_huggingface_config.h"

#include "kernels/core/check.h"
#include "src/config/fields.h"

namespace ingot {

using nlohmann::ordered_json;

namespace {

// Returns rope_scaling of version 4, or rope_parameters of version 5, which includes the base.
ordered_json rope_json(const ModelConfig& model, bool has_theta) {
    ordered_json rope;
    const RopeScaling& scaling = model.rope_scaling;
    rope["rope_type"] = scaling.type == RopeScalingType::none ? "default" : name_of_choice(scaling.type);
    if (has_theta) rope["rope_theta"] = model.rope_theta;
    if (scaling.type == RopeScalingType::none) return rope;
    rope["factor"] = scaling.factor;
    rope["low_freq_factor"] = scaling.low_freq_factor;
    rope["high_freq_factor"] = scaling.high_freq_factor;
    rope["original_max_position_embeddings"] = scaling.original_context_length;
    return rope;
}

}  // namespace

const char* torch_name(DType dtype) {
    return dtype == DType::bf16 ? "bfloat16" : dtype == DType::f16 ? "float16" : "float32";
}

HuggingFaceClass huggingface_class(const ModelConfig& model) {
    const auto ours = [](const char* what) {
        return HuggingFaceClass{"IngotForCausalLM", "ingot", true, join("no class of transformers has ", what)};
    };
    if (model.position == Position::alibi) return ours("ALiBi together with RMSNorm and SwiGLU");
    if (model.position == Position::none) return ours("no position embedding at all");
    if (model.qk_norm && model.qkv_bias) return ours("both QK-norm and a bias on q, k and v alone");
    if (model.qk_norm) return {"Qwen3ForCausalLM", "qwen3", false, "the model has QK-norm"};
    if (model.qkv_bias) return {"Qwen2ForCausalLM", "qwen2", false, "the model has a bias on q, k and v"};
    if (model.d_model % model.n_heads != 0)
        return {"MistralForCausalLM", "mistral", false, "LlamaConfig wants a width that its heads divide"};
    return {"LlamaForCausalLM", "llama", false, ""};
}

ordered_json huggingface_config(const Config& config, DType dtype) {
    const ModelConfig& model = config.model;
    const HuggingFaceClass kind = huggingface_class(model);
    ordered_json json;
    json["architectures"] = {kind.architecture};
    json["model_type"] = kind.model_type;
    if (kind.is_own)
        json["auto_map"] = {{"AutoConfig", "modeling_ingot.IngotConfig"},
                            {"AutoModel", "modeling_ingot.IngotModel"},
                            {"AutoModelForCausalLM", "modeling_ingot.IngotForCausalLM"}};
    json["vocab_size"] = model.vocab_size;
    json["hidden_size"] = model.d_model;
    json["intermediate_size"] = model.d_ff;
    json["num_hidden_layers"] = model.n_layers;
    json["num_attention_heads"] = model.n_heads;
    json["num_key_value_heads"] = model.n_kv_heads;
    json["head_dim"] = model.head_dim;
    json["max_position_embeddings"] = model.context_length;
    json["rms_norm_eps"] = model.norm_eps;
    json["initializer_range"] = model.init_std;
    json["hidden_act"] = "silu";
    json["tie_word_embeddings"] = model.tie_embeddings;
    json["use_cache"] = true;
    if (kind.is_own) {
        json["position_embedding"] = name_of_choice(model.position);
        json["qk_norm"] = model.qk_norm;
        json["qkv_bias"] = model.qkv_bias;
    } else {
        json["attention_dropout"] = 0.0;
    }
    if (kind.model_type == "llama") json["mlp_bias"] = false;
    if (kind.model_type == "llama" || kind.model_type == "qwen3") json["attention_bias"] = false;
    if (kind.model_type == "mistral") json["sliding_window"] = nullptr;
    if (kind.model_type == "qwen2" || kind.model_type == "qwen3") {
        json["use_sliding_window"] = false;
        json["sliding_window"] = nullptr;
        json["max_window_layers"] = model.n_layers;
    }
    if (model.position == Position::rope) {
        json["rope_parameters"] = rope_json(model, true);
        // Our own class reads one spelling with every version.
        if (!kind.is_own) {
            json["rope_theta"] = model.rope_theta;
            json["rope_scaling"] = nullptr;
            if (model.rope_scaling.type != RopeScalingType::none) json["rope_scaling"] = rope_json(model, false);
        }
    }
    // null is needed: without the key the library's classes use ids of their own.
    for (const char* const name : {"bos_token_id", "eos_token_id"}) {
        json[name] = nullptr;
        if (config.data.eot_token) json[name] = *config.data.eot_token;
    }
    for (const char* const name : {"torch_dtype", "dtype"}) json[name] = torch_name(dtype);
    return json;
}

ordered_json huggingface_generation_config(const Config& config) {
    ordered_json json;
    json["use_cache"] = true;
    if (!config.data.eot_token) return json;
    // Padding fills batches. generate() would choose the same id, with a warning.
    for (const char* const name : {"bos_token_id", "eos_token_id", "pad_token_id"}) json[name] = *config.data.eot_token;
    return json;
}

}  // namespace ingot
