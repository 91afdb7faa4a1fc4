// Finds settings that a config chooses but that have no effect in the run that it describes.
#pragma once

#include <string>
#include <vector>

#include "src/config/config.h"

namespace ingot {

// Returns a line for each such setting, with the reason: "model.rope_theta has no effect: model.position is "alibi"".
// `is_cpu` says whether the CPU trains.
std::vector<std::string> settings_without_effect(const Config& config, bool is_cpu);

}  // namespace ingot
