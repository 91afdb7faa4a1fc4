// The only reader of JSON. A file may come from anybody, so size and depth are bounded before anything is built: a
// value nested a hundred thousand deep would overflow the stack of whatever copies or prints it.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace ingot {

struct JsonLimits {
    size_t max_bytes = size_t{1} << 20;
    int max_depth = 32;           // of nested brackets
    bool takes_comments = false;  // as in C++
    const char* advice;           // what the user can do about an error: "check the JSON there"
};

// Throws UserError naming `source`, line and column for invalid JSON or UTF-8, a number beyond double, a duplicate key
// in an object, and a value that is larger or deeper than the limits.
nlohmann::json parse_json(std::string_view text, const std::string& source, const JsonLimits& limits);

// Does the same for a regular file. Throws UserError also if the file cannot be read.
nlohmann::json read_json_file(const std::string& path, const JsonLimits& limits);

// Returns a value as errors show it: printable, on one line, and short.
std::string shown(const nlohmann::json& value);

// Reads an object's values by name and checks the type and range of each. An error names `source`, the value's path,
// the value, what it must be, and `advice`. The JSON must outlive the reader.
class JsonFields {
  public:
    // `path` is where the object is in the file; "" is the root.
    JsonFields(const nlohmann::json& value, std::string source, std::string path, const char* advice);

    // Returns whether the key exists and is not null.
    bool has(const char* key) const;
    int64_t integer(const char* key, int64_t low, int64_t high) const;
    double number(const char* key, double low, double high) const;
    bool boolean(const char* key) const;
    std::string text(const char* key, size_t max_bytes) const;
    JsonFields object(const char* key) const;
    std::vector<JsonFields> objects(const char* key, size_t max_count) const;
    // Reads a list of strings.
    std::vector<std::string> texts(const char* key, size_t max_count, size_t max_bytes) const;

    // Returns the value as it is. Throws if it is missing.
    const nlohmann::json& at(const char* key) const;
    const nlohmann::json& value() const { return *value_; }
    // Returns "model.vocab" for "vocab".
    std::string path(const std::string& key) const;
    // Throws the error that the value of `key` must be what `expected` says.
    [[noreturn]] void refuse(const std::string& key, const std::string& expected) const;

  private:
    const nlohmann::json* value_;
    std::string source_, path_;
    const char* advice_;
};

}  // namespace ingot
