// Finds how much host memory a run may take. A container or a batch system may allow less than the machine has, and
// beyond its limit the system does not refuse an allocation: it kills the process once the pages are touched.
#pragma once

#include <cstdint>
#include <string>

namespace ingot {

struct AvailableMemory {
    static constexpr uint64_t kUnknown = UINT64_MAX;  // the system does not report it

    uint64_t bytes = kUnknown;
    std::string limited_by;  // the file that holds the limit, "/sys/fs/cgroup/memory.max"; empty: the machine's memory

    bool is_known() const { return bytes != kUnknown; }
    // Returns "1.50 GiB are free", with the limit that applies.
    std::string describe() const;
};

// Returns the least of the memory that the machine could give to programs now (MemAvailable) and of what is left to
// the process's control group and its ancestors (versions 1 and 2). Cached file pages that can be dropped count as
// free. Tests give a `root`, which is put before every path that is read. Source:
// Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of Linux.
AvailableMemory available_memory(const std::string& root = "");

}  // namespace ingot
