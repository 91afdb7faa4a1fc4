#include "src/model/parameters.h"

#include <cmath>
#include <utility>

#include "kernels/core/rng.h"
#include "kernels/fill.h"

namespace ingot {

void ParameterTable::add(Parameter parameter) {
    parameter.offset = flat_size_;
    flat_size_ += parameter.numel();
    pad_to(kAlignment);
    parameters_.push_back(std::move(parameter));
}

void ParameterTable::begin_bucket(int64_t num_ranks) {
    pad_to(kAlignment * num_ranks);
    bucket_begins_.push_back(flat_size_);
}

void ParameterTable::add_matrix(std::string name, int layer, int64_t rows, int64_t columns, double init_std,
                                std::vector<CheckpointPart> parts) {
    add({.name = std::move(name),
         .rows = rows,
         .columns = columns,
         .is_matrix = true,
         .init_std = init_std,
         .init_value = 0,
         .layer = layer,
         .offset = 0,
         .parts = std::move(parts)});
}

void ParameterTable::add_norm(std::string name, int layer, int64_t size, std::string checkpoint_name) {
    add({.name = std::move(name),
         .rows = 1,
         .columns = size,
         .is_matrix = false,
         .init_std = 0,
         .init_value = 1,
         .layer = layer,
         .offset = 0,
         .parts = {{std::move(checkpoint_name), 0, 1}}});
}

void ParameterTable::add_bias(std::string name, int layer, int64_t size, std::vector<CheckpointPart> parts) {
    add({.name = std::move(name),
         .rows = size,
         .columns = 1,
         .is_matrix = false,
         .init_std = 0,
         .init_value = 0,
         .layer = layer,
         .offset = 0,
         .parts = std::move(parts)});
}

ParameterTable::ParameterTable(const ModelConfig& config, int64_t num_ranks) : tied_(config.tie_embeddings) {
    const int64_t C = config.d_model, V = config.vocab_size, VP = config.padded_vocab_size(), F = config.d_ff;
    const int64_t HS = config.head_dim, Q = config.n_heads * HS, KV = config.n_kv_heads * HS;
    const double std = config.init_std;
    // Projections back into the residual stream: 2L of them add up, so each is smaller (GPT-2, Radford et al. 2019).
    const double out_std = std / std::sqrt(2.0 * static_cast<double>(config.n_layers));
    begin_bucket(num_ranks);
    add_matrix("embedding", -1, VP, C, std, {{"model.embed_tokens.weight", 0, V}});
    for (int64_t l = 0; l < config.n_layers; ++l) {
        const std::string fused = join("layers.", l, "."), llama = join("model.layers.", l, ".");
        const int layer = static_cast<int>(l);
        begin_bucket(num_ranks);
        const auto qkv_parts = [&](const char* kind) -> std::vector<CheckpointPart> {
            return {{llama + "self_attn.q_proj." + kind, 0, Q},
                    {llama + "self_attn.k_proj." + kind, Q, KV},
                    {llama + "self_attn.v_proj." + kind, Q + KV, KV}};
        };
        add_norm(fused + "attention_norm", layer, C, llama + "input_layernorm.weight");
        add_matrix(fused + "qkv", layer, config.qkv_width(), C, std, qkv_parts("weight"));
        if (config.qkv_bias) add_bias(fused + "qkv_bias", layer, config.qkv_width(), qkv_parts("bias"));
        if (config.qk_norm) {
            add_norm(fused + "q_norm", layer, HS, llama + "self_attn.q_norm.weight");
            add_norm(fused + "k_norm", layer, HS, llama + "self_attn.k_norm.weight");
        }
        add_matrix(fused + "attention_out", layer, C, Q, out_std, {{llama + "self_attn.o_proj.weight", 0, C}});
        add_norm(fused + "mlp_norm", layer, C, llama + "post_attention_layernorm.weight");
        add_matrix(fused + "gate_up", layer, 2 * F, C, std,
                   {{llama + "mlp.gate_proj.weight", 0, F}, {llama + "mlp.up_proj.weight", F, F}});
        add_matrix(fused + "down", layer, C, F, out_std, {{llama + "mlp.down_proj.weight", 0, C}});
    }
    begin_bucket(num_ranks);
    add_norm("final_norm", -1, C, "model.norm.weight");
    if (!config.tie_embeddings) add_matrix("head", -1, VP, C, std, {{"lm_head.weight", 0, V}});
    pad_to(kAlignment * num_ranks);
}

const Parameter& ParameterTable::find(const std::string& name) const {
    for (const Parameter& parameter : parameters_)
        if (parameter.name == name) return parameter;
    throw Error(kExitFault, join("no parameter is named ", name));
}

int64_t ParameterTable::num_parameters() const {
    int64_t count = 0;
    for (const Parameter& parameter : parameters_)
        for (const CheckpointPart& part : parameter.parts) count += part.rows * parameter.columns;
    return count;
}

int64_t ParameterTable::num_matmul_parameters() const {
    int64_t count = 0;
    for (const Parameter& parameter : parameters_) {
        if (!parameter.is_matrix || (parameter.name == "embedding" && !tied_)) continue;
        for (const CheckpointPart& part : parameter.parts) count += part.rows * parameter.columns;
    }
    return count;
}

Tensor parameter_view(const Tensor& flat, const Parameter& parameter) {
    const Tensor range = flat.slice(0, parameter.offset, parameter.offset + parameter.numel());
    return parameter.is_matrix ? range.view({parameter.rows, parameter.columns}) : range;
}

Tensor part_view(const Tensor& flat, const Parameter& parameter, const CheckpointPart& part) {
    const int64_t begin = parameter.offset + part.begin * parameter.columns;
    const Tensor range = flat.slice(0, begin, begin + part.rows * parameter.columns);
    return parameter.is_matrix ? range.view({part.rows, parameter.columns}) : range;
}

LayerTensors layer_tensors(const ParameterTable& table, const Tensor& flat, int64_t layer) {
    LayerTensors tensors;
    const std::string prefix = join("layers.", layer, ".");
    const std::pair<const char*, Tensor*> slots[] = {{"attention_norm", &tensors.attention_norm},
                                                     {"qkv", &tensors.qkv},
                                                     {"qkv_bias", &tensors.qkv_bias},
                                                     {"q_norm", &tensors.q_norm},
                                                     {"k_norm", &tensors.k_norm},
                                                     {"attention_out", &tensors.attention_out},
                                                     {"mlp_norm", &tensors.mlp_norm},
                                                     {"gate_up", &tensors.gate_up},
                                                     {"down", &tensors.down}};
    for (const Parameter& parameter : table.parameters()) {
        if (parameter.layer != layer) continue;
        for (const auto& [name, slot] : slots)
            if (parameter.name == prefix + name) *slot = parameter_view(flat, parameter);
    }
    return tensors;
}

void initialize_parameters(const Device& device, const ParameterTable& table, uint64_t seed, const Tensor& flat) {
    device.zero(flat);
    for (const Parameter& parameter : table.parameters()) {
        for (const CheckpointPart& part : parameter.parts) {
            const Tensor tensor = part_view(flat, parameter, part);
            if (parameter.is_matrix)
                fill_normal(
                    device,
                    {.out = tensor, .seed = seed, .stream = stream_of(part.name.c_str()), .std = parameter.init_std});
            else
                fill_value(device, {.out = tensor, .value = parameter.init_value});
        }
    }
}

}  // namespace ingot
