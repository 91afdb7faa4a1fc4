// How much memory a run may take of the host, where a container or a batch system may allow less than the machine has:
// beyond its limit the system does not refuse an allocation, it kills the process once the pages are touched.
#pragma once

#include <cstdint>
#include <string>

namespace ingot {

struct AvailableMemory {
    static constexpr uint64_t kUnknown = UINT64_MAX;  // the system does not say

    uint64_t bytes = kUnknown;
    std::string limited_by;  // the file that holds the limit, "/sys/fs/cgroup/memory.max"; empty: the machine's memory

    bool is_known() const { return bytes != kUnknown; }
    // "1.50 GiB are free", and within which limit.
    std::string describe() const;
};

// The least of what the machine could give to programs now (MemAvailable) and of what is left to the process's control
// group and to each that holds it (versions 1 and 2), pages of files that can be dropped not counted as taken. `root`
// stands before every path that is read: for tests.
// Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of Linux.
AvailableMemory available_memory(const std::string& root = "");

}  // namespace ingot
