// Records what ran on the GPU and which CUDA functions the host called, by NVIDIA's CUPTI. ./bench and the tests use
// it;
// ./train does not link it. It is a library of its own (ingot_trace), which builds without CUPTI too. No CUDA header
// here.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

namespace ingot {

enum class TraceKind : uint8_t {
    kernel,
    copy,  // named "host to device" and so on
    set,   // memory set to a value
    api    // a call of the CUDA runtime or of the driver, by name: "cudaGraphLaunch"
};

struct TraceRecord {
    TraceKind kind;
    std::string name;           // of a kernel: its symbol, mangled
    uint64_t begin_ns, end_ns;  // one clock for all records
    uint32_t stream_or_thread;  // api: the thread that called
    uint64_t bytes;             // copies and sets
    uint32_t correlation;       // the same for a call and the work that it started
};

// The names of copies in the two directions that cost a wait where memory is not page-locked.
inline constexpr const char* kHostToDevice = "copy host to device";
inline constexpr const char* kDeviceToHost = "copy device to host";

// Returns whether this build can trace; else *why is one line that says why not and what to install.
bool can_trace(std::string* why);

// Records all work of this process's GPUs from now on, kernels of graphs one by one, and calls too if they are asked
// for. To trace the kernels of a graph, start before it is recorded. One trace at a time. Throws UserError where
// can_trace() says no, Error if CUPTI refuses (another profiler has it, or the driver is older than it).
void start_trace(bool with_calls);
// Returns the records in the order of their beginning. The caller has waited for the work. Throws Error if some were
// lost.
std::vector<TraceRecord> stop_trace();

// "void ingot::(anonymous namespace)::forward_kernel<...>(...)"; a name that is not mangled stays.
std::string demangled(const std::string& symbol);

// Chrome's trace format (chrome://tracing, Perfetto): work by stream, calls by thread, times from the first record on.
void write_chrome_trace(const std::vector<TraceRecord>& records, std::ostream& out);

}  // namespace ingot
