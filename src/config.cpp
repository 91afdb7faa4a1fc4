#include "src/config.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "kernels/core/check.h"
#include "src/config_fields.h"
#include "src/config_rules.h"
#include "src/dataset_meta.h"
#include "src/text.h"

namespace ingot {

using nlohmann::json;

namespace {

std::string suggestion(const std::string& path) {
    const std::string key = path.substr(path.rfind('.') + 1);
    std::string best;
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
    return best.empty() ? ": remove it, or see configs/schema.json for what there is" : "; did you mean " + best + "?";
}

// A value as an error shows it: a long one is cut.
std::string shown(const json& value) {
    const std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
    constexpr size_t kLongest = 60;
    return text.size() <= kLongest ? text : text.substr(0, kLongest) + "...";
}

class Reader {
  public:
    Reader(const json& object, std::string path, std::string source)
        : object_(object), path_(std::move(path)), source_(std::move(source)) {
        REQUIRE(object_.is_object(), source_, ": ", path_.empty() ? "the config" : path_, " is ", object_.type_name(),
                ", it must be an object in braces");
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
        // Here, where only what is given counts: the marks of what is not there lie outside the ranges.
        if constexpr (std::is_same_v<T, int64_t> || std::is_same_v<T, double>)
            check_range(path(name), static_cast<double>(value), field.low, field.high, field.low_is_open);
    }
    template <typename T>
    void derived(const char* name, T& value, const Field& field) {
        known_.insert(name);
        if (!object_.contains(name) || object_.at(name).is_null()) return;
        if (field.takes_auto && object_.at(name) == "auto") return;
        this->field(name, value, field);
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
            if (!(path_.empty() && key == "$schema"))  // by which editors find the schema
                REQUIRE(known_.count(key) == 1, source_, ": unknown key ", path(key), suggestion(path(key)));
    }
    // For an object in a list, whose keys belong nowhere else.
    void refuse_unknown_in_entry() const {
        for (const auto& [key, value] : object_.items()) {
            if (known_.count(key) == 1) continue;
            const std::string near = nearest_word(key, {known_.begin(), known_.end()});
            throw UserError(join(source_, ": unknown key ", path(key),
                                 near.empty() ? ": remove it, or see data/README.md for what there is"
                                              : "; did you mean " + near + "?"));
        }
    }

  private:
    std::string path(const std::string& name) const { return path_.empty() ? name : path_ + "." + name; }

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
        for (const auto& [name, choice] : EnumNames<E>::values) {
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

// A config has three levels. What is thousands deep would end the stack of whoever walks through it.
void check_depth(int depth, const std::string& source) {
    constexpr int kDeepest = 32;
    REQUIRE(depth <= kDeepest, source, ": brackets are nested more than ", kDeepest,
            " deep: check them, a config has sections and lists alone");
}

json parse_json(const std::string& text, const std::string& source) {
    std::vector<std::set<std::string>> keys;
    std::string repeated;
    const json::parser_callback_t callback = [&](int depth, json::parse_event_t event, json& parsed) {
        check_depth(depth, source);
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
        throw UserError(join(source, ": ", end == std::string::npos ? what : what.substr(end + 2),
                             ": check the JSON there (see configs/tiny.json)"));
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
    const auto callback = [&](int depth, json::parse_event_t, json&) {
        check_depth(depth, "--set " + path);
        return true;
    };
    json parsed = json::parse(value, callback, false);
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
        REQUIRE(object->is_object() || object->is_null(), "--set ", text, ": ", previous,
                " is not a section: write section.key=value, e.g. optimizer.lr=3e-4");
        previous = part;
    }
    (*object)[previous] = parsed;
}

}  // namespace

namespace {

Config fields_of(const std::string& text, const std::string& source, const std::vector<std::string>& overrides) {
    json root = parse_json(text, source);
    for (const std::string& override_text : overrides) apply_override(root, override_text);
    Config config;
    Reader reader(root, "", source);
    visit_fields(reader, config);
    reader.refuse_unknown();
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

Config read_config(const std::string& file, const std::vector<std::string>& overrides) {
    std::ifstream stream(file, std::ios::binary);
    REQUIRE(stream && !std::filesystem::is_directory(file), "cannot read the config ", file, ": check the path");
    std::ostringstream text;
    text << stream.rdbuf();
    Config config = fields_of(text.str(), file, overrides);
    fill_from_datasets(&config);
    return resolved(std::move(config), file);
}

}  // namespace ingot
