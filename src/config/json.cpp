// Writes the config as JSON and its schema, and compares two configs.
#include <limits>
#include <map>

#include "src/config/fields.h"

namespace ingot {

using nlohmann::ordered_json;

namespace {

template <typename E>
requires std::is_enum_v<E> ordered_json value_json(const E& value) {
    return name_of_choice(value);
}
template <typename T>
requires(!std::is_enum_v<T>) ordered_json value_json(const T& value) {
    return value;
}
// Writes entries as a user would: fields that are not given are left out.
ordered_json value_json(const std::vector<DataEntry>& entries) {
    ordered_json list = ordered_json::array();
    for (const DataEntry& entry : entries) {
        DataEntry bare;
        bare.path = entry.path;
        if (entry == bare) {
            list.push_back(entry.path);
            continue;
        }
        ordered_json object = {{"path", entry.path}};
        if (entry.weight) object["weight"] = *entry.weight;
        if (entry.format != DataFormat::automatic) object["format"] = value_json(entry.format);
        if (entry.dtype != RawType::automatic) object["dtype"] = value_json(entry.dtype);
        if (!entry.mask.empty()) object["mask"] = entry.mask;
        list.push_back(object);
    }
    return list;
}

struct Writer {
    ordered_json object = ordered_json::object();
    template <typename T>
    void required(const char* name, const T& value, const Field&) {
        object[name] = value_json(value);
    }
    template <typename T>
    void field(const char* name, const T& value, const Field&) {
        object[name] = value_json(value);
    }
    template <typename T>
    void derived(const char* name, const T& value, const Field&) {
        object[name] = value_json(value);
        if constexpr (std::is_same_v<T, std::string>)
            if (value.empty()) object[name] = nullptr;
    }
    template <typename T>
    void derived(const char* name, const std::optional<T>& value, const Field&) {
        object[name] = value ? ordered_json(*value) : ordered_json(nullptr);
    }
    template <typename T>
    void section(const char* name, T& value, bool) {
        Writer writer;
        visit_fields(writer, value);
        object[name] = writer.object;
    }
};

// ---- The schema ----

const char* type_of(int64_t) {
    return "integer";
}
const char* type_of(double) {
    return "number";
}
const char* type_of(bool) {
    return "boolean";
}
const char* type_of(const std::string&) {
    return "string";
}

ordered_json entry_schema();

template <typename T>
ordered_json schema_of(const T& value, const Field& field) {
    ordered_json schema;
    schema["description"] = field.help;
    if constexpr (std::is_enum_v<T>) {
        for (const auto& entry : enum_names<T>) schema["enum"].push_back(entry.first);
    } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
        schema["type"] = "array";
        schema["items"] = {{"type", "string"}};
    } else if constexpr (std::is_same_v<T, std::vector<DataEntry>>) {
        schema["type"] = "array";
        schema["items"]["anyOf"] = {ordered_json{{"type", "string"}}, entry_schema()};
    } else {
        schema["type"] = type_of(value);
    }
    if constexpr (std::is_same_v<T, int64_t> || std::is_same_v<T, double>) {
        const auto bound = [](double number) {
            // 2^63 does not fit an integer; the next lower one does.
            if constexpr (std::is_same_v<T, int64_t>)
                return ordered_json(number >= 0x1p63 ? std::numeric_limits<int64_t>::max()
                                                     : static_cast<int64_t>(number));
            else
                return ordered_json(number);
        };
        schema[field.low_is_open ? "exclusiveMinimum" : "minimum"] = bound(field.low);
        schema["maximum"] = bound(field.high);
    }
    return schema;
}

struct SchemaWriter {
    ordered_json properties = ordered_json::object(), required_names = ordered_json::array();
    template <typename T>
    void required(const char* name, const T& value, const Field& field) {
        properties[name] = schema_of(value, field);
        required_names.push_back(name);
    }
    template <typename T>
    void field(const char* name, const T& value, const Field& field) {
        properties[name] = schema_of(value, field);
        properties[name]["default"] = value_json(value);
    }
    template <typename T>
    void derived(const char* name, const T& value, const Field& field) {
        ordered_json schema = schema_of(value, field);
        ordered_json types = ordered_json::array();
        types.push_back(schema["type"]);
        types.push_back("null");
        schema["type"] = types;
        if (field.takes_auto) {
            // Bounds apply only to numbers, so they may stay beside the string.
            schema["type"].push_back("string");
            schema["pattern"] = "^auto$";
        }
        schema["default"] = nullptr;
        properties[name] = schema;
    }
    template <typename T>
    void derived(const char* name, const std::optional<T>&, const Field& field) {
        derived(name, T{}, field);
    }
    template <typename T>
    void section(const char* name, T& value, bool is_required) {
        SchemaWriter inner;
        visit_fields(inner, value);
        properties[name] = inner.finish();
        if (is_required) required_names.push_back(name);
    }
    ordered_json finish() const {
        ordered_json schema;
        schema["type"] = "object";
        schema["additionalProperties"] = false;
        if (!required_names.empty()) schema["required"] = required_names;
        schema["properties"] = properties;
        return schema;
    }
};

ordered_json entry_schema() {
    SchemaWriter writer;
    DataEntry entry;
    visit_fields(writer, entry);
    return writer.finish();
}

// ---- Changes ----

struct FieldCollector {
    std::string prefix;
    std::vector<NamedField> fields;
    template <typename T>
    void required(const char* name, const T&, const Field& field) {
        fields.push_back({prefix + name, field.on_resume, false});
    }
    template <typename T>
    void field(const char* name, const T&, const Field& field) {
        fields.push_back({prefix + name, field.on_resume, false});
    }
    template <typename T>
    void derived(const char* name, const T&, const Field& field) {
        fields.push_back({prefix + name, field.on_resume, false});
    }
    template <typename T>
    void section(const char* name, T& value, bool) {
        fields.push_back({prefix + name, OnResume::free, true});
        const std::string outer = prefix;
        prefix += std::string(name) + ".";
        visit_fields(*this, value);
        prefix = outer;
    }
};

// Collects all fields as "section.key". A list is one value.
void flatten(const ordered_json& object, const std::string& prefix, std::map<std::string, ordered_json>* out) {
    for (const auto& [key, value] : object.items()) {
        if (value.is_object())
            flatten(value, prefix + key + ".", out);
        else
            (*out)[prefix + key] = value;
    }
}

}  // namespace

std::vector<NamedField> all_fields() {
    FieldCollector collector;
    Config config;
    visit_fields(collector, config);
    return collector.fields;
}

ordered_json config_to_json(const Config& config) {
    Writer writer;
    Config copy = config;  // visit_fields() takes a mutable reference, for visitors that write
    visit_fields(writer, copy);
    return writer.object;
}

ordered_json config_schema() {
    SchemaWriter writer;
    Config defaults;
    visit_fields(writer, defaults);
    ordered_json schema = {{"$schema", "http://json-schema.org/draft-07/schema#"},
                           {"title", "Ingot's configuration of a training run"}};
    schema.update(writer.finish());
    schema["properties"]["$schema"] = {{"description", "Where editors find this schema"}, {"type", "string"}};
    return schema;
}

std::vector<ConfigChange> config_changes(const ordered_json& then, const Config& now) {
    std::map<std::string, ordered_json> fields_then, fields_now;
    flatten(then, "", &fields_then);
    flatten(config_to_json(now), "", &fields_now);
    std::vector<ConfigChange> changes;
    for (const NamedField& field : all_fields()) {
        if (field.is_section) continue;
        const ordered_json &before = fields_then[field.path], &after = fields_now[field.path];
        if (before != after) changes.push_back({field.path, before.dump(), after.dump(), field.on_resume});
    }
    return changes;
}

}  // namespace ingot
