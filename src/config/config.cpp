#include "src/config/config.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <sstream>

#include "kernels/core/check.h"
#include "src/base/files.h"
#include "src/base/json_text.h"
#include "src/base/text.h"
#include "src/config/dataset_meta.h"
#include "src/config/fields.h"
#include "src/config/rules.h"
#include "src/tokenizer/unicode.h"

namespace ingot {

using nlohmann::json;

namespace {

// Names that other trainers and model files give to a field, with its path here.
constexpr std::pair<const char*, const char*> kOtherNames[] = {
    {"learning_rate", "optimizer.lr"},
    {"max_lr", "optimizer.lr"},
    {"min_lr", "schedule.final_lr_fraction"},
    {"min_learning_rate", "schedule.final_lr_fraction"},
    {"adam_beta1", "optimizer.beta1"},
    {"adam_beta2", "optimizer.beta2"},
    {"adam_epsilon", "optimizer.eps"},
    {"max_grad_norm", "optimizer.grad_clip"},
    {"clip_grad_norm", "optimizer.grad_clip"},
    {"gradient_clipping", "optimizer.grad_clip"},
    {"max_steps", "training.steps"},
    {"max_iters", "training.steps"},
    {"num_steps", "training.steps"},
    {"num_epochs", "training.epochs"},
    {"num_train_epochs", "training.epochs"},
    {"batch_size", "training.micro_batch_size"},
    {"per_device_train_batch_size", "training.micro_batch_size"},
    {"global_batch_size", "training.batch_tokens"},
    {"total_batch_size", "training.batch_tokens"},
    {"dtype", "training.precision"},
    {"mixed_precision", "training.precision"},
    {"gradient_checkpointing", "training.recompute"},
    {"activation_checkpointing", "training.recompute"},
    {"n_layer", "model.n_layers"},
    {"num_layers", "model.n_layers"},
    {"num_hidden_layers", "model.n_layers"},
    {"n_embd", "model.d_model"},
    {"hidden_size", "model.d_model"},
    {"dim", "model.d_model"},
    {"n_head", "model.n_heads"},
    {"num_heads", "model.n_heads"},
    {"num_attention_heads", "model.n_heads"},
    {"num_kv_heads", "model.n_kv_heads"},
    {"num_key_value_heads", "model.n_kv_heads"},
    {"intermediate_size", "model.d_ff"},
    {"ffn_dim", "model.d_ff"},
    {"block_size", "model.context_length"},
    {"seq_len", "model.context_length"},
    {"max_seq_len", "model.context_length"},
    {"sequence_length", "model.context_length"},
    {"max_position_embeddings", "model.context_length"},
    {"tie_word_embeddings", "model.tie_embeddings"},
    {"rms_norm_eps", "model.norm_eps"},
    {"layer_norm_epsilon", "model.norm_eps"},
    {"initializer_range", "model.init_std"},
    {"lr_scheduler", "schedule.type"},
    {"lr_scheduler_type", "schedule.type"},
    {"warmup_iters", "schedule.warmup_steps"},
    {"eval_interval", "eval.every"},
    {"eval_steps", "eval.every"},
    {"save_interval", "checkpoint.every"},
    {"save_steps", "checkpoint.every"},
    {"save_total_limit", "checkpoint.keep"},
    {"out_dir", "run_dir"},
    {"output_dir", "run_dir"},
};

std::string suggestion(const std::string& path) {
    const std::string key = path.substr(path.rfind('.') + 1);
    std::string best;
    constexpr size_t kLongestKey = 200;  // a longer key resembles no field, and takes long to compare
    const std::string remove = ": remove it, or see configs/schema.json for what there is";
    if (path.size() > kLongestKey) return remove;
    size_t best_distance = std::max<size_t>(2, path.size() / 4) + 1;
    for (const NamedField& field : all_fields()) {
        const std::string& name = field.path;
        if (name.substr(name.rfind('.') + 1) == key) return "; it belongs at " + name;
        const size_t distance = edit_distance(path, name);
        if (distance < best_distance) {
            best_distance = distance;
            best = name;
        }
    }
    // A field's own name comes first, then another trainer's name, then a similar spelling.
    for (const auto& [other, name] : kOtherNames)
        if (key == other) return join("; did you mean ", name, "?");
    return best.empty() ? remove : "; did you mean " + best + "?";
}

// The limits are far above any config: it has three levels, and a list of a thousand shards has a tenth of the bytes.
constexpr JsonLimits kConfigLimits = {.takes_comments = true, .advice = "check the JSON there (see configs/tiny.json)"};
constexpr JsonLimits kOverrideLimits = {.advice = "check the value"};

class Reader {
  public:
    Reader(const json& object, std::string path, std::string source)
        : object_(object), path_(std::move(path)), source_(std::move(source)) {
        REQUIRE(object_.is_object(), source_, ": ", path_.empty() ? "the config" : path_, " is ", object_.type_name(),
                ", it must be an object in braces, ",
                path_.empty() ? "with the sections \"model\", \"data\" and \"training\" (see configs/tiny.json)"
                              : "with a value for each key (see configs/tiny.json)");
    }

    template <typename T>
    void required(const char* name, T& value, const Field& field) {
        REQUIRE(object_.contains(name), source_, ": ", path(name), " is missing: add it (see configs/tiny.json)");
        this->field(name, value, field);
    }
    template <typename T>
    void field(const char* name, T& value, const Field& field) {
        known_.insert(name);
        if (!object_.contains(name)) return;
        read(object_.at(name), path(name), value);
        // Range-check only values that the user gave: a size that is not yet filled in is 0, outside its range.
        if constexpr (std::is_same_v<T, int64_t> || std::is_same_v<T, double>)
            check_range(path(name), static_cast<double>(value), field.low, field.high, field.low_is_open);
    }
    template <typename T>
    void derived(const char* name, T& value, const Field& field) {
        if (!is_given(name, field)) return;
        this->field(name, value, field);
        // An empty string stands for a field that is not given, so the user must not give one.
        if constexpr (std::is_same_v<T, std::string>)
            REQUIRE(!value.empty(), source_, ": ", path(name), " is empty: give one, or leave it out");
    }
    template <typename T>
    void derived(const char* name, std::optional<T>& value, const Field& field) {
        if (is_given(name, field)) this->field(name, value.emplace(), field);
    }
    template <typename T>
    void section(const char* name, T& value, bool is_required) {
        known_.insert(name);
        REQUIRE(object_.contains(name) || !is_required, source_, ": the section \"", name,
                "\" is missing: add it (see configs/tiny.json)");
        if (!object_.contains(name)) return;
        Reader reader(object_.at(name), path(name), source_);
        visit_fields(reader, value);
        reader.refuse_unknown();
    }
    void refuse_unknown() const {
        for (const auto& [key, value] : object_.items())
            if (!(path_.empty() && key == "$schema"))  // editors find the schema by it
                REQUIRE(known_.count(key) == 1, source_, ": unknown key ", excerpt(path(key), 100),
                        suggestion(path(key)));
    }
    // Used for an object in a list, whose keys belong to no section.
    void refuse_unknown_in_entry() const {
        for (const auto& [key, value] : object_.items()) {
            if (known_.count(key) == 1) continue;
            const std::string near = nearest_word(key.substr(0, 100), {known_.begin(), known_.end()});
            throw UserError(join(source_, ": unknown key ", excerpt(path(key), 100),
                                 near.empty() ? ": remove it, or see data/README.md for what there is"
                                              : "; did you mean " + near + "?"));
        }
    }

  private:
    std::string path(const std::string& name) const { return path_.empty() ? name : path_ + "." + name; }

    bool is_given(const char* name, const Field& field) {
        known_.insert(name);
        if (!object_.contains(name) || object_.at(name).is_null()) return false;
        return !(field.takes_auto && object_.at(name) == "auto");
    }

    void read(const json& value, const std::string& path, int64_t& out) const {
        REQUIRE(value.is_number_integer(), source_, ": ", path, " is ", shown(value), ", it must be an integer");
        const bool fits = !value.is_number_unsigned() || value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX);
        REQUIRE(fits, source_, ": ", path, " is ", shown(value), ", which is too large: it must be below 2^63");
        out = value.get<int64_t>();
    }
    void read(const json& value, const std::string& path, double& out) const {
        REQUIRE(value.is_number(), source_, ": ", path, " is ", shown(value), ", it must be a number");
        out = value.get<double>();
    }
    void read(const json& value, const std::string& path, bool& out) const {
        REQUIRE(value.is_boolean(), source_, ": ", path, " is ", shown(value), ", it must be true or false");
        out = value.get<bool>();
    }
    void read(const json& value, const std::string& path, std::string& out) const {
        REQUIRE(value.is_string(), source_, ": ", path, " is ", shown(value), ", it must be a string");
        out = value.get<std::string>();
    }
    void read(const json& value, const std::string& path, std::vector<std::string>& out) const {
        REQUIRE(value.is_array(), source_, ": ", path, " is ", shown(value),
                ", it must be a list of strings: [\"data/train-*.bin\"]");
        out.clear();
        for (size_t i = 0; i < value.size(); ++i) {
            out.emplace_back();
            read(value[i], join(path, "[", i, "]"), out.back());
        }
    }
    void read(const json& value, const std::string& path, std::vector<DataEntry>& out) const {
        REQUIRE(value.is_array(), source_, ": ", path, " is ", shown(value),
                ", it must be a list: [\"data/train-*.bin\"], or of {\"path\": ..., \"weight\": ...}");
        out.clear();
        for (size_t i = 0; i < value.size(); ++i) {
            const std::string entry_path = join(path, "[", i, "]");
            DataEntry& entry = out.emplace_back();
            if (value[i].is_string()) {
                entry.path = value[i].get<std::string>();
                continue;
            }
            REQUIRE(value[i].is_object(), source_, ": ", entry_path, " is ", shown(value[i]),
                    ", it must be a string, or an object with \"path\"");
            Reader reader(value[i], entry_path, source_);
            visit_fields(reader, entry);
            reader.refuse_unknown_in_entry();
        }
    }
    template <typename E>
    requires std::is_enum_v<E>
    void read(const json& value, const std::string& path, E& out) const {
        std::string choices;
        for (const auto& [name, choice] : enum_names<E>) {
            if (value == name) {
                out = choice;
                return;
            }
            choices += join(choices.empty() ? "" : ", ", name);
        }
        throw UserError(join(source_, ": ", path, " is ", shown(value), ", it must be one of: ", choices));
    }

    const json& object_;
    std::string path_, source_;
    std::set<std::string> known_;
};

// Puts the value of "section.key=value" into the tree.
void apply_override(json& root, const std::string& text) {
    const std::string source = "--set " + excerpt(text, 100);
    const size_t equals = text.find('=');
    const std::string path = text.substr(0, equals);
    const bool is_path = equals != std::string::npos && !path.empty() && path.front() != '.' && path.back() != '.' &&
                         path.find("..") == std::string::npos && std::count(path.begin(), path.end(), '.') < 3;
    REQUIRE(is_path, source, ": write section.key=value, e.g. optimizer.lr=3e-4");
    const std::string value = text.substr(equals + 1);
    const std::string value_source = "--set " + excerpt(path, 60);
    REQUIRE(is_valid_utf8(path) && is_valid_utf8(value), value_source, ": not UTF-8: give text in that encoding");
    // A value that is not JSON is a bare string, such as data/a.json or cosine. parse_json() checks the depth of JSON.
    json parsed;
    if (json::accept(value))
        parsed = parse_json(value, value_source, kOverrideLimits);
    else
        parsed = value;
    json* object = &root;
    std::istringstream parts(path);
    std::string part, previous;
    while (std::getline(parts, part, '.')) {
        if (!previous.empty()) object = &(*object)[previous];
        REQUIRE(object->is_object() || object->is_null(), source, ": ", previous.empty() ? "the config" : previous,
                " is not a section: write section.key=value, e.g. optimizer.lr=3e-4");
        previous = part;
    }
    (*object)[previous] = parsed;
}

Config fields_of(const json& root, const std::string& source) {
    Config config;
    Reader reader(root, "", source);
    visit_fields(reader, config);
    reader.refuse_unknown();
    if (config.data.eot_token == -1) config.data.eot_token.reset();  // a file may say -1 instead of null
    return config;
}

// Collects the paths of all values that are given. A null is not given.
void collect_paths(const json& value, const std::string& path, std::set<std::string>* paths) {
    if (value.is_object())
        for (const auto& [key, inner] : value.items())
            collect_paths(inner, path.empty() ? key : path + "." + key, paths);
    else if (!value.is_null())
        paths->insert(path);
}

Config fields_of(const std::string& text, const std::string& source, const std::vector<std::string>& overrides) {
    json root = parse_json(text, source, kConfigLimits);
    Reader(root, "", source);  // checks that it is an object, so that overrides can be put into it
    std::set<std::string> chosen;
    if (!is_resolved_config(root)) collect_paths(root, "", &chosen);
    json set = json::object();
    for (const std::string& override_text : overrides) {
        apply_override(root, override_text);
        apply_override(set, override_text);
    }
    collect_paths(set, "", &chosen);
    Config config = fields_of(root, source);
    config.chosen = std::move(chosen);
    return config;
}

Config resolved(Config config, const std::string& source) {
    fill_defaults(&config, source);
    check_rules(config);
    return config;
}

}  // namespace

Config parse_config(const std::string& text, const std::string& source, const std::vector<std::string>& overrides) {
    return resolved(fields_of(text, source, overrides), source);
}

Config config_from_json(const json& value, const std::string& source) {
    return resolved(fields_of(value, source), source);
}

namespace {

// Reads the text of a config. It may come through a pipe, as in --config <(...), which is read until its writer closes
// it.
std::string read_config_text(const std::string& file) {
    const Descriptor input(open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    struct stat info {};
    const bool is_open = input.get() >= 0 && fstat(input.get(), &info) == 0;
    REQUIRE(is_open, "cannot read the config ", file, ": ", std::strerror(errno), ": check the path");
    REQUIRE(!S_ISDIR(info.st_mode), "cannot read the config ", file, ": it is a folder: check the path");
    std::string text;
    const int error = read_to_end(input.get(), kConfigLimits.max_bytes, &text);
    REQUIRE(error != EFBIG, "the config ", file, " has more than ", kConfigLimits.max_bytes, " bytes: check the path");
    REQUIRE(error == 0, "cannot read the config ", file, ": ", std::strerror(error), ": check the path");
    return text;
}

// The name must be valid as a folder's name.
void check_name(const std::string& name) {
    constexpr size_t kLongest = 200;  // file systems allow 255
    const bool is_plain = name.find('/') == std::string::npos && printable_line(name) == name;
    REQUIRE(is_plain && name != "." && name != ".." && name.size() <= kLongest, "name is \"", excerpt(name, 60),
            "\", it must be that of one folder: no slash, no control character, neither . nor .., at most ", kLongest,
            " bytes; set run_dir for a folder elsewhere");
}

void check_path(const char* key, const std::string& path) {
    REQUIRE(path.find('\0') == std::string::npos, key, " has the character NUL: no path can have it, remove it");
}

void check_paths(const Config& config) {
    check_path("run_dir", config.run_dir);
    check_path("data.tokenizer", config.data.tokenizer);
    check_path("model.init_from", config.model.init_from);
    for (const std::vector<DataEntry>* entries : {&config.data.train, &config.data.val})
        for (const DataEntry& entry : *entries) {
            check_path(entries == &config.data.train ? "data.train" : "data.val", entry.path);
            check_path("mask", entry.mask);
        }
}

}  // namespace

Config read_config(const std::string& file, const std::vector<std::string>& overrides) {
    Config config = fields_of(read_config_text(file), file, overrides);
    check_paths(config);
    fill_from_datasets(&config);
    config = resolved(std::move(config), file);
    check_name(config.name);
    return config;
}

bool is_resolved_config(const json& value) {
    if (!value.is_object()) return false;
    for (const char* const section :
         {"model", "data", "training", "optimizer", "schedule", "eval", "sample", "checkpoint", "log"})
        if (!value.contains(section) || !value.at(section).is_object()) return false;
    const json& model = value.at("model");
    return value.value("run_dir", json()).is_string() && model.value("head_dim", json()).is_number() &&
           model.value("d_ff", json()).is_number();
}

}  // namespace ingot
