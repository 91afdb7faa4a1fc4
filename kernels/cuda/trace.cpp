// Without CUPTI only the writer is left.
#include "kernels/cuda/trace.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <ostream>
#include <set>
#include <string_view>

#include "kernels/core/check.h"
#include "kernels/core/device.h"

#if INGOT_HAS_CUPTI
#include <cupti.h>

#include <cstddef>
#endif

namespace ingot {

#if INGOT_HAS_CUPTI

namespace {

// CUPTI hands out its newest records, and a newer record begins with the fields of the older ones: those of CUDA 12.4
// are enough here. Where this header knows newer ones, that is checked.
using KernelRecord = CUpti_ActivityKernel9;
using CopyRecord = CUpti_ActivityMemcpy5;
using SetRecord = CUpti_ActivityMemset4;
static_assert(CUPTI_API_VERSION >= 22, "tracing needs CUPTI of CUDA 12.4 or later");
#define INGOT_SAME_PLACE(older, newer, field) \
    static_assert(offsetof(older, field) == offsetof(newer, field), #newer " moved " #field)
#if CUPTI_API_VERSION >= 130000
using NewerKernelRecord = CUpti_ActivityKernel10;
INGOT_SAME_PLACE(KernelRecord, NewerKernelRecord, start);
INGOT_SAME_PLACE(KernelRecord, NewerKernelRecord, end);
INGOT_SAME_PLACE(KernelRecord, NewerKernelRecord, streamId);
INGOT_SAME_PLACE(KernelRecord, NewerKernelRecord, correlationId);
INGOT_SAME_PLACE(KernelRecord, NewerKernelRecord, name);
#endif
#if CUPTI_API_VERSION >= 26
using NewerCopyRecord = CUpti_ActivityMemcpy6;
INGOT_SAME_PLACE(CopyRecord, NewerCopyRecord, copyKind);
INGOT_SAME_PLACE(CopyRecord, NewerCopyRecord, bytes);
INGOT_SAME_PLACE(CopyRecord, NewerCopyRecord, start);
INGOT_SAME_PLACE(CopyRecord, NewerCopyRecord, end);
INGOT_SAME_PLACE(CopyRecord, NewerCopyRecord, streamId);
INGOT_SAME_PLACE(CopyRecord, NewerCopyRecord, correlationId);
#endif
#undef INGOT_SAME_PLACE

constexpr size_t kBufferBytes = size_t{8} << 20;
constexpr size_t kBufferAlignment = 8;  // what CUPTI asks for

// CUPTI belongs to the process, and fills and hands back buffers on threads of its own.
struct State {
    std::mutex mutex;
    bool is_running = false, has_calls = false, is_registered = false;
    std::vector<TraceRecord> records;
    std::string fault;  // of a callback, which cannot throw
};

State& state() {
    static State* const state = new State;  // never destroyed: CUPTI may call back as the process ends
    return *state;
}

std::string text_of(CUptiResult result) {
    const char* text = nullptr;
    if (cuptiGetResultString(result, &text) != CUPTI_SUCCESS || text == nullptr) text = "unknown error";
    return join(text, " (", static_cast<int>(result), ")");
}

void check_cupti(CUptiResult result, const char* call) {
    if (result == CUPTI_SUCCESS) return;
    throw Error(kExitFault, join("CUPTI: ", call, ": ", text_of(result),
                                 ": it needs a driver as new as itself, and no other profiler on this process"));
}
#define INGOT_CUPTI_CHECK(expression) check_cupti(expression, #expression)

const char* name_of_copy(uint8_t kind) {
    switch (kind) {
        case CUPTI_ACTIVITY_MEMCPY_KIND_HTOD:
            return kHostToDevice;
        case CUPTI_ACTIVITY_MEMCPY_KIND_DTOH:
            return kDeviceToHost;
        case CUPTI_ACTIVITY_MEMCPY_KIND_DTOD:
            return "copy device to device";
        default:
            return "copy";
    }
}

// "cudaMalloc_v3020" and "cudaMemcpyAsync_ptsz_v7000" without what follows the name that is called.
std::string name_of_call(CUpti_CallbackDomain domain, CUpti_CallbackId id) {
    const char* given = nullptr;
    if (cuptiGetCallbackName(domain, id, &given) != CUPTI_SUCCESS || given == nullptr) return join("call ", id);
    std::string name = given;
    if (domain == CUPTI_CB_DOMAIN_RUNTIME_API) {
        const size_t version = name.rfind("_v");
        if (version != std::string::npos && version + 2 < name.size() &&
            name.find_first_not_of("0123456789", version + 2) == std::string::npos)
            name.resize(version);
    }
    for (const std::string_view suffix : {"_ptsz", "_ptds"})
        if (name.ends_with(suffix)) name.resize(name.size() - suffix.size());
    return name;
}

void add_record(const CUpti_Activity* activity, std::vector<TraceRecord>* records) {
    switch (activity->kind) {
        case CUPTI_ACTIVITY_KIND_KERNEL:
        case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
            const auto* const r = reinterpret_cast<const KernelRecord*>(activity);
            records->push_back({.kind = TraceKind::kernel,
                                .name = r->name != nullptr ? r->name : "?",
                                .begin_ns = r->start,
                                .end_ns = r->end,
                                .stream_or_thread = r->streamId,
                                .bytes = 0,
                                .correlation = r->correlationId});
            return;
        }
        case CUPTI_ACTIVITY_KIND_MEMCPY: {
            const auto* const r = reinterpret_cast<const CopyRecord*>(activity);
            records->push_back({.kind = TraceKind::copy,
                                .name = name_of_copy(r->copyKind),
                                .begin_ns = r->start,
                                .end_ns = r->end,
                                .stream_or_thread = r->streamId,
                                .bytes = r->bytes,
                                .correlation = r->correlationId});
            return;
        }
        case CUPTI_ACTIVITY_KIND_MEMSET: {
            const auto* const r = reinterpret_cast<const SetRecord*>(activity);
            records->push_back({.kind = TraceKind::set,
                                .name = "set",
                                .begin_ns = r->start,
                                .end_ns = r->end,
                                .stream_or_thread = r->streamId,
                                .bytes = r->bytes,
                                .correlation = r->correlationId});
            return;
        }
        case CUPTI_ACTIVITY_KIND_RUNTIME:
        case CUPTI_ACTIVITY_KIND_DRIVER: {
            const auto* const r = reinterpret_cast<const CUpti_ActivityAPI*>(activity);
            const bool is_runtime = activity->kind == CUPTI_ACTIVITY_KIND_RUNTIME;
            records->push_back(
                {.kind = TraceKind::api,
                 .name = name_of_call(is_runtime ? CUPTI_CB_DOMAIN_RUNTIME_API : CUPTI_CB_DOMAIN_DRIVER_API, r->cbid),
                 .begin_ns = r->start,
                 .end_ns = r->end,
                 .stream_or_thread = r->threadId,
                 .bytes = 0,
                 .correlation = r->correlationId});
            return;
        }
        default:
            return;
    }
}

void CUPTIAPI give_buffer(uint8_t** buffer, size_t* size, size_t* max_records) {
    *buffer = static_cast<uint8_t*>(std::aligned_alloc(kBufferAlignment, kBufferBytes));
    *size = *buffer != nullptr ? kBufferBytes : 0;
    *max_records = 0;  // as many as fit
}

void CUPTIAPI take_buffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t num_valid) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    try {
        CUpti_Activity* activity = nullptr;
        CUptiResult result = CUPTI_SUCCESS;
        while (num_valid > 0 && (result = cuptiActivityGetNextRecord(buffer, num_valid, &activity)) == CUPTI_SUCCESS)
            add_record(activity, &s.records);
        if (result != CUPTI_SUCCESS && result != CUPTI_ERROR_MAX_LIMIT_REACHED)  // the buffer ends at the limit
            s.fault = "cuptiActivityGetNextRecord: " + text_of(result);
    } catch (const std::exception& error) {
        s.fault = error.what();
    }
    std::free(buffer);
}

constexpr CUpti_ActivityKind kWork[] = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY,
                                        CUPTI_ACTIVITY_KIND_MEMSET};
constexpr CUpti_ActivityKind kCalls[] = {CUPTI_ACTIVITY_KIND_RUNTIME, CUPTI_ACTIVITY_KIND_DRIVER};

void disable(bool has_calls) {
    for (const CUpti_ActivityKind kind : kWork) (void)cuptiActivityDisable(kind);
    if (has_calls)
        for (const CUpti_ActivityKind kind : kCalls) (void)cuptiActivityDisable(kind);
}

}  // namespace

bool can_trace(std::string*) {
    return true;
}

void start_trace(bool with_calls) {
    State& s = state();
    CHECK(!s.is_running, "a trace is running");
    uint32_t version = 0;
    INGOT_CUPTI_CHECK(cuptiGetVersion(&version));
    REQUIRE(version >= CUPTI_API_VERSION, "the CUPTI found at run time is of version ", version, ", this build wants ",
            CUPTI_API_VERSION, ": use the libcupti of the toolkit that it was built with");
    if (!s.is_registered) {
        INGOT_CUPTI_CHECK(cuptiActivityRegisterCallbacks(give_buffer, take_buffer));
        s.is_registered = true;
    }
    s.records.clear();
    s.fault.clear();
    try {
        for (const CUpti_ActivityKind kind : kWork) INGOT_CUPTI_CHECK(cuptiActivityEnable(kind));
        if (with_calls)
            for (const CUpti_ActivityKind kind : kCalls) INGOT_CUPTI_CHECK(cuptiActivityEnable(kind));
    } catch (...) {
        disable(with_calls);
        throw;
    }
    s.has_calls = with_calls;
    s.is_running = true;
}

std::vector<TraceRecord> stop_trace() {
    State& s = state();
    CHECK(s.is_running, "no trace is running");
    disable(s.has_calls);
    s.is_running = false;
    // A forced flush takes partly filled buffers too. The calls of take_buffer() have ended when this returns.
    INGOT_CUPTI_CHECK(cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED));
    size_t num_dropped = 0;
    INGOT_CUPTI_CHECK(cuptiActivityGetNumDroppedRecords(nullptr, 0, &num_dropped));
    std::vector<TraceRecord> records;
    {
        const std::lock_guard lock(s.mutex);
        if (!s.fault.empty()) throw Error(kExitFault, "CUPTI: " + s.fault);
        records.swap(s.records);
    }
    CHECK(num_dropped == 0, "CUPTI lost ", num_dropped, " records: trace fewer steps");
    // Work that had not ended when tracing did has no time.
    std::erase_if(records, [](const TraceRecord& record) { return record.end_ns == 0; });
    std::stable_sort(records.begin(), records.end(),
                     [](const TraceRecord& a, const TraceRecord& b) { return a.begin_ns < b.begin_ns; });
    return records;
}

#else

bool can_trace(std::string* why) {
    *why = Device::has_cuda()
               ? "built without CUPTI: install the toolkit's package of it (cuda-cupti-dev-13-0 for CUDA 13.0) "
                 "and configure again"
               : "built without CUDA: configure with -DINGOT_CUDA=ON";
    return false;
}

void start_trace(bool) {
    std::string why;
    (void)can_trace(&why);
    throw UserError("no trace: " + why);
}

std::vector<TraceRecord> stop_trace() {
    CHECK(false, "no trace is running");
    return {};
}

#endif

std::string demangled(const std::string& symbol) {
    int status = 0;
    const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status),
                                                      std::free);
    return status == 0 && text != nullptr ? text.get() : symbol;
}

namespace {

std::string quoted(const std::string& text) {
    std::string result = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            result += '\\';
            result += c;
        } else if (static_cast<unsigned char>(c) < 0x20) {
            char escape[8];
            std::snprintf(escape, sizeof escape, "\\u%04x", c);
            result += escape;
        } else {
            result += c;
        }
    }
    return result + '"';
}

// The format's unit is the microsecond.
std::string microseconds(uint64_t ns) {
    char text[40];
    std::snprintf(text, sizeof text, "%llu.%03u", static_cast<unsigned long long>(ns / 1000),
                  static_cast<unsigned>(ns % 1000));
    return text;
}

const char* category_of(TraceKind kind) {
    switch (kind) {
        case TraceKind::kernel:
            return "kernel";
        case TraceKind::copy:
            return "copy";
        case TraceKind::set:
            return "set";
        case TraceKind::api:
            return "api";
    }
    return "?";
}

}  // namespace

void write_chrome_trace(const std::vector<TraceRecord>& records, std::ostream& out) {
    constexpr int kGpu = 0, kHost = 1;  // shown as two processes
    uint64_t first = UINT64_MAX;
    std::set<uint32_t> streams, threads;
    for (const TraceRecord& record : records) {
        first = std::min(first, record.begin_ns);
        (record.kind == TraceKind::api ? threads : streams).insert(record.stream_or_thread);
    }
    out << "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n"
        << R"({"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "GPU"}},)"
        << "\n"
        << R"({"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "host"}})";
    const auto name_rows = [&](int process, const char* what, const std::set<uint32_t>& rows) {
        for (const uint32_t row : rows)
            out << ",\n{\"ph\": \"M\", \"name\": \"thread_name\", \"pid\": " << process << ", \"tid\": " << row
                << ", \"args\": {\"name\": \"" << what << " " << row << "\"}}";
    };
    name_rows(kGpu, "stream", streams);
    name_rows(kHost, "thread", threads);
    for (const TraceRecord& record : records) {
        const std::string name = record.kind == TraceKind::kernel ? demangled(record.name) : record.name;
        out << ",\n{\"ph\": \"X\", \"cat\": \"" << category_of(record.kind) << "\", \"name\": " << quoted(name)
            << ", \"pid\": " << (record.kind == TraceKind::api ? kHost : kGpu)
            << ", \"tid\": " << record.stream_or_thread << ", \"ts\": " << microseconds(record.begin_ns - first)
            << ", \"dur\": " << microseconds(record.end_ns - record.begin_ns)
            << ", \"args\": {\"correlation\": " << record.correlation;
        if (record.bytes > 0) out << ", \"bytes\": " << record.bytes;
        // Anonymous namespaces hide the file in the readable name.
        if (record.kind == TraceKind::kernel && name != record.name) out << ", \"symbol\": " << quoted(record.name);
        out << "}}";
    }
    out << "\n]}\n";
}

}  // namespace ingot
