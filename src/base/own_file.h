// The file of the program that runs, to start it again.
#pragma once

#include <string>

namespace ingot {

// Returns the path of this program, or "" where it cannot be known: without /proc, or if the dynamic linker was started
// with the program's name (the kernel has then loaded no interpreter, and /proc/self/exe is the linker).
std::string own_file();

}  // namespace ingot
