#include "src/config.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <tuple>

#include "kernels/core/check.h"

namespace ingot {

using nlohmann::json;
using nlohmann::ordered_json;

namespace {

// ---- Names of enum values ----

template <typename E>
struct EnumNames;
template <>
struct EnumNames<Position> {
    static constexpr std::pair<const char*, Position> values[] = {
        {"alibi", Position::alibi}, {"rope", Position::rope}, {"none", Position::none}};
};
template <>
struct EnumNames<Recompute> {
    static constexpr std::pair<const char*, Recompute> values[] = {
        {"none", Recompute::none}, {"light", Recompute::light}, {"block", Recompute::block}};
};
template <>
struct EnumNames<ScheduleType> {
    static constexpr std::pair<const char*, ScheduleType> values[] = {{"constant", ScheduleType::constant},
                                                                      {"linear", ScheduleType::linear},
                                                                      {"cosine", ScheduleType::cosine},
                                                                      {"wsd", ScheduleType::wsd}};
};
template <>
struct EnumNames<EotSide> {
    static constexpr std::pair<const char*, EotSide> values[] = {
        {"auto", EotSide::automatic}, {"start", EotSide::start}, {"end", EotSide::end}};
};
template <>
struct EnumNames<NonFinite> {
    static constexpr std::pair<const char*, NonFinite> values[] = {{"skip", NonFinite::skip},
                                                                   {"stop", NonFinite::stop}};
};

// ---- The field lists: the only place that knows which keys there are ----
// `field` is a plain value; `derived` has a default that depends on other fields, and null means that default.

template <typename Visitor>
void visit_fields(Visitor& v, ModelConfig& c) {
    v.required("n_layers", c.n_layers);
    v.required("d_model", c.d_model);
    v.required("n_heads", c.n_heads);
    v.derived("n_kv_heads", c.n_kv_heads);
    v.derived("head_dim", c.head_dim);
    v.derived("d_ff", c.d_ff);
    v.required("context_length", c.context_length);
    v.required("vocab_size", c.vocab_size);
    v.field("position", c.position);
    v.field("rope_theta", c.rope_theta);
    v.field("tie_embeddings", c.tie_embeddings);
    v.field("qk_norm", c.qk_norm);
    v.field("norm_eps", c.norm_eps);
    v.field("init_std", c.init_std);
}

template <typename Visitor>
void visit_fields(Visitor& v, DataConfig& c) {
    v.required("train", c.train);
    v.field("val", c.val);
    v.field("mask_documents", c.mask_documents);
    v.derived("eot_token", c.eot_token);
    v.field("eot", c.eot);
    v.field("shuffle", c.shuffle);
    v.derived("tokenizer", c.tokenizer);
}

template <typename Visitor>
void visit_fields(Visitor& v, TrainingConfig& c) {
    v.field("device", c.device);
    v.required("steps", c.steps);
    v.derived("batch_tokens", c.batch_tokens);
    v.derived("micro_batch_size", c.micro_batch_size);
    v.field("recompute", c.recompute);
    v.field("z_loss", c.z_loss);
    v.field("on_nonfinite", c.on_nonfinite);
    v.field("max_skipped_steps", c.max_skipped_steps);
}

template <typename Visitor>
void visit_fields(Visitor& v, OptimizerConfig& c) {
    v.field("lr", c.lr);
    v.field("beta1", c.beta1);
    v.field("beta2", c.beta2);
    v.field("eps", c.eps);
    v.field("weight_decay", c.weight_decay);
    v.field("grad_clip", c.grad_clip);
}

template <typename Visitor>
void visit_fields(Visitor& v, ScheduleConfig& c) {
    v.field("type", c.type);
    v.derived("warmup_steps", c.warmup_steps);
    v.field("final_lr_fraction", c.final_lr_fraction);
    v.derived("decay_steps", c.decay_steps);
}

template <typename Visitor>
void visit_fields(Visitor& v, EvalConfig& c) {
    v.field("every", c.every);
    v.field("tokens", c.tokens);
}

template <typename Visitor>
void visit_fields(Visitor& v, SampleConfig& c) {
    v.field("every", c.every);
    v.field("prompts", c.prompts);
    v.field("tokens", c.tokens);
    v.field("temperature", c.temperature);
}

template <typename Visitor>
void visit_fields(Visitor& v, CheckpointConfig& c) {
    v.field("every", c.every);
    v.field("keep", c.keep);
}

template <typename Visitor>
void visit_fields(Visitor& v, LogConfig& c) {
    v.field("every", c.every);
}

template <typename Visitor>
void visit_fields(Visitor& v, Config& c) {
    v.derived("name", c.name);
    v.derived("run_dir", c.run_dir);
    v.field("seed", c.seed);
    v.section("model", c.model, true);
    v.section("data", c.data, true);
    v.section("training", c.training, true);
    v.section("optimizer", c.optimizer, false);
    v.section("schedule", c.schedule, false);
    v.section("eval", c.eval, false);
    v.section("sample", c.sample, false);
    v.section("checkpoint", c.checkpoint, false);
    v.section("log", c.log, false);
}

// ---- Reading ----

// How many single-character edits lie between two words (Levenshtein 1966).
size_t edit_distance(const std::string& a, const std::string& b) {
    std::vector<size_t> row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= a.size(); ++i) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b.size(); ++j) {
            const size_t previous = row[j];
            row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
            diagonal = previous;
        }
    }
    return row[b.size()];
}

// Collects "section.key" of all fields, to say where a misplaced key belongs.
struct NameCollector {
    std::string prefix;
    std::vector<std::string> names;
    template <typename T>
    void required(const char* name, T&) {
        names.push_back(prefix + name);
    }
    template <typename T>
    void field(const char* name, T&) {
        names.push_back(prefix + name);
    }
    template <typename T>
    void derived(const char* name, T&) {
        names.push_back(prefix + name);
    }
    template <typename T>
    void section(const char* name, T& value, bool) {
        names.push_back(prefix + name);
        const std::string outer = prefix;
        prefix += std::string(name) + ".";
        visit_fields(*this, value);
        prefix = outer;
    }
};

std::vector<std::string> all_names() {
    NameCollector collector;
    Config config;
    visit_fields(collector, config);
    return collector.names;
}

std::string suggestion(const std::string& path) {
    const std::string key = path.substr(path.rfind('.') + 1);
    std::string best;
    size_t best_distance = std::max<size_t>(2, path.size() / 4) + 1;
    for (const std::string& name : all_names()) {
        if (name.substr(name.rfind('.') + 1) == key) return "; it belongs at " + name;
        const size_t distance = edit_distance(path, name);
        if (distance < best_distance) {
            best_distance = distance;
            best = name;
        }
    }
    return best.empty() ? "" : "; did you mean " + best + "?";
}

class Reader {
  public:
    Reader(const json& object, std::string path, std::string source)
        : object_(object), path_(std::move(path)), source_(std::move(source)) {
        REQUIRE(object_.is_object(), source_, ": ", path_.empty() ? "the config" : path_, " is ", object_.type_name(),
                ", it must be an object in braces");
    }

    template <typename T>
    void required(const char* name, T& value) {
        REQUIRE(object_.contains(name), source_, ": ", path(name), " is missing: add it (see configs/tiny.json)");
        field(name, value);
    }
    template <typename T>
    void field(const char* name, T& value) {
        known_.insert(name);
        if (object_.contains(name)) read(object_.at(name), path(name), value);
    }
    template <typename T>
    void derived(const char* name, T& value) {
        known_.insert(name);
        if (!object_.contains(name) || object_.at(name).is_null()) return;
        if (object_.at(name) == "auto" && std::string(name) == "micro_batch_size") return;
        const T unset = value;
        read(object_.at(name), path(name), value);
        // Written out, the mark of "not given" is a mistake, except for eot_token, where -1 means none either way.
        if constexpr (std::is_same_v<T, int64_t>)
            REQUIRE(value != unset || std::string(name) == "eot_token", source_, ": ", path(name), " is ", value,
                    ", it must lie in [", unset + 1, ", ...]: use null for the default");
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
            REQUIRE(known_.count(key) == 1, source_, ": unknown key ", path(key), suggestion(path(key)));
    }

  private:
    std::string path(const std::string& name) const { return path_.empty() ? name : path_ + "." + name; }

    void read(const json& value, const std::string& path, int64_t& out) const {
        REQUIRE(value.is_number_integer(), source_, ": ", path, " is ", value.dump(), ", it must be an integer");
        const bool fits = !value.is_number_unsigned() || value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX);
        REQUIRE(fits, source_, ": ", path, " is ", value.dump(), ", which is too large");
        out = value.get<int64_t>();
    }
    void read(const json& value, const std::string& path, double& out) const {
        REQUIRE(value.is_number(), source_, ": ", path, " is ", value.dump(), ", it must be a number");
        out = value.get<double>();
    }
    void read(const json& value, const std::string& path, bool& out) const {
        REQUIRE(value.is_boolean(), source_, ": ", path, " is ", value.dump(), ", it must be true or false");
        out = value.get<bool>();
    }
    void read(const json& value, const std::string& path, std::string& out) const {
        REQUIRE(value.is_string(), source_, ": ", path, " is ", value.dump(), ", it must be a string");
        out = value.get<std::string>();
    }
    void read(const json& value, const std::string& path, std::vector<std::string>& out) const {
        REQUIRE(value.is_array(), source_, ": ", path, " is ", value.dump(), ", it must be a list of strings");
        out.clear();
        for (size_t i = 0; i < value.size(); ++i) {
            out.emplace_back();
            read(value[i], join(path, "[", i, "]"), out.back());
        }
    }
    template <typename E>
    requires std::is_enum_v<E>
    void read(const json& value, const std::string& path, E& out) const {
        std::string choices;
        for (const auto& [name, choice] : EnumNames<E>::values) {
            if (value == name) {
                out = choice;
                return;
            }
            choices += join(choices.empty() ? "" : ", ", name);
        }
        throw UserError(join(source_, ": ", path, " is ", value.dump(), ", it must be one of: ", choices));
    }

    const json& object_;
    std::string path_, source_;
    std::set<std::string> known_;
};

// ---- Writing ----

class Writer {
  public:
    ordered_json object = ordered_json::object();
    template <typename T>
    void required(const char* name, T& value) {
        write(name, value);
    }
    template <typename T>
    void field(const char* name, T& value) {
        write(name, value);
    }
    template <typename T>
    void derived(const char* name, T& value) {
        write(name, value);
    }
    template <typename T>
    void section(const char* name, T& value, bool) {
        Writer writer;
        visit_fields(writer, value);
        object[name] = writer.object;
    }

  private:
    template <typename T>
    void write(const std::string& name, const T& value) {
        if constexpr (std::is_enum_v<T>) {
            for (const auto& [text, choice] : EnumNames<T>::values)
                if (choice == value) object[name] = text;
        } else {
            object[name] = value;
        }
        // What is not there is null in the file, as it is read.
        if ((name == "eot_token" && object[name] == -1) || (name == "tokenizer" && object[name] == ""))
            object[name] = nullptr;
    }
};

// ---- Defaults and rules ----

// Run twice: defaults are products of other fields, which must lie within their bounds before. 0 and -1 mark what is
// not there yet.
void check_integers(const Config& c, bool has_defaults) {
    const ModelConfig& m = c.model;
    // Bounds far above any model that fits a machine: they keep products of sizes inside 64 bits.
    const std::tuple<const char*, int64_t, int64_t, int64_t> integers[] = {
        {"model.n_layers", m.n_layers, 1, 1000},
        {"model.d_model", m.d_model, 1, 1 << 17},
        {"model.n_heads", m.n_heads, 1, 1024},
        {"model.n_kv_heads", m.n_kv_heads, 1, 1024},
        {"model.head_dim", m.head_dim, 2, 256},
        {"model.d_ff", m.d_ff, 1, 1 << 19},
        {"model.context_length", m.context_length, 1, 1 << 24},
        {"model.vocab_size", m.vocab_size, 2, 1 << 24},
        {"training.steps", c.training.steps, 1, int64_t{1} << 40},
        {"training.batch_tokens", c.training.batch_tokens, 1, int64_t{1} << 31},
        {"training.micro_batch_size", c.training.micro_batch_size, 1, 1 << 20},
        {"training.max_skipped_steps", c.training.max_skipped_steps, 0, 1 << 30},
        {"schedule.warmup_steps", c.schedule.warmup_steps, 0, int64_t{1} << 40},
        {"schedule.decay_steps", c.schedule.decay_steps, 0, int64_t{1} << 40},
        {"eval.every", c.eval.every, 0, int64_t{1} << 40},
        {"eval.tokens", c.eval.tokens, 1, int64_t{1} << 40},
        {"sample.every", c.sample.every, 0, int64_t{1} << 40},
        {"sample.tokens", c.sample.tokens, 1, 1 << 20},
        {"checkpoint.every", c.checkpoint.every, 1, int64_t{1} << 40},
        {"checkpoint.keep", c.checkpoint.keep, 1, 1 << 20},
        {"log.every", c.log.every, 1, int64_t{1} << 40},
        {"data.eot_token", c.data.eot_token, -1, std::max<int64_t>(m.vocab_size, 1) - 1},
        {"seed", c.seed, 0, INT64_MAX}};
    for (const auto& [path, value, low, high] : integers)
        REQUIRE((low <= value && value <= high) || (!has_defaults && (value == 0 || value == -1)), path, " is ", value,
                ", it must lie in [", low, ", ", high, "]");
}

void fill_defaults(Config& c, const std::string& source) {
    if (c.name.empty()) c.name = std::filesystem::path(source).stem().string();
    if (c.run_dir.empty()) c.run_dir = "runs/" + c.name;
    ModelConfig& m = c.model;
    if (m.n_kv_heads == 0) m.n_kv_heads = m.n_heads;
    if (m.d_ff == 0) m.d_ff = (m.d_model * 8 / 3 + 63) / 64 * 64;
    if (m.head_dim == 0 && m.n_heads > 0) {
        REQUIRE(m.d_model % m.n_heads == 0, "model.d_model ", m.d_model, " is not divisible by model.n_heads ",
                m.n_heads, ": try ", std::max<int64_t>(1, m.d_model / m.n_heads) * m.n_heads,
                ", or set model.head_dim");
        m.head_dim = m.d_model / m.n_heads;
    }
    TrainingConfig& t = c.training;
    if (t.batch_tokens == 0) t.batch_tokens = 32 * m.context_length;
    if (t.micro_batch_size == 0 && m.context_length > 0) {
        // The largest of 8, 4, 2, 1 rows that divides the step: on the CPU more rows gain nothing.
        t.micro_batch_size = 8;
        while (t.micro_batch_size > 1 && t.batch_tokens % (t.micro_batch_size * m.context_length) != 0)
            t.micro_batch_size /= 2;
    }
    if (c.schedule.warmup_steps == -1) c.schedule.warmup_steps = std::min<int64_t>(t.steps / 20, 700);
    if (c.schedule.decay_steps == -1) c.schedule.decay_steps = t.steps / 5;
}

void check_range(const char* path, double value, double low, double high, bool low_is_open = false) {
    const bool fits = (low_is_open ? value > low : value >= low) && value <= high;
    REQUIRE(fits, path, " is ", value, ", it must lie in ", low_is_open ? "(" : "[", low, ", ", high, "]");
}

void check_rules(const Config& c) {
    const ModelConfig& m = c.model;
    check_range("model.rope_theta", m.rope_theta, 1, 1e12);
    check_range("model.norm_eps", m.norm_eps, 0, 0.1, true);
    check_range("model.init_std", m.init_std, 0, 10, true);
    check_range("training.z_loss", c.training.z_loss, 0, 1);
    check_range("optimizer.lr", c.optimizer.lr, 0, 10);
    check_range("optimizer.beta1", c.optimizer.beta1, 0, 0.99999);
    check_range("optimizer.beta2", c.optimizer.beta2, 0, 0.9999999);
    check_range("optimizer.eps", c.optimizer.eps, 0, 1, true);
    check_range("optimizer.weight_decay", c.optimizer.weight_decay, 0, 100);
    check_range("optimizer.grad_clip", c.optimizer.grad_clip, 0, 1e6);
    check_range("schedule.final_lr_fraction", c.schedule.final_lr_fraction, 0, 1);
    check_range("sample.temperature", c.sample.temperature, 0, 100);
    REQUIRE(m.n_heads % m.n_kv_heads == 0, "model.n_heads ", m.n_heads, " is not divisible by model.n_kv_heads ",
            m.n_kv_heads, ": each key/value head serves the same number of query heads; try n_kv_heads ",
            m.n_heads % 2 == 0 ? m.n_heads / 2 : 1);
    REQUIRE(m.head_dim % 2 == 0, "model.head_dim ", m.head_dim, " is odd: use an even one up to 256");
    const int64_t micro_batch_tokens = c.training.micro_batch_size * m.context_length;
    REQUIRE(micro_batch_tokens < (int64_t{1} << 31), "training.micro_batch_size ", c.training.micro_batch_size,
            " x model.context_length ", m.context_length, " is more than 2^31 tokens: use a smaller micro-batch");
    REQUIRE(c.training.batch_tokens % micro_batch_tokens == 0, "training.batch_tokens ", c.training.batch_tokens,
            " is not a multiple of training.micro_batch_size ", c.training.micro_batch_size, " x model.context_length ",
            m.context_length, ": try ",
            std::max<int64_t>(1, c.training.batch_tokens / micro_batch_tokens) * micro_batch_tokens);
    REQUIRE(!c.data.train.empty(), "data.train is empty: name at least one shard or glob");
    REQUIRE(c.schedule.warmup_steps <= c.training.steps, "schedule.warmup_steps ", c.schedule.warmup_steps,
            " is more than training.steps ", c.training.steps, ": use at most ", c.training.steps);
    REQUIRE(
        c.schedule.type != ScheduleType::wsd || c.schedule.warmup_steps + c.schedule.decay_steps <= c.training.steps,
        "schedule.warmup_steps + schedule.decay_steps is more than training.steps ", c.training.steps);
    REQUIRE(c.training.device == "auto" || c.training.device == "cpu", "training.device is \"", c.training.device,
            "\", it must be \"auto\" or \"cpu\" (this version trains on the CPU)");
    REQUIRE(c.data.tokenizer.empty() || c.data.tokenizer == "bytes", "data.tokenizer is \"", c.data.tokenizer,
            "\", it must be \"bytes\" or null");
    REQUIRE(c.data.tokenizer != "bytes" || m.vocab_size >= 256, "model.vocab_size ", m.vocab_size,
            " is too small for data.tokenizer \"bytes\": use 257");
    REQUIRE(
        c.sample.every == 0 || (!c.data.tokenizer.empty() && !c.sample.prompts.empty()),
        "sample.every is set, but there is no data.tokenizer or no sample.prompts: add them, or set sample.every to 0");
    for (const std::string& prompt : c.sample.prompts)
        REQUIRE(static_cast<int64_t>(prompt.size()) + c.sample.tokens <= m.context_length, "a sample of ",
                prompt.size(), " prompt bytes and ", c.sample.tokens, " tokens does not fit model.context_length ",
                m.context_length, ": use sample.tokens of at most ",
                m.context_length - static_cast<int64_t>(prompt.size()));
}

json parse_json(const std::string& text, const std::string& source) {
    std::vector<std::set<std::string>> keys;
    std::string repeated;
    const json::parser_callback_t callback = [&](int, json::parse_event_t event, json& parsed) {
        if (event == json::parse_event_t::object_start) keys.emplace_back();
        if (event == json::parse_event_t::object_end) keys.pop_back();
        if (event == json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second)
            repeated = parsed.get<std::string>();
        return true;
    };
    json result;
    try {
        result = json::parse(text, callback, true, true);
    } catch (const json::exception& error) {
        // The library's text names line and column after its own prefix in brackets.
        const std::string what = error.what();
        const size_t end = what.find("] ");
        throw UserError(join(source, ": ", end == std::string::npos ? what : what.substr(end + 2)));
    }
    REQUIRE(repeated.empty(), source, ": the key \"", repeated, "\" is given twice: keep one of them");
    return result;
}

void apply_override(json& root, const std::string& text) {
    const size_t equals = text.find('=');
    const bool is_path = equals != std::string::npos && equals > 0 && text[0] != '.' && text[equals - 1] != '.' &&
                         text.find("..") >= equals;
    REQUIRE(is_path, "--set ", text, ": write section.key=value, e.g. optimizer.lr=3e-4");
    const std::string path = text.substr(0, equals), value = text.substr(equals + 1);
    json parsed = json::parse(value, nullptr, false);
    if (parsed.is_discarded()) parsed = value;  // a bare string
    // dump() refuses invalid UTF-8, and every error message and the resolved config need it.
    const auto is_utf8 = [](const json& tree) {
        try {
            return !tree.dump().empty();
        } catch (const json::exception&) {
            return false;
        }
    };
    REQUIRE(is_utf8(parsed) && is_utf8(path), "--set ", path, ": not UTF-8: give text in that encoding");
    json* object = &root;
    std::istringstream parts(path);
    std::string part, previous;
    while (std::getline(parts, part, '.')) {
        if (!previous.empty()) object = &(*object)[previous];
        REQUIRE(object->is_object() || object->is_null(), "--set ", text, ": ", previous, " is not a section");
        previous = part;
    }
    (*object)[previous] = parsed;
}

}  // namespace

Config parse_config(const std::string& text, const std::string& source, const std::vector<std::string>& overrides) {
    json root = parse_json(text, source);
    for (const std::string& override_text : overrides) apply_override(root, override_text);
    Config config;
    config.schedule.warmup_steps = config.schedule.decay_steps = -1;
    Reader reader(root, "", source);
    visit_fields(reader, config);
    reader.refuse_unknown();
    check_integers(config, false);
    fill_defaults(config, source);
    check_integers(config, true);
    check_rules(config);
    return config;
}

Config read_config(const std::string& file, const std::vector<std::string>& overrides) {
    std::ifstream stream(file, std::ios::binary);
    REQUIRE(stream && !std::filesystem::is_directory(file), "cannot read the config ", file, ": check the path");
    std::ostringstream text;
    text << stream.rdbuf();
    return parse_config(text.str(), file, overrides);
}

ordered_json config_to_json(const Config& config) {
    Writer writer;
    Config copy = config;
    visit_fields(writer, copy);
    return writer.object;
}

}  // namespace ingot
