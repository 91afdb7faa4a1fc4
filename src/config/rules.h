// Defaults that depend on other fields, and rules between fields. Only the files that make up the config include this.
#pragma once

#include <string>

#include "src/config/config.h"

namespace ingot {

// `source` is the path of the config file, which gives the run its name.
void fill_defaults(Config* config, const std::string& source);
// Throws UserError with the broken rule and a value that would be valid.
void check_rules(const Config& config);
// Throws UserError if a number lies outside its field's range.
void check_range(const std::string& path, double value, double low, double high, bool low_is_open);

}  // namespace ingot
