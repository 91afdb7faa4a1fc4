#include "src/base/own_file.h"

#include <sys/auxv.h>
#include <unistd.h>

#include <climits>

namespace ingot {

std::string own_file() {
    char path[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
    const bool is_known = length > 0 && length < static_cast<ssize_t>(sizeof path) && getauxval(AT_BASE) != 0;
    return is_known ? std::string(path, static_cast<size_t>(length)) : "";
}

}  // namespace ingot
