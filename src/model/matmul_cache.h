// The machine's cache of GEMM algorithms: a run need not time a GEMM that an earlier one has timed.
//
//   $XDG_CACHE_HOME/ingot/matmul-GPU-cuBLASLt-VERSION.json, else ~/.cache/ingot/...
//   {"machine": "GPU, cuBLASLt VERSION", "choices": {GEMM: ALGORITHM, ...}}
//
// It is a convenience: whatever is wrong with it, the GEMMs are timed again. So nothing here throws; *note is one
// line for people when the cache cannot be used, and else empty.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/matmul/choices.h"

namespace ingot {

// Returns the path of the cache of `machine` (matmul_machine()); empty if the environment names no folder for it.
std::string matmul_cache_path(const std::string& machine);

// Returns the choices that this machine's cache holds; none if there is no cache yet.
std::vector<MatmulChoice> read_matmul_cache(const std::string& machine, std::string* note);

// Adds those of `choices` that were timed; makes the folder if need be. The file is replaced as a whole: a reader finds
// the old one or the new one. Of two processes that write at the same moment one may lose its additions, and the next
// run times those again.
void write_matmul_cache(const std::string& machine, const std::vector<MatmulChoice>& choices, std::string* note);

// {GEMM: ALGORITHM, ...}, for the cache and for a checkpoint's manifest. From JSON: leaves out what is no such pair.
nlohmann::ordered_json matmul_choices_to_json(const std::vector<MatmulChoice>& choices);
std::vector<MatmulChoice> matmul_choices_from_json(const nlohmann::json& object);

}  // namespace ingot
