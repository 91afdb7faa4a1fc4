// Defaults that depend on other fields, and rules between fields. For the files that make up the config.
#pragma once

#include <string>

#include "src/config/config.h"

namespace ingot {

// `source` is the config file: the run is named after it.
void fill_defaults(Config* config, const std::string& source);
// Throws UserError with the rule that is broken and a value that would do.
void check_rules(const Config& config);
// Throws UserError if a number lies outside its field's range.
void check_range(const std::string& path, double value, double low, double high, bool low_is_open);

}  // namespace ingot
