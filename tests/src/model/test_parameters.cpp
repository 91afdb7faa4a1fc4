// Seen to catch: q read from the rows of k; wo left at the plain std; one normal stream for all parts of a matrix.
#include "src/model/parameters.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tests/src/model/small_model.h"

namespace ingot::test {
namespace {

struct Outer {
    std::string name;
    int64_t rows, columns;  // rows = 0: one axis
};

// The state dict of LlamaForCausalLM, in its order (biases as in Qwen2, q_norm and k_norm as in Qwen3).
std::vector<Outer> llama_names(const ModelConfig& c) {
    std::vector<Outer> names = {{"model.embed_tokens.weight", c.vocab_size, c.d_model}};
    for (int64_t l = 0; l < c.n_layers; ++l) {
        const std::string p = join("model.layers.", l, ".");
        names.push_back({p + "input_layernorm.weight", 0, c.d_model});
        names.push_back({p + "self_attn.q_proj.weight", c.n_heads * c.head_dim, c.d_model});
        names.push_back({p + "self_attn.k_proj.weight", c.n_kv_heads * c.head_dim, c.d_model});
        names.push_back({p + "self_attn.v_proj.weight", c.n_kv_heads * c.head_dim, c.d_model});
        if (c.qkv_bias) {
            names.push_back({p + "self_attn.q_proj.bias", 0, c.n_heads * c.head_dim});
            names.push_back({p + "self_attn.k_proj.bias", 0, c.n_kv_heads * c.head_dim});
            names.push_back({p + "self_attn.v_proj.bias", 0, c.n_kv_heads * c.head_dim});
        }
        if (c.qk_norm) names.push_back({p + "self_attn.q_norm.weight", 0, c.head_dim});
        if (c.qk_norm) names.push_back({p + "self_attn.k_norm.weight", 0, c.head_dim});
        names.push_back({p + "self_attn.o_proj.weight", c.d_model, c.n_heads * c.head_dim});
        names.push_back({p + "post_attention_layernorm.weight", 0, c.d_model});
        names.push_back({p + "mlp.gate_proj.weight", c.d_ff, c.d_model});
        names.push_back({p + "mlp.up_proj.weight", c.d_ff, c.d_model});
        names.push_back({p + "mlp.down_proj.weight", c.d_model, c.d_ff});
    }
    names.push_back({"model.norm.weight", 0, c.d_model});
    if (!c.tie_embeddings) names.push_back({"lm_head.weight", c.vocab_size, c.d_model});
    return names;
}

// Weights of a fresh model, in a flat space that was zeroed as the contract asks.
struct Weights {
    Weights(const ParameterTable& table, uint64_t seed, DType dtype = DType::f32)
        : flat(Device::cpu(), dtype, {table.flat_size()}) {
        Device::cpu().zero(flat);
        initialize_parameters(Device::cpu(), table, seed, flat);
    }
    std::vector<double> part(const ParameterTable& table, const std::string& name) const {
        for (const Parameter& parameter : table.parameters())
            for (const CheckpointPart& outer : parameter.parts)
                if (outer.name == name) return SmallModel::values_of(part_view(flat, parameter, outer));
        ADD_FAILURE() << "no part " << name;
        return {};
    }
    Buffer flat;
};

TEST(Parameters, OuterNamesShapesAndOrder) {
    for_all_configs([](const ModelConfig& config, const std::string& name) {
        SCOPED_TRACE(name);
        const ParameterTable table(config);
        const Buffer flat(Device::cpu(), DType::f32, {table.flat_size()});
        std::vector<std::string> actual, expected;
        int64_t count = 0;
        for (const Parameter& parameter : table.parameters())
            for (const CheckpointPart& part : parameter.parts)
                actual.push_back(part.name + " " + part_view(flat, parameter, part).describe());
        for (const Outer& outer : llama_names(config)) {
            expected.push_back(outer.rows == 0 ? join(outer.name, " fp32 (", outer.columns, ")")
                                               : join(outer.name, " fp32 (", outer.rows, ", ", outer.columns, ")"));
            count += std::max<int64_t>(outer.rows, 1) * outer.columns;
        }
        EXPECT_EQ(actual, expected);
        EXPECT_EQ(table.num_parameters(), count);
    });
}

TEST(Parameters, OffsetsAreAlignedAndDisjoint) {
    for_all_configs([](const ModelConfig& config, const std::string& name) {
        SCOPED_TRACE(name);
        const ParameterTable table(config);
        int64_t end = 0;
        std::set<std::string> names;
        for (const Parameter& parameter : table.parameters()) {
            EXPECT_EQ(parameter.offset % 64, 0) << parameter.name;
            EXPECT_GE(parameter.offset, end) << parameter.name;
            end = parameter.offset + parameter.numel();
            EXPECT_TRUE(names.insert(parameter.name).second) << parameter.name;
            EXPECT_EQ(&table.find(parameter.name), &parameter);
            int64_t row = 0;
            for (const CheckpointPart& part : parameter.parts) {
                EXPECT_EQ(part.begin, row) << part.name;
                row += part.rows;
            }
            EXPECT_LE(row, parameter.rows);
            EXPECT_EQ(parameter.layer >= 0, parameter.name.rfind("layers.", 0) == 0);
            EXPECT_EQ(parameter.is_matrix, parameter.name.find("norm") == std::string::npos &&
                                               parameter.name.find("bias") == std::string::npos);
        }
        EXPECT_LE(end, table.flat_size());
        EXPECT_EQ(table.flat_size() % 64, 0);
    });
}

TEST(Parameters, LayerTensorsAreViewsOfTheTable) {
    ModelConfig config = tiny_config();
    config.qk_norm = config.qkv_bias = true;
    const ParameterTable table(config);
    const Buffer flat(Device::cpu(), DType::f32, {table.flat_size()});
    const LayerTensors tensors = layer_tensors(table, flat, 1);
    for (const auto& [name, tensor] : {std::pair{"attention_norm", &tensors.attention_norm},
                                       {"qkv", &tensors.qkv},
                                       {"qkv_bias", &tensors.qkv_bias},
                                       {"q_norm", &tensors.q_norm},
                                       {"k_norm", &tensors.k_norm},
                                       {"attention_out", &tensors.attention_out},
                                       {"mlp_norm", &tensors.mlp_norm},
                                       {"gate_up", &tensors.gate_up},
                                       {"down", &tensors.down}}) {
        const Parameter& parameter = table.find(join("layers.1.", name));
        EXPECT_EQ(tensor->data, flat.tensor().get<float>() + parameter.offset) << name;
        EXPECT_EQ(tensor->rank, parameter.is_matrix ? 2 : 1) << name;
        EXPECT_EQ(tensor->numel(), parameter.numel()) << name;
    }
    config.qk_norm = config.qkv_bias = false;
    EXPECT_FALSE(layer_tensors(ParameterTable(config), flat, 1).q_norm);
    EXPECT_FALSE(layer_tensors(ParameterTable(config), flat, 1).qkv_bias);
}

TEST(Parameters, CountsOfAKnownModel) {
    ModelConfig config;  // the shape of GPT-2 small, with SwiGLU of 2048
    config.n_layers = 12;
    config.d_model = 768;
    config.n_heads = config.n_kv_heads = 12;
    config.head_dim = 64;
    config.d_ff = 2048;
    config.vocab_size = 50257;
    const int64_t layers = 12 * (4 * 768 * 768 + 3 * 768 * 2048), norms = 25 * 768, vocabulary = 50257 * 768;
    EXPECT_EQ(ParameterTable(config).num_parameters(), layers + norms + vocabulary);
    EXPECT_EQ(ParameterTable(config).num_matmul_parameters(), layers + vocabulary);
    config.tie_embeddings = false;
    EXPECT_EQ(ParameterTable(config).num_parameters(), layers + norms + 2 * vocabulary);
    EXPECT_EQ(ParameterTable(config).num_matmul_parameters(), layers + vocabulary);
}

TEST(Initialization, StandardDeviations) {
    ModelConfig config = tiny_config();
    config.n_layers = 8;
    config.d_model = 64;
    config.head_dim = 32;
    config.d_ff = 96;
    config.vocab_size = 200;
    config.tie_embeddings = false;
    config.qk_norm = config.qkv_bias = true;
    config.init_std = 0.05;
    const ParameterTable table(config);
    const Weights weights(table, 3);
    for (const Outer& outer : llama_names(config)) {
        const std::vector<double> values = weights.part(table, outer.name);
        if (outer.rows == 0) {
            const double value = outer.name.ends_with(".bias") ? 0 : 1;
            EXPECT_TRUE(same(values, std::vector<double>(values.size(), value))) << outer.name;
            continue;
        }
        const bool is_out =
            outer.name.find("o_proj") != std::string::npos || outer.name.find("down_proj") != std::string::npos;
        const double std = is_out ? 0.05 / std::sqrt(16.0) : 0.05, n = static_cast<double>(values.size());
        double sum = 0, square = 0;
        for (const double value : values) {
            sum += value;
            square += value * value;
        }
        // Five standard errors of the mean and of the standard deviation.
        EXPECT_LE(std::abs(sum / n), 5 * std / std::sqrt(n)) << outer.name;
        EXPECT_NEAR(std::sqrt(square / n) / std, 1, 5 / std::sqrt(2 * n)) << outer.name;
    }
}

TEST(Initialization, PaddingAndGapsStayZero) {
    ModelConfig config = tiny_config();
    config.tie_embeddings = false;
    const ParameterTable table(config);
    const Weights weights(table, 3);
    std::vector<double> values = weights.flat.values();
    for (const Parameter& parameter : table.parameters())
        for (const CheckpointPart& part : parameter.parts)
            for (int64_t i = 0; i < part.rows * parameter.columns; ++i)
                values[static_cast<size_t>(parameter.offset + part.begin * parameter.columns + i)] = 0;
    EXPECT_TRUE(same(values, std::vector<double>(values.size())));
    EXPECT_EQ(table.find("embedding").rows, 128);
}

// A tensor's numbers depend on its outer name, its index and the seed: not on what stands around it, nor on the dtype.
TEST(Initialization, DependsOnNameAndSeedAlone) {
    ModelConfig config = tiny_config(), other = tiny_config();
    other.n_layers = 5;
    other.d_ff = 24;
    other.tie_embeddings = false;
    other.qk_norm = true;
    other.vocab_size = 300;
    const ParameterTable table(config), other_table(other);
    const Weights weights(table, 3), others(other_table, 3), reseeded(table, 4), wide(table, 3, DType::f64);
    std::set<double> first_values;
    for (const char* const name : {"q_proj", "k_proj", "v_proj"}) {
        const std::string full = join("model.layers.1.self_attn.", name, ".weight");
        const std::vector<double> values = weights.part(table, full);
        EXPECT_TRUE(same(others.part(other_table, full), values)) << full;
        EXPECT_TRUE(same(wide.part(table, full), values)) << full;
        EXPECT_FALSE(same(reseeded.part(table, full), values)) << full;
        first_values.insert(values[0]);
        first_values.insert(weights.part(table, join("model.layers.0.self_attn.", name, ".weight"))[0]);
    }
    EXPECT_EQ(first_values.size(), 6u) << "two tensors share their numbers";
    std::vector<double> start = others.part(other_table, "model.embed_tokens.weight");
    start.resize(11 * 8);
    EXPECT_TRUE(same(start, weights.part(table, "model.embed_tokens.weight")));
}

}  // namespace
}  // namespace ingot::test
