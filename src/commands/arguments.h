// Options of a command: one list drives the parser, the help text and the hints for misspelt names.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ingot {

struct OptionSpec {
    std::string name;   // "--config"
    std::string value;  // what its value is called, "FILE"; empty: a flag
    std::string help;   // lines end with \n
    bool is_repeatable = false;
};

struct CommandSpec {
    std::string name;                         // "eval"; empty: the program itself
    std::string title, usage, before, after;  // of the help text; `before` and `after` stand round the options
    std::vector<OptionSpec> options;

    std::string command() const { return name.empty() ? "./train" : "./train " + name; }
    std::string help() const;
};

// What was given, checked as it is asked for. Every error is one line that ends with where the help is.
class Arguments {
  public:
    // Parses for whichever command argv names; commands[0] is the program itself. Throws UserError for unknown options
    // (with the nearest known one), values that are missing or empty, and options given twice.
    static Arguments parse(const std::vector<CommandSpec>& commands, int argc, char** argv);

    const CommandSpec& command() const { return *command_; }
    bool has(const std::string& name) const { return values_.count(name) == 1; }
    // Empty if it was not given.
    std::vector<std::string> texts(const std::string& name) const;
    std::string text(const std::string& name, const std::string& otherwise = "") const;
    std::string raw_text(const std::string& name) const;  // which may be given as ""
    std::string choice(const std::string& name, const std::vector<std::string>& choices) const;  // default: the first
    int64_t integer(const std::string& name, int64_t otherwise, int64_t low, int64_t high) const;
    // In [low, high], or (low, high] if low_is_open.
    double number(const std::string& name, double otherwise, double low, double high, bool low_is_open = false) const;
    [[noreturn]] void refuse(const std::string& text) const;

  private:
    const CommandSpec* command_ = nullptr;
    std::map<std::string, std::vector<std::string>> values_;
};

}  // namespace ingot
