// The environment on which the bits of a run depend besides its config: device, libraries, the choices behind "auto",
// and the number of processes that share the work.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/core/device.h"
#include "src/config/config.h"

namespace ingot {

// Returns the system's name of the processor, "AMD EPYC", or "unknown CPU".
std::string cpu_model();

// Returns {"ingot": version, "device": ..., "attention": kernel on CUDA, "blas": ..., "world_size": ranks, ...}.
nlohmann::ordered_json environment(const Device& device, const Config& config, int64_t num_ranks);
// Returns a hash of eight digits.
std::string environment_hash(const nlohmann::ordered_json& environment);
// Returns "blas was A, is B" for each key that differs. `then` is from a checkpoint; an older one may lack keys of
// `now`.
std::vector<std::string> environment_changes(const nlohmann::ordered_json& then, const nlohmann::ordered_json& now);

}  // namespace ingot
