#include "src/checkpoint/import_config.h"

#include <algorithm>
#include <vector>

#include "kernels/core/check.h"
#include "src/base/files.h"
#include "src/base/json_text.h"
#include "src/base/text.h"
#include "src/config/fields.h"

namespace ingot {

using nlohmann::json;

namespace {

constexpr JsonLimits kConfigLimits = {.advice = "it must be the config.json of a Hugging Face model"};
constexpr const char* kAdvice = "this model cannot be imported";

// What the class of an architecture computes that config.json does not say.
struct Family {
    const char *model_type, *architecture;
    bool has_qkv_bias, has_qk_norm;
    bool derives_head_dim;  // as hidden_size / num_attention_heads if config.json has none
    bool derives_kv_heads;  // as num_attention_heads if config.json has no num_key_value_heads
};
constexpr Family kFamilies[] = {
    {"llama", "LlamaForCausalLM", false, false, true, true},
    {"mistral", "MistralForCausalLM", false, false, true, false},
    {"qwen2", "Qwen2ForCausalLM", true, false, true, false},
    {"qwen3", "Qwen3ForCausalLM", false, true, false, false},
    // ./train export writes this if no class of transformers computes the model; config.json has the rest.
    {"ingot", "IngotForCausalLM", false, false, true, true},
};

std::string known_families() {
    std::string text;
    for (const Family& family : kFamilies)
        text += join(text.empty() ? "" : ", ", family.architecture, " (", family.model_type, ")");
    return text;
}

bool is_ingot(const Family& family) {
    return family.model_type == std::string("ingot");
}

Family family_of(const JsonFields& root) {
    const std::string type = root.text("model_type", 100);
    const auto family = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                     [&](const Family& candidate) { return type == candidate.model_type; });
    if (family == std::end(kFamilies)) root.refuse("model_type", "that of one of " + known_families());
    // A class with another head, or without one, has the same model_type.
    if (root.has("architectures") && root.at("architectures") != json::array({family->architecture}))
        root.refuse("architectures", join("[\"", family->architecture, "\"] for model_type ", type));
    return *family;
}

// ---- Keys that must have the one value that is computed here ----

struct OnlyValue {
    const char* key;
    bool (*is_it)(const json& value);
    const char* expected;
};

bool is_false(const json& value) {
    return value == false;
}
bool is_full_attention(const json& value) {
    return value.is_array() &&
           std::all_of(value.begin(), value.end(), [](const json& layer) { return layer == "full_attention"; });
}
bool is_one(const json& value) {
    return value.is_number() && value.get<double>() == 1;
}

// A null or missing key means the same value, which is the default of each class.
const OnlyValue kOnlyValues[] = {
    {"hidden_act", [](const json& value) { return value == "silu" || value == "swish"; },
     "\"silu\" (the MLP here is SwiGLU)"},
    {"mlp_bias", is_false, "false (the MLP here has no bias)"},
    {"use_sliding_window", is_false, "false (attention here sees the whole context)"},
    {"layer_types", is_full_attention, "\"full_attention\" in each layer (attention here sees the whole context)"},
    {"no_rope_layers",
     [](const json& value) { return value.is_array() && std::all_of(value.begin(), value.end(), is_one); },
     "1 in each layer (RoPE here is in all layers or in none)"},
    {"partial_rotary_factor", is_one, "1 (RoPE here turns whole heads)"},
    {"rope_interleaved", is_false, "false (RoPE here has the rotate-half layout)"},
    {"is_causal", [](const json& value) { return value == true; }, "true (a model here predicts the next token)"},
    {"quantization_config", [](const json&) { return false; }, "null (weights must be bf16, fp16 or fp32)"},
    {"compression_config", [](const json&) { return false; }, "null (weights must be bf16, fp16 or fp32)"},
};

void check_only_values(const JsonFields& root, const Family& family) {
    for (const OnlyValue& only : kOnlyValues)
        if (root.has(only.key) && !only.is_it(root.at(only.key))) root.refuse(only.key, only.expected);
    // Qwen2's class ignores this key: q, k and v have a bias, o has none.
    if (!family.has_qkv_bias && root.has("attention_bias") && !is_false(root.at("attention_bias")))
        root.refuse("attention_bias",
                    "false (with it o_proj has a bias too; here q, k and v may have one, as in Qwen2, and o has none)");
    // Custom code may compute anything; only our own is known.
    if (!is_ingot(family) && root.has("auto_map") && root.at("auto_map").contains("AutoModelForCausalLM"))
        root.refuse("auto_map", join("without \"AutoModelForCausalLM\" (code of the model's own is not run; if ",
                                     family.architecture, " computes the same, remove it)"));
}

// Accepts a window that is as long as the longest context, since it hides nothing.
void check_window(const JsonFields& root, const Family& family, int64_t longest_context) {
    const bool is_mistral = family.model_type == std::string("mistral");
    // Qwen's window only has an effect with use_sliding_window; the other classes have no window.
    if (!is_mistral || (root.value().contains("sliding_window") && !root.has("sliding_window"))) return;
    if (!root.has("sliding_window"))
        root.refuse("sliding_window", "null (without the key transformers takes a window of 4096 tokens)");
    if (root.integer("sliding_window", 1, INT64_MAX) < longest_context)
        root.refuse("sliding_window", join("null, or at least max_position_embeddings, which is ", longest_context,
                                           " (attention here sees the whole context)"));
}

// ---- RoPE, in its old and its new spelling ----

RopeScaling rope_scaling_of(const JsonFields& fields, const JsonFields& root) {
    for (const auto& [key, value] : fields.value().items())
        if (value.is_object()) fields.refuse(key, "no object (RoPE here is the same in all layers)");
    const bool has_new = fields.has("rope_type"), has_old = fields.has("type");
    if (has_new && has_old && fields.at("rope_type") != fields.at("type")) fields.refuse("type", "what rope_type says");
    const char* const key = has_new || !has_old ? "rope_type" : "type";
    const std::string type = has_new || has_old ? fields.text(key, 100) : "default";
    if (fields.has("partial_rotary_factor") && !is_one(fields.at("partial_rotary_factor")))
        fields.refuse("partial_rotary_factor", "1 (RoPE here turns whole heads)");
    if (fields.has("mrope_section")) fields.refuse("mrope_section", "null (RoPE here has one axis)");
    RopeScaling scaling;
    if (type == "default") return scaling;
    if (type != "llama3")
        fields.refuse(key, "\"default\" or \"llama3\" (linear, dynamic, yarn and longrope are not computed here)");
    constexpr double kMost = 1e9;
    scaling.type = RopeScalingType::llama3;
    scaling.factor = fields.number("factor", 1, kMost);
    scaling.low_freq_factor = fields.number("low_freq_factor", 0, kMost);
    scaling.high_freq_factor = fields.number("high_freq_factor", 0, kMost);
    scaling.original_context_length = fields.integer("original_max_position_embeddings", 1, INT64_MAX);
    // Newer versions of transformers prefer this key at the root, older ones ignore it.
    const char* const outer = "original_max_position_embeddings";
    if (root.has(outer) && root.at(outer) != scaling.original_context_length)
        root.refuse(outer, join(scaling.original_context_length, ", as ", fields.path(outer), " says"));
    return scaling;
}

// Versions of transformers prefer different keys, so all keys that are present must agree.
void read_rope(const JsonFields& root, ModelConfig* model) {
    std::vector<std::pair<std::string, double>> thetas;
    const auto add_theta = [&](const JsonFields& fields) {
        if (!fields.has("rope_theta")) return;
        thetas.emplace_back(fields.path("rope_theta"), fields.number("rope_theta", 1, 1e300));
        if (thetas.back().second != thetas.front().second)
            fields.refuse("rope_theta", join(thetas.front().second, ", as ", thetas.front().first, " says"));
    };
    add_theta(root);
    std::string first;
    for (const char* const key : {"rope_parameters", "rope_scaling"}) {
        if (!root.has(key)) continue;
        const JsonFields fields = root.object(key);
        add_theta(fields);
        const RopeScaling scaling = rope_scaling_of(fields, root);
        if (!first.empty() && !(scaling == model->rope_scaling)) root.refuse(key, "what " + first + " says");
        model->rope_scaling = scaling;
        first = key;
    }
    model->rope_theta = thetas.empty() ? 10000 : thetas.front().second;
}

// ---- The rest ----

constexpr int64_t kMostSize = int64_t{1} << 40;  // a loose bound; the config's rules have the exact ones

int64_t size_of(const JsonFields& root, const char* key) {
    return root.integer(key, 1, kMostSize);
}

bool flag_of(const JsonFields& root, const char* key) {
    return root.has(key) && root.boolean(key);
}

std::optional<int64_t> eot_token_of(const JsonFields& root, int64_t vocab_size) {
    if (!root.has("eos_token_id")) return std::nullopt;
    const json& value = root.at("eos_token_id");
    const json& first = value.is_array() && !value.empty() ? value.front() : value;
    if (!first.is_number_integer()) root.refuse("eos_token_id", "the id of a token, or a list of them");
    const bool is_token = first.is_number_unsigned() && first.get<uint64_t>() < static_cast<uint64_t>(vocab_size);
    if (!is_token) return std::nullopt;
    return first.get<int64_t>();
}

Position position_of(const JsonFields& root) {
    const std::string name = root.text("position_embedding", 100);
    std::string names;
    for (const auto& [known, position] : enum_names<Position>) {
        if (name == known) return position;
        names += join(names.empty() ? "" : ", ", known);
    }
    root.refuse("position_embedding", "one of " + names);
}

}  // namespace

ImportedConfig parse_import_config(const std::string& text, const std::string& path) {
    const json values = parse_json(text, path, kConfigLimits);
    const JsonFields root(values, path, "", kAdvice);
    const Family family = family_of(root);
    ImportedConfig imported;
    imported.architecture = family.architecture;
    imported.longest_context = size_of(root, "max_position_embeddings");
    check_only_values(root, family);
    check_window(root, family, imported.longest_context);
    ModelConfig& m = imported.model;
    m.n_layers = size_of(root, "num_hidden_layers");
    m.d_model = size_of(root, "hidden_size");
    m.n_heads = size_of(root, "num_attention_heads");
    const bool has_kv_heads = root.has("num_key_value_heads");
    if (!has_kv_heads && !family.derives_kv_heads && !root.value().contains("num_key_value_heads"))
        root.refuse("num_key_value_heads", "there");  // each class has another default
    m.n_kv_heads = has_kv_heads ? size_of(root, "num_key_value_heads") : m.n_heads;
    if (root.has("head_dim") || !family.derives_head_dim) {
        m.head_dim = size_of(root, "head_dim");
    } else {
        if (m.d_model % m.n_heads != 0)
            root.refuse("hidden_size", join("a multiple of num_attention_heads, which is ", m.n_heads));
        m.head_dim = m.d_model / m.n_heads;
    }
    m.d_ff = size_of(root, "intermediate_size");
    m.vocab_size = size_of(root, "vocab_size");
    m.norm_eps = root.has("rms_norm_eps") ? root.number("rms_norm_eps", 0, 1) : 1e-6;
    m.tie_embeddings = flag_of(root, "tie_word_embeddings");
    m.position = is_ingot(family) ? position_of(root) : Position::rope;
    m.qkv_bias = family.has_qkv_bias || (is_ingot(family) && flag_of(root, "qkv_bias"));
    m.qk_norm = family.has_qk_norm || (is_ingot(family) && flag_of(root, "qk_norm"));
    if (m.position == Position::rope) read_rope(root, &m);
    imported.eot_token = eot_token_of(root, m.vocab_size);
    return imported;
}

ImportedConfig read_import_config(const std::string& path) {
    return parse_import_config(read_file(path, kConfigLimits.max_bytes), path);
}

}  // namespace ingot
