#include "kernels/core/check.h"

#include <cstring>

namespace ingot {

void check_failed(const char* file, int line, const char* expression, const std::string& text) {
    // The path inside the project is enough to find the line.
    const char* name = std::strstr(file, "kernels/");
    if (name == nullptr) name = std::strstr(file, "src/");
    if (name == nullptr) name = file;
    throw Error(kExitFault, join(text, " [", name, ":", line, ": ", expression, "]"));
}

}  // namespace ingot
