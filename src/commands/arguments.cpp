#include "src/commands/arguments.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>

#include "kernels/core/check.h"
#include "src/base/text.h"

namespace ingot {

namespace {

const OptionSpec kHelp = {"--help", "", "this text\n"};
const OptionSpec kVersion = {"--version", "", "the version\n"};

std::vector<OptionSpec> all_options(const CommandSpec& command) {
    std::vector<OptionSpec> options = command.options;
    options.push_back(kHelp);
    options.push_back(kVersion);
    return options;
}

// Throws the error for the first unknown argument, with the name that was probably meant.
[[noreturn]] void refuse_unknown(const std::vector<CommandSpec>& commands, const CommandSpec& command,
                                 const std::string& argument) {
    std::string hint;
    if (argument.rfind('-', 0) == 0) {
        const std::string name = argument.substr(0, argument.find('='));
        std::vector<std::string> names;
        for (const OptionSpec& option : all_options(command)) names.push_back(option.name);
        const std::string nearest = nearest_word(name, names);
        if (!nearest.empty()) hint = ": did you mean " + nearest + "?";
        for (const CommandSpec& other : commands)
            for (const OptionSpec& option : other.options)
                if (option.name == name && &other != &command) hint = ": it belongs to " + other.command() + ",";
        throw UserError(
            join("unknown option ", name, hint.empty() ? ": " : hint + " ", "see ", command.command(), " --help"));
    }
    std::vector<std::string> names;
    for (const CommandSpec& other : commands)
        if (!other.name.empty()) names.push_back(other.name);
    const std::string nearest = command.name.empty() ? nearest_word(argument, names) : "";
    const bool is_config =
        command.name.empty() && argument.size() > 5 && argument.substr(argument.size() - 5) == ".json";
    if (!nearest.empty()) hint = "did you mean ./train " + nearest + "? ";
    if (is_config) hint = "write ./train --config " + argument + " ";
    throw UserError(join("unexpected argument ", argument.empty() ? "\"\"" : argument, ": ", hint,
                         is_config ? "(see " : "see ", command.command(), " --help", is_config ? ")" : ""));
}

// Throws the error for a command line that CLI11 refused with the message `what`; `chosen` is the first argument.
[[noreturn]] void refuse_unparsed(const std::vector<CommandSpec>& commands, const std::string& chosen,
                                  const std::string& what) {
    const size_t colon = what.find(':');
    const std::string name = colon != std::string::npos && what.rfind("--", 0) == 0 ? what.substr(0, colon) : "";
    // Several commands may have the option; the command that was named comes first.
    std::vector<CommandSpec> ordered = commands;
    std::stable_partition(ordered.begin(), ordered.end(),
                          [&](const CommandSpec& command) { return command.name == chosen; });
    for (const CommandSpec& command : ordered)
        for (const OptionSpec& option : all_options(command))
            if (option.name == name)
                throw UserError(join(name, option.value.empty() ? " takes no value" : " needs a value", ": write ",
                                     name, option.value.empty() ? "" : " " + option.value, ", see ", command.command(),
                                     " --help"));
    throw UserError(join(printable_line(what), ": see ./train --help"));
}

}  // namespace

std::string CommandSpec::help() const {
    std::string text = title + "\n" + before + "\n\nUsage:\n" + usage + "\n\nOptions:\n";
    constexpr size_t kColumn = 24;
    for (const OptionSpec& option : all_options(*this)) {
        std::string line = "  " + option.name + (option.value.empty() ? "" : " " + option.value);
        line.append(line.size() + 2 <= kColumn ? kColumn - line.size() : 2, ' ');
        for (size_t begin = 0, end; begin < option.help.size(); begin = end + 1) {
            end = option.help.find('\n', begin);
            text += line + option.help.substr(begin, end - begin) + "\n";
            line.assign(kColumn, ' ');
        }
    }
    return after.empty() ? text : text + after + "\n";
}

Arguments Arguments::parse(const std::vector<CommandSpec>& commands, int argc, char** argv) {
    CLI::App app;
    app.set_help_flag();
    app.require_subcommand(0, 1);
    std::vector<CLI::App*> parsers;
    for (const CommandSpec& command : commands) {
        CLI::App* const parser = command.name.empty() ? &app : app.add_subcommand(command.name);
        parser->set_help_flag();
        parser->allow_extras();  // they are reported below, with a hint
        for (const OptionSpec& option : all_options(command)) {
            if (option.value.empty()) {
                parser->add_flag(option.name);
                continue;
            }
            // Every occurrence takes exactly one value, even one that looks like an option.
            parser->add_option(option.name)->take_all()->allow_extra_args(false);
        }
        parsers.push_back(parser);
    }
    Arguments arguments;
    size_t chosen = 0;
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        refuse_unparsed(commands, argc > 1 ? argv[1] : "", error.what());
    }
    for (size_t i = 1; i < commands.size(); ++i)
        if (parsers[i]->parsed()) chosen = i;
    arguments.command_ = &commands[chosen];
    if (chosen != 0)
        for (const OptionSpec& option : commands[0].options)
            if (parsers[0]->get_option(option.name)->count() > 0)
                throw UserError(join(option.name, " does not go with ./train ", commands[chosen].name,
                                     ": leave it out, see ./train ", commands[chosen].name, " --help"));
    for (const size_t i : {size_t{0}, chosen})
        for (const OptionSpec& option : all_options(commands[i])) {
            const CLI::Option* const parsed = parsers[i]->get_option(option.name);
            if (parsed->count() > 0) arguments.values_[option.name] = parsed->results();
        }
    for (const OptionSpec& option : all_options(commands[chosen])) {
        const auto found = arguments.values_.find(option.name);
        if (found == arguments.values_.end()) continue;
        const std::vector<std::string>& given = found->second;
        if (option.value.empty()) {
            // The parser also accepts --json=false for a flag, whose meaning would be unclear.
            for (const std::string& value : given)
                if (value != "true") arguments.refuse(join(option.name, " takes no value: write ", option.name));
            continue;
        }
        const auto is_option = [&](const std::string& value) {
            for (const OptionSpec& other : all_options(commands[chosen]))
                if (value.substr(0, value.find('=')) == other.name) return true;
            return false;
        };
        // A prompt may be any text, but hardly the name of the next option.
        for (const std::string& value : given)
            if (is_option(value))
                arguments.refuse(join(option.name, " needs a value, but ", value, " follows: write ", option.name, " ",
                                      option.value));
        if (given.size() > 1 && !option.is_repeatable)
            arguments.refuse(join(option.name, " is given twice (", given[0], " and ", given[1], "): keep one"));
    }
    // This check is the last: an option without a value has taken the next option for it, and the argument that is
    // then left over is not the mistake.
    for (const size_t i : {size_t{0}, chosen})
        if (const std::vector<std::string> unknown = parsers[i]->remaining(); !unknown.empty())
            refuse_unknown(commands, commands[i], unknown[0]);
    return arguments;
}

void Arguments::refuse(const std::string& text) const {
    throw UserError(join(text, ", see ", command_->command(), " --help"));
}

std::vector<std::string> Arguments::texts(const std::string& name) const {
    const auto found = values_.find(name);
    if (found == values_.end()) return {};
    for (const std::string& value : found->second)
        if (value.empty()) refuse(name + " is empty: give it a value");
    return found->second;
}

std::string Arguments::text(const std::string& name, const std::string& otherwise) const {
    const std::vector<std::string> given = texts(name);
    return given.empty() ? otherwise : given[0];
}

std::string Arguments::raw_text(const std::string& name) const {
    const auto found = values_.find(name);
    return found == values_.end() ? "" : found->second[0];
}

std::string Arguments::choice(const std::string& name, const std::vector<std::string>& choices) const {
    const std::string given = text(name, choices[0]);
    std::string list;
    for (const std::string& choice : choices) {
        if (given == choice) return given;
        list += (list.empty() ? "" : ", ") + choice;
    }
    refuse(join(name, " is ", given, ": it must be one of ", list));
}

int64_t Arguments::integer(const std::string& name, int64_t otherwise, int64_t low, int64_t high) const {
    if (!has(name)) return otherwise;
    const std::string given = text(name);
    int64_t value = 0;
    const auto [end, error] = std::from_chars(given.data(), given.data() + given.size(), value);
    if (error != std::errc{} || end != given.data() + given.size() || value < low || value > high)
        refuse(join(name, " is ", given, ": it must be a whole number from ", low, " to ", high));
    return value;
}

double Arguments::number(const std::string& name, double otherwise, double low, double high, bool low_is_open) const {
    if (!has(name)) return otherwise;
    const std::string given = text(name);
    double value = 0;
    const auto [end, error] = std::from_chars(given.data(), given.data() + given.size(), value);
    const bool fits = (low_is_open ? value > low : value >= low) && value <= high;  // false for NaN too
    if (error != std::errc{} || end != given.data() + given.size() || !fits)
        refuse(join(name, " is ", given, ": it must be a number ", low_is_open ? "above " : "from ", low,
                    low_is_open ? " and at most " : " to ", high));
    return value;
}

}  // namespace ingot
