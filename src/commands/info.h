// `./train info`: what was built, which device and kernels would be used and why, library versions.
#pragma once

namespace ingot {

// Prints to stdout, as text or as one JSON object. Returns the exit code.
int print_info(bool is_json);

}  // namespace ingot
