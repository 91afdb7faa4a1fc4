#include "src/base/json_text.h"

#include <algorithm>
#include <iterator>

#include "kernels/core/check.h"
#include "src/base/files.h"
#include "src/base/text.h"

namespace ingot {

using nlohmann::json;

namespace {

// An input iterator that knows how far the parser has read, so that an error can name its place.
struct Cursor {
    using iterator_category = std::input_iterator_tag;
    using value_type = char;
    using difference_type = std::ptrdiff_t;
    using pointer = const char*;
    using reference = const char&;

    const char* at;
    const char** furthest;
    reference operator*() const { return *at; }
    Cursor& operator++() {
        *furthest = ++at;
        return *this;
    }
    Cursor operator++(int) {
        const Cursor before = *this;
        ++*this;
        return before;
    }
    bool operator==(const Cursor& other) const { return at == other.at; }
    bool operator!=(const Cursor& other) const { return at != other.at; }
};

// Builds the value from the parser's events. The parser itself does not recurse, so that refusing an event is enough
// to bound the depth.
class Builder : public nlohmann::json_sax<json> {
  public:
    explicit Builder(int max_depth) : max_depth_(static_cast<size_t>(max_depth)) {}

    bool null() override { return add(nullptr) != nullptr; }
    bool boolean(bool value) override { return add(value) != nullptr; }
    bool number_integer(number_integer_t value) override { return add(value) != nullptr; }
    bool number_unsigned(number_unsigned_t value) override { return add(value) != nullptr; }
    bool number_float(number_float_t value, const string_t&) override { return add(value) != nullptr; }
    bool string(string_t& value) override { return add(std::move(value)) != nullptr; }
    bool binary(binary_t&) override { return false; }  // JSON text has no binary values
    bool start_object(std::size_t) override { return open(json::object()); }
    bool start_array(std::size_t) override { return open(json::array()); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }
    bool key(string_t& key) override {
        const auto [slot, is_new] = open_.back()->get_ref<json::object_t&>().try_emplace(key);
        slot_ = &slot->second;
        if (!is_new) fault = join("the key \"", excerpt(key, 60), "\" is given twice: keep one of them");
        return is_new;
    }
    bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) override {
        // The library's message has the line and column after a prefix in brackets.
        const std::string what = error.what();
        const size_t end = what.find("] ");
        fault = excerpt(end == std::string::npos ? what : what.substr(end + 2), 200);
        return false;
    }

    json root;
    std::string fault;  // empty if there is none

  private:
    json* add(json&& value) {
        if (open_.empty()) {
            root = std::move(value);
            return &root;
        }
        if (open_.back()->is_array()) {
            open_.back()->push_back(std::move(value));
            return &open_.back()->back();
        }
        *slot_ = std::move(value);
        return slot_;
    }
    bool open(json&& empty) {
        if (open_.size() == max_depth_) {
            fault = join("brackets are nested more than ", max_depth_, " deep");
            return false;
        }
        open_.push_back(add(std::move(empty)));
        return true;
    }
    bool close() {
        open_.pop_back();
        return true;
    }

    const size_t max_depth_;
    std::vector<json*> open_;  // the containers that are not closed yet
    json* slot_ = nullptr;     // where the value of the last key goes
};

std::string range_text(const std::string& low, const std::string& high) {
    return join(" in [", low, ", ", high, "]");
}

}  // namespace

json parse_json(std::string_view text, const std::string& source, const JsonLimits& limits) {
    REQUIRE(text.size() <= limits.max_bytes, source, " has ", text.size(), " bytes, at most ", limits.max_bytes,
            " are read: ", limits.advice);
    const char *const begin = text.data(), *const end = begin + text.size();
    const char* furthest = begin;
    Builder builder(limits.max_depth);
    const bool is_read = json::sax_parse(Cursor{begin, &furthest}, Cursor{end, &furthest}, &builder,
                                         json::input_format_t::json, true, limits.takes_comments);
    if (is_read) return std::move(builder.root);
    std::string place;
    if (builder.fault.rfind("parse error at line", 0) != 0) {  // the library did not name the place
        const auto line = std::count(begin, furthest, '\n') + 1;
        const auto line_begin =
            std::find(std::make_reverse_iterator(furthest), std::make_reverse_iterator(begin), '\n');
        place = join("line ", line, ", column ", furthest - line_begin.base(), ": ");
    }
    throw UserError(join(source, ": ", place, builder.fault, ": ", limits.advice));
}

json read_json_file(const std::string& path, const JsonLimits& limits) {
    return parse_json(read_file(path, limits.max_bytes), path, limits);
}

std::string shown(const json& value) {
    // A large value is cut to a few bytes anyway, so it is not written out first.
    if (value.is_structured() && value.size() > 1000)
        return join(value.is_array() ? "a list of " : "an object of ", value.size(), " entries");
    return excerpt(value.dump(-1, ' ', false, json::error_handler_t::replace), 60);
}

JsonFields::JsonFields(const json& value, std::string source, std::string path, const char* advice)
    : value_(&value), source_(std::move(source)), path_(std::move(path)), advice_(advice) {
    REQUIRE(value_->is_object(), source_, ": ", path_.empty() ? "all of it" : path_, " is ", shown(*value_),
            ", it must be an object: ", advice_);
}

std::string JsonFields::path(const std::string& key) const {
    return path_.empty() ? key : path_ + "." + key;
}

void JsonFields::refuse(const std::string& key, const std::string& expected) const {
    const auto found = value_->find(key);
    throw UserError(join(source_, ": ", excerpt(path(key), 100),
                         found == value_->end() ? " is missing" : " is " + shown(*found), ", it must be ", expected,
                         ": ", advice_));
}

bool JsonFields::has(const char* key) const {
    const auto found = value_->find(key);
    return found != value_->end() && !found->is_null();
}

const json& JsonFields::at(const char* key) const {
    const auto found = value_->find(key);
    if (found == value_->end()) refuse(key, "there");
    return *found;
}

int64_t JsonFields::integer(const char* key, int64_t low, int64_t high) const {
    const auto found = value_->find(key);
    const bool is_integer =
        found != value_->end() && found->is_number_integer() &&
        (!found->is_number_unsigned() || found->get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX));
    if (!is_integer || found->get<int64_t>() < low || found->get<int64_t>() > high)
        refuse(key, "an integer" + range_text(std::to_string(low), std::to_string(high)));
    return found->get<int64_t>();
}

double JsonFields::number(const char* key, double low, double high) const {
    const auto found = value_->find(key);
    const double value = found != value_->end() && found->is_number() ? found->get<double>() : low - 1;
    if (!(value >= low && value <= high)) refuse(key, "a number" + range_text(join(low), join(high)));
    return value;
}

bool JsonFields::boolean(const char* key) const {
    if (!at(key).is_boolean()) refuse(key, "true or false");
    return at(key).get<bool>();
}

std::string JsonFields::text(const char* key, size_t max_bytes) const {
    const json& value = at(key);
    if (!value.is_string() || value.get_ref<const std::string&>().size() > max_bytes)
        refuse(key, join("a text of at most ", max_bytes, " bytes"));
    return value.get<std::string>();
}

JsonFields JsonFields::object(const char* key) const {
    return {at(key), source_, path(key), advice_};
}

std::vector<JsonFields> JsonFields::objects(const char* key, size_t max_count) const {
    const json& list = at(key);
    if (!list.is_array() || list.size() > max_count) refuse(key, join("a list of at most ", max_count, " objects"));
    std::vector<JsonFields> result;
    for (size_t i = 0; i < list.size(); ++i)
        result.emplace_back(list[i], source_, join(path(key), "[", i, "]"), advice_);
    return result;
}

std::vector<std::string> JsonFields::texts(const char* key, size_t max_count, size_t max_bytes) const {
    const json& list = at(key);
    const auto is_text = [&](const json& entry) {
        return entry.is_string() && entry.get_ref<const std::string&>().size() <= max_bytes;
    };
    if (!list.is_array() || list.size() > max_count || !std::all_of(list.begin(), list.end(), is_text))
        refuse(key, join("a list of at most ", max_count, " texts of at most ", max_bytes, " bytes"));
    return list.get<std::vector<std::string>>();
}

}  // namespace ingot
