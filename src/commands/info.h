// `./train info` prints the build, the device and kernels that would be used and why, and library versions.
#pragma once

namespace ingot {

// Prints text or one JSON object on stdout. Returns the exit code.
int print_info(bool is_json);

}  // namespace ingot
