#include "src/parallel/host_binding.h"

#include <omp.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "kernels/core/check.h"

namespace ingot {

namespace {

constexpr int kMostCpus = 1 << 16;  // more than Linux can have
// Of linux/mempolicy.h, which belongs to the package of libnuma on some systems.
constexpr int kPolicyDefault = 0, kPolicyPreferred = 1;
constexpr int kBitsOfWord = static_cast<int>(sizeof(unsigned long) * CHAR_BIT);

// Returns the first line, or nothing where there is no such file.
std::string line_of(const std::string& path) {
    std::string line;
    std::ifstream file(path);
    std::getline(file, line);
    return line;
}

std::vector<unsigned long> bits_of(const std::vector<int>& numbers) {
    std::vector<unsigned long> words;
    for (const int number : numbers) {
        const auto word = static_cast<size_t>(number / kBitsOfWord);
        if (words.size() <= word) words.resize(word + 1);
        words[word] |= 1ul << (number % kBitsOfWord);
    }
    return words;
}

bool set_cpus(pid_t thread, const std::vector<unsigned long>& mask) {
    return sched_setaffinity(thread, mask.size() * sizeof mask[0], reinterpret_cast<const cpu_set_t*>(mask.data())) ==
           0;
}

bool prefer_memory_of(int node) {
    int policy = kPolicyDefault;
    if (syscall(SYS_get_mempolicy, &policy, nullptr, 0ul, nullptr, 0ul) != 0 || policy != kPolicyDefault) return false;
    const std::vector<unsigned long> mask = bits_of({node});
    // The kernel takes one bit less than it is told.
    const auto bits = static_cast<unsigned long>(mask.size()) * kBitsOfWord + 1;
    return syscall(SYS_set_mempolicy, kPolicyPreferred, mask.data(), bits) == 0;
}

}  // namespace

std::vector<int> parse_cpu_list(const std::string& text) {
    std::vector<int> cpus;
    const char *at = text.data(), *const end = at + text.size();
    const auto number = [&](int* value) {
        const auto [next, error] = std::from_chars(at, end, *value);
        const bool is_good = error == std::errc() && *value >= 0 && *value < kMostCpus;
        at = next;
        return is_good;
    };
    while (at < end) {
        int first = 0;
        if (!number(&first)) return {};
        int last = first;
        if (at < end && *at == '-') {
            ++at;
            if (!number(&last) || last < first) return {};
        }
        for (int cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
        if (at == end) break;
        if (*at++ != ',' || at == end) return {};
    }
    std::sort(cpus.begin(), cpus.end());
    cpus.erase(std::unique(cpus.begin(), cpus.end()), cpus.end());
    return cpus;
}

std::string format_cpu_list(const std::vector<int>& cpus) {
    std::string text;
    for (size_t begin = 0, end = 0; begin < cpus.size(); begin = end) {
        for (end = begin + 1; end < cpus.size() && cpus[end] == cpus[end - 1] + 1;) ++end;
        text += join(text.empty() ? "" : ",", cpus[begin]);
        if (end - begin > 1) text += join("-", cpus[end - 1]);
    }
    return text;
}

std::string HostBinding::describe() const {
    if (cpus.empty()) return reason;
    return join("CPUs ", format_cpu_list(cpus), node < 0 ? "" : join(", memory node ", node));
}

HostBinding binding_near(const std::string& sysfs, const std::string& pci_bus_id, const std::vector<int>& allowed) {
    HostBinding none;
    const std::vector<int> online = parse_cpu_list(line_of(sysfs + "/devices/system/cpu/online"));
    if (!std::includes(allowed.begin(), allowed.end(), online.begin(), online.end())) return none;
    if (parse_cpu_list(line_of(sysfs + "/devices/system/node/online")).size() == 1) return none;
    none.reason = "not bound, since /sys does not say which CPUs are near the GPU";
    std::string id = pci_bus_id;
    std::transform(id.begin(), id.end(), id.begin(), [](unsigned char c) { return std::tolower(c); });
    const std::string device = sysfs + "/bus/pci/devices/" + id;
    // "-1" where the kernel does not know, which is no number of a list either.
    const std::vector<int> nodes = parse_cpu_list(line_of(device + "/numa_node"));
    const std::vector<int> local = parse_cpu_list(line_of(device + "/local_cpulist"));
    HostBinding near;
    std::set_intersection(local.begin(), local.end(), allowed.begin(), allowed.end(), std::back_inserter(near.cpus));
    if (id.empty() || nodes.size() != 1 || online.empty() || near.cpus.empty()) return none;
    near.node = nodes[0];
    none.reason.clear();
    return near.cpus == allowed ? none : near;
}

std::vector<int> allowed_cpus() {
    std::vector<int> cpus;
    std::vector<unsigned long> mask(kMostCpus / kBitsOfWord);
    if (sched_getaffinity(0, mask.size() * sizeof mask[0], reinterpret_cast<cpu_set_t*>(mask.data())) != 0) return cpus;
    for (int cpu = 0; cpu < kMostCpus; ++cpu)
        if ((mask[static_cast<size_t>(cpu / kBitsOfWord)] >> (cpu % kBitsOfWord) & 1) != 0) cpus.push_back(cpu);
    return cpus;
}

HostBinding bind_process(const HostBinding& wanted) {
    HostBinding bound = wanted;
    if (wanted.cpus.empty()) return bound;
    const std::vector<unsigned long> mask = bits_of(wanted.cpus);
    if (!set_cpus(0, mask))
        return {.cpus = {}, .node = -1, .reason = join("not bound, since Linux refuses it: ", std::strerror(errno))};
    // Libraries may have started threads when they were loaded. One that ends meanwhile does no harm.
    std::error_code error;
    for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task", error))
        (void)set_cpus(static_cast<pid_t>(std::atoi(thread.path().filename().c_str())), mask);
    omp_set_num_threads(std::min(omp_get_max_threads(), static_cast<int>(wanted.cpus.size())));
    if (!prefer_memory_of(wanted.node)) bound.node = -1;
    return bound;
}

}  // namespace ingot
