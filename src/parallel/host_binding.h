// Binds a rank to the CPUs and the memory near its GPU, as Linux's sysfs describes the machine: on a host of several
// NUMA nodes, a batch that is filled on the other node's memory crosses the link between the processors twice.
#pragma once

#include <string>
#include <vector>

namespace ingot {

struct HostBinding {
    std::vector<int> cpus;  // ascending; empty: nothing is bound
    int node = -1;          // the NUMA node whose memory is preferred
    std::string reason;     // why nothing is bound, for people; empty where there is nothing to bind

    // Returns "CPUs 0-15, memory node 0", or the reason.
    std::string describe() const;
};

// Reads a list as sysfs writes it, "0-3,8,10-11"; returns the numbers ascending, or none where it is no such list.
std::vector<int> parse_cpu_list(const std::string& text);
std::string format_cpu_list(const std::vector<int>& cpus);

// Decides what a process whose GPU is at the PCI bus id ("0000:1B:00.0"; empty: unknown) is bound to, given the CPUs
// that it may run on. `sysfs` is the folder that is "/sys" but in tests. A process that may not run on all CPUs of the
// machine was bound by its launcher, or is in a cgroup, and stays as it is; so does one all of whose CPUs are near.
// Ranks whose GPUs are near the same node are all bound to all CPUs of that node.
HostBinding binding_near(const std::string& sysfs, const std::string& pci_bus_id, const std::vector<int>& allowed);

// Returns the CPUs that the calling thread may run on; none where the kernel does not say.
std::vector<int> allowed_cpus();

// Binds the threads that this process has, and so those that it starts later, to the CPUs; lets OpenMP have no more
// threads than those; and prefers the node for what this thread and threads that it starts allocate from now on, unless
// somebody has set another policy. Where the kernel refuses the CPUs nothing is bound. Returns what was bound.
HostBinding bind_process(const HostBinding& wanted);

}  // namespace ingot
