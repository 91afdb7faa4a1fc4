#include "src/base/available_memory.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <optional>
#include <sstream>

#include "kernels/core/check.h"
#include "kernels/core/device.h"

namespace ingot {

namespace {

namespace fs = std::filesystem;

// Returns the number after `key`, in the file's unit. The file has lines "KEY NUMBER" or "KEY: NUMBER kB".
std::optional<uint64_t> value_of(const std::string& path, const std::string& key) {
    std::ifstream stream(path);
    for (std::string line; std::getline(stream, line);) {
        std::istringstream words(line);
        std::string first;
        uint64_t value = 0;
        if (words >> first && (first == key || first == key + ":") && words >> value) return value;
    }
    return std::nullopt;
}

// Returns the one number in a file, or nothing where the file is missing or says "max".
std::optional<uint64_t> number_in(const std::string& path) {
    std::ifstream stream(path);
    uint64_t value = 0;
    return stream >> value ? std::optional(value) : std::nullopt;
}

// The files and keys in which a version of control groups reports a group's memory.
struct Names {
    const char *limit, *usage, *inactive_file, *active_file;
};
constexpr Names kVersion1 = {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
                             "total_active_file"};
constexpr Names kVersion2 = {"memory.max", "memory.current", "inactive_file", "active_file"};

// Lowers `least` to what is left to `group`, below the hierarchy mounted at `mount`, and to its ancestors. In a
// container that sees its own group as the root, /proc may still name the whole path; folders that do not exist are
// skipped.
void visit(const std::string& root, const std::string& mount, const std::string& group, const Names& names,
           AvailableMemory* least) {
    for (fs::path path = (fs::path("/") / group).lexically_normal();; path = path.parent_path()) {
        const std::string folder = mount + (path == "/" ? "" : path.string()), limit_file = folder + "/" + names.limit;
        const std::optional<uint64_t> limit = number_in(root + limit_file),
                                      usage = number_in(root + folder + "/" + names.usage);
        if (limit && usage) {
            const std::string stat = root + folder + "/memory.stat";
            const uint64_t droppable =
                value_of(stat, names.inactive_file).value_or(0) + value_of(stat, names.active_file).value_or(0);
            const uint64_t taken = *usage - std::min(*usage, droppable), left = *limit - std::min(*limit, taken);
            if (left < least->bytes) *least = {left, limit_file};
        }
        if (!path.has_relative_path()) return;
    }
}

}  // namespace

std::string AvailableMemory::describe() const {
    return join(format_bytes(bytes), " are free", limited_by.empty() ? "" : " within the limit in ", limited_by);
}

AvailableMemory available_memory(const std::string& root) {
    AvailableMemory least;
    if (const std::optional<uint64_t> kib = value_of(root + "/proc/meminfo", "MemAvailable")) least.bytes = *kib * 1024;

    // "0::/path" for version 2, "4:cpu,memory:/path" for version 1. Where both are mounted, memory may be in either.
    std::ifstream groups(root + "/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = join(",", line.substr(first + 1, second - first - 1), ",");
        const std::string group = line.substr(second + 1);
        if (controllers == ",,")
            visit(root, "/sys/fs/cgroup", group, kVersion2, &least);
        else if (controllers.find(",memory,") != std::string::npos)
            visit(root, "/sys/fs/cgroup/memory", group, kVersion1, &least);
    }
    return least;
}

}  // namespace ingot
