// What the bits of a run depend on besides its config: device, libraries, what "auto" means here, how many processes
// share the work.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/core/device.h"
#include "src/config/config.h"

namespace ingot {

// "AMD EPYC", as the system names the processor; "unknown CPU" where it does not.
std::string cpu_model();

// {"ingot": version, "device": ..., "attention": kernel on CUDA, "blas": ..., "world_size": 1, ...}
nlohmann::ordered_json environment(const Device& device, const Config& config);
// Eight digits that stand for it.
std::string environment_hash(const nlohmann::ordered_json& environment);
// "blas was A, is B", for each key that differs. `then` is a checkpoint's: an older one may lack what `now` has.
std::vector<std::string> environment_changes(const nlohmann::ordered_json& then, const nlohmann::ordered_json& now);

}  // namespace ingot
