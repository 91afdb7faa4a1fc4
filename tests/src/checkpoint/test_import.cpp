// What of a Hugging Face config.json and of an index of shards is taken, and what is refused by its name. The folder,
// the weights and the command are tested in tests/scripts/test_import.py.
//
// Seen to catch: yarn taken for llama3; a theta that is read in one spelling alone; an epsilon that is not read;
// num_key_value_heads of Mistral left to a default; a window shorter than the context; an index that leads out of its
// folder.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "kernels/core/check.h"
#include "src/checkpoint/import_config.h"
#include "src/checkpoint/import_tensors.h"
#include "tests/support/errors.h"

namespace ingot {
namespace {

using nlohmann::json;

json base(const std::string& type, const std::string& architecture) {
    return {{"architectures", {architecture}},
            {"model_type", type},
            {"hidden_size", 32},
            {"intermediate_size", 48},
            {"num_hidden_layers", 2},
            {"num_attention_heads", 4},
            {"num_key_value_heads", 2},
            {"vocab_size", 300},
            {"max_position_embeddings", 64},
            {"hidden_act", "silu"},
            {"rms_norm_eps", 1e-6},
            {"eos_token_id", 256},
            {"tie_word_embeddings", false}};
}
json llama() {
    return base("llama", "LlamaForCausalLM");
}
json mistral() {
    json config = base("mistral", "MistralForCausalLM");
    config["sliding_window"] = nullptr;
    return config;
}
json qwen2() {
    return base("qwen2", "Qwen2ForCausalLM");
}
json qwen3() {
    json config = base("qwen3", "Qwen3ForCausalLM");
    config["head_dim"] = 16;
    return config;
}
json ingot_own() {
    json config = base("ingot", "IngotForCausalLM");
    config["position_embedding"] = "alibi";
    config["auto_map"] = {{"AutoModelForCausalLM", "modeling_ingot.IngotForCausalLM"}};
    return config;
}
json llama3_scaling() {
    return {{"rope_type", "llama3"},
            {"factor", 8.0},
            {"low_freq_factor", 1.0},
            {"high_freq_factor", 4.0},
            {"original_max_position_embeddings", 16}};
}

// The config with some keys changed; those that are "absent" removed.
json with(json config, const json& changes) {
    for (const auto& [key, value] : changes.items()) {
        if (value == "absent")
            config.erase(key);
        else
            config[key] = value;
    }
    return config;
}

ImportedConfig taken(const json& config) {
    return parse_import_config(config.dump(), "x/config.json");
}

void expect_refused(const json& config, const std::string& what) {
    SCOPED_TRACE(config.dump());
    const std::string text = test::user_error_of([&] { taken(config); }, "taken");
    EXPECT_EQ(text.rfind("x/config.json", 0), 0u) << text;
    EXPECT_NE(text.find(what), std::string::npos) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
}

TEST(ImportConfig, Families) {
    const ModelConfig plain = taken(llama()).model;
    EXPECT_EQ(plain.n_layers, 2);
    EXPECT_EQ(plain.d_model, 32);
    EXPECT_EQ(plain.n_heads, 4);
    EXPECT_EQ(plain.n_kv_heads, 2);
    EXPECT_EQ(plain.head_dim, 8);
    EXPECT_EQ(plain.d_ff, 48);
    EXPECT_EQ(plain.vocab_size, 300);
    EXPECT_EQ(plain.norm_eps, 1e-6);
    EXPECT_EQ(plain.position, Position::rope);
    EXPECT_EQ(plain.rope_theta, 10000);
    EXPECT_EQ(plain.rope_scaling.type, RopeScalingType::none);
    EXPECT_FALSE(plain.tie_embeddings || plain.qkv_bias || plain.qk_norm);
    EXPECT_EQ(taken(llama()).longest_context, 64);
    EXPECT_EQ(taken(llama()).eot_token, 256);
    EXPECT_TRUE(taken(with(llama(), {{"tie_word_embeddings", true}})).model.tie_embeddings);
    EXPECT_TRUE(taken(qwen2()).model.qkv_bias);
    EXPECT_FALSE(taken(qwen2()).model.qk_norm);
    EXPECT_TRUE(taken(qwen3()).model.qk_norm);
    EXPECT_FALSE(taken(qwen3()).model.qkv_bias);
    EXPECT_EQ(taken(qwen3()).model.head_dim, 16);
    EXPECT_FALSE(taken(mistral()).model.qkv_bias || taken(mistral()).model.qk_norm);
    const ModelConfig own = taken(with(ingot_own(), {{"qk_norm", true}, {"qkv_bias", true}})).model;
    EXPECT_EQ(own.position, Position::alibi);
    EXPECT_TRUE(own.qk_norm && own.qkv_bias);
    EXPECT_EQ(taken(with(ingot_own(), {{"position_embedding", "none"}})).model.position, Position::none);
}

TEST(ImportConfig, WhatIsMissingIsAsTheClassHasIt) {
    const ModelConfig model = taken(with(llama(), {{"num_key_value_heads", "absent"},
                                                   {"rms_norm_eps", "absent"},
                                                   {"tie_word_embeddings", "absent"},
                                                   {"architectures", "absent"},
                                                   {"hidden_act", "absent"}}))
                                  .model;
    EXPECT_EQ(model.n_kv_heads, 4);
    EXPECT_EQ(model.norm_eps, 1e-6);
    EXPECT_FALSE(model.tie_embeddings);
    EXPECT_EQ(taken(with(mistral(), {{"num_key_value_heads", nullptr}})).model.n_kv_heads, 4);
    EXPECT_EQ(taken(with(llama(), {{"eos_token_id", "absent"}})).eot_token, std::nullopt);
    EXPECT_EQ(taken(with(llama(), {{"eos_token_id", {7, 8}}})).eot_token, 7);
    EXPECT_EQ(taken(with(llama(), {{"eos_token_id", 300}})).eot_token, std::nullopt) << "beyond the vocabulary";
    // What changes nothing.
    const json idle = {{"pretraining_tp", 2}, {"attention_dropout", 0.1}, {"use_cache", true},
                       {"torch_dtype", "x"},  {"my_own", {1, 2}},         {"quantization_config", nullptr},
                       {"head_dim", nullptr}};
    EXPECT_EQ(taken(with(llama(), idle)).model.head_dim, 8);
}

TEST(ImportConfig, BothSpellingsOfRope) {
    json fields = llama3_scaling();
    fields["rope_theta"] = 500000.0;
    const json now = with(llama(), {{"rope_parameters", fields}});
    json old_fields = llama3_scaling();
    old_fields.erase("rope_type");
    old_fields["type"] = "llama3";
    const json before = with(llama(), {{"rope_scaling", old_fields}, {"rope_theta", 500000.0}});
    json both = now;
    both.update(before);
    for (const json& config : {now, before, both}) {
        const ModelConfig model = taken(config).model;
        EXPECT_EQ(model.rope_theta, 500000);
        EXPECT_EQ(model.rope_scaling, (RopeScaling{RopeScalingType::llama3, 8, 1, 4, 16}));
    }
    const json plain = {{"rope_type", "default"}, {"rope_theta", 1e6}};
    EXPECT_EQ(taken(with(qwen2(), {{"rope_parameters", plain}})).model.rope_theta, 1e6);
    EXPECT_EQ(taken(with(qwen2(), {{"rope_theta", 1e6}, {"rope_scaling", nullptr}})).model.rope_theta, 1e6);
    // Two that disagree: versions of transformers differ in which one they take.
    expect_refused(with(now, {{"rope_theta", 10000.0}}), "rope_parameters.rope_theta");
    expect_refused(with(before, {{"rope_parameters", plain}}), "rope_parameters.rope_theta");
    expect_refused(with(before, {{"rope_parameters", {{"rope_type", "default"}}}}), "what rope_parameters says");
    expect_refused(with(now, {{"original_max_position_embeddings", 32}}), "original_max_position_embeddings");
}

TEST(ImportConfig, OtherRopesAreRefused) {
    for (const char* const type : {"linear", "dynamic", "yarn", "longrope", "mrope", "ntk", ""})
        for (const char* const key : {"rope_scaling", "rope_parameters"})
            for (const char* const type_key : {"type", "rope_type"})
                expect_refused(with(llama(), {{key, {{type_key, type}, {"factor", 2.0}}}}),
                               std::string(key) + "." + type_key + " is \"" + type + "\"");
    expect_refused(with(llama(), {{"rope_scaling", {{"type", "llama3"}, {"rope_type", "yarn"}}}}), "rope_scaling.type");
    expect_refused(with(llama(), {{"rope_scaling", 3}}), "must be an object");
    expect_refused(with(llama(), {{"rope_scaling", {{"rope_type", "default"}, {"mrope_section", {1}}}}}),
                   "mrope_section");
    expect_refused(with(llama(), {{"rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}}}),
                   "full_attention");
    expect_refused(with(llama(), {{"partial_rotary_factor", 0.5}}), "partial_rotary_factor");
    expect_refused(with(llama(), {{"rope_parameters", {{"partial_rotary_factor", 0.25}}}}),
                   "rope_parameters.partial_rotary_factor");
    expect_refused(with(llama(), {{"rope_interleaved", true}}), "rope_interleaved");
    for (const char* const key : {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"})
        for (const json& value : {json("absent"), json("x"), json(-1), json(true)})
            expect_refused(with(llama(), {{"rope_scaling", with(llama3_scaling(), {{key, value}})}}),
                           std::string("rope_scaling.") + key);
}

TEST(ImportConfig, WhatIsComputedOtherwiseIsRefused) {
    const std::vector<std::tuple<json, json, std::string>> table = {
        {llama(), {{"model_type", "gemma3"}}, "Qwen2ForCausalLM (qwen2)"},
        {llama(), {{"model_type", "smollm3"}}, "model_type is \"smollm3\""},
        {llama(), {{"model_type", "absent"}}, "model_type is missing"},
        {llama(), {{"architectures", {"LlamaForSequenceClassification"}}}, "architectures"},
        {llama(), {{"architectures", {"LlamaForCausalLM", "Other"}}}, "architectures"},
        {llama(), {{"architectures", "LlamaForCausalLM"}}, "architectures"},
        {qwen2(), {{"model_type", "qwen3"}}, "architectures"},
        {llama(), {{"hidden_act", "gelu"}}, "hidden_act is \"gelu\""},
        {llama(), {{"attention_bias", true}}, "attention_bias is true"},
        {qwen3(), {{"attention_bias", true}}, "attention_bias is true"},
        {llama(), {{"mlp_bias", true}}, "mlp_bias is true"},
        {llama(), {{"is_causal", false}}, "is_causal"},
        {llama(), {{"no_rope_layers", {1, 0}}}, "no_rope_layers"},
        {llama(), {{"quantization_config", {{"bits", 4}}}}, "quantization_config"},
        {llama(), {{"auto_map", {{"AutoModelForCausalLM", "modeling_x.X"}}}}, "auto_map"},
        {qwen2(), {{"use_sliding_window", true}}, "use_sliding_window"},
        {qwen3(), {{"layer_types", {"full_attention", "sliding_attention"}}}, "layer_types"},
        {mistral(), {{"sliding_window", 63}}, "sliding_window is 63"},
        {mistral(), {{"sliding_window", "absent"}}, "sliding_window is missing"},
        {mistral(), {{"num_key_value_heads", "absent"}}, "num_key_value_heads is missing"},
        {qwen3(), {{"head_dim", "absent"}}, "head_dim is missing"},
        {qwen3(), {{"head_dim", nullptr}}, "head_dim is null"},
        {llama(), {{"hidden_size", 33}}, "hidden_size is 33"},
        {ingot_own(), {{"position_embedding", "absent"}}, "position_embedding"},
        {ingot_own(), {{"position_embedding", "learned"}}, "alibi, rope, none"},
        {llama(), {{"eos_token_id", "</s>"}}, "eos_token_id"},
        {llama(), {{"eos_token_id", json::array()}}, "eos_token_id"},
        {llama(), {{"tie_word_embeddings", 1}}, "tie_word_embeddings"},
        {llama(), {{"rms_norm_eps", "1e-6"}}, "rms_norm_eps"},
    };
    for (const auto& [config, change, what] : table) expect_refused(with(config, change), what);
    // A window as long as the longest context hides nothing; Qwen's has no effect unless it is used.
    EXPECT_EQ(taken(with(mistral(), {{"sliding_window", 64}})).model.n_heads, 4);
    EXPECT_EQ(taken(with(qwen2(), {{"sliding_window", 8}, {"use_sliding_window", false}})).model.n_heads, 4);
    for (const char* const key : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                  "num_key_value_heads", "vocab_size", "max_position_embeddings"})
        for (const json& value : {json(0), json(-1), json(1.5), json("2"), json(true), json(1e300),
                                  json(std::numeric_limits<uint64_t>::max())})
            expect_refused(with(llama(), {{key, value}}), key);
}

TEST(ImportConfig, DamagedTextIsRefused) {
    const std::string whole = llama().dump();
    std::string deep;
    for (int i = 0; i < 100000; ++i) deep += "{\"a\":";
    for (const std::string& text : {std::string(), std::string("[]"), std::string("3"), whole.substr(0, 40),
                                    whole.substr(0, whole.size() - 1) + ", \"hidden_size\": 64}", deep,
                                    std::string(2 << 20, ' '), std::string("\xff\xfe{}")}) {
        SCOPED_TRACE(text.substr(0, 60));
        EXPECT_THROW(parse_import_config(text, "x/config.json"), UserError);
    }
}

TEST(ImportIndex, TensorsAndTheirFiles) {
    const json index = {{"metadata", {{"total_size", 12}}},
                        {"weight_map", {{"a", "model-1.safetensors"}, {"b", "model-2.safetensors"}}}};
    const auto files = parse_import_index(index.dump(), "x.json");
    EXPECT_EQ(files.size(), 2u);
    EXPECT_EQ(files.at("b"), "model-2.safetensors");
    for (const json& file :
         {json("../model.safetensors"), json("/etc/model.safetensors"), json("a/b.safetensors"), json("model.bin"),
          json(""), json(3), json(nullptr), json("..\\x.safetensors"), json(std::string(300, 'x') + ".safetensors"),
          json(std::string("a\0b.safetensors", 15)), json("\x1b[2J.safetensors")}) {
        json changed = index;
        changed["weight_map"]["b"] = file;
        SCOPED_TRACE(changed.dump());
        EXPECT_THROW(parse_import_index(changed.dump(), "x.json"), UserError);
    }
    for (const char* const text :
         {"", "[]", "{}", "{\"weight_map\": {}}", "{\"weight_map\": []}", "{\"weight_map\": {\"a\": "})
        EXPECT_THROW(parse_import_index(text, "x.json"), UserError) << text;
}

}  // namespace
}  // namespace ingot
