// Settings that a config chooses and that change nothing in the run that it describes.
#pragma once

#include <string>
#include <vector>

#include "src/config/config.h"

namespace ingot {

// A line for each of them, with the reason: "model.rope_theta has no effect: model.position is "alibi"". `is_cpu` says
// which device trains.
std::vector<std::string> settings_without_effect(const Config& config, bool is_cpu);

}  // namespace ingot
