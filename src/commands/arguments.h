// The options of a command: one list drives the parser, the help text and the hints for misspelt names.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ingot {

struct OptionSpec {
    std::string name;   // "--config"
    std::string value;  // name of its value in the help, "FILE"; empty for a flag
    std::string help;   // lines end with \n
    bool is_repeatable = false;
};

struct CommandSpec {
    std::string name;  // "eval"; empty for the program itself
    // The parts of the help text, without the newline at their end; `before` and `after` surround the options.
    std::string title, usage, before, after;
    std::vector<OptionSpec> options;

    std::string command() const { return name.empty() ? "./train" : "./train " + name; }
    std::string help() const;
};

// The arguments that were given, checked when they are asked for. Every error is one line and ends with how to get
// help.
class Arguments {
  public:
    // Parses argv for the command that it names; commands[0] is the program itself. Throws UserError for an unknown
    // option (with the closest known name), a missing or empty value, and an option given twice.
    static Arguments parse(const std::vector<CommandSpec>& commands, int argc, char** argv);

    const CommandSpec& command() const { return *command_; }
    bool has(const std::string& name) const { return values_.count(name) == 1; }
    // Returns an empty list if the option was not given.
    std::vector<std::string> texts(const std::string& name) const;
    std::string text(const std::string& name, const std::string& otherwise = "") const;
    std::string raw_text(const std::string& name) const;                                         // may be given as ""
    std::string choice(const std::string& name, const std::vector<std::string>& choices) const;  // default: the first
    int64_t integer(const std::string& name, int64_t otherwise, int64_t low, int64_t high) const;
    // The value must lie in [low, high], or in (low, high] if low_is_open.
    double number(const std::string& name, double otherwise, double low, double high, bool low_is_open = false) const;
    [[noreturn]] void refuse(const std::string& text) const;

  private:
    const CommandSpec* command_ = nullptr;
    std::map<std::string, std::vector<std::string>> values_;
};

}  // namespace ingot
