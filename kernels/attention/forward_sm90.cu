// Launches of Hopper's forward kernel: forward_sm90.cuh.
#include "kernels/attention/forward_sm90.cuh"

#include <atomic>
#include <mutex>
#include <vector>

#include "kernels/attention/launch_sm90.cuh"
#include "kernels/attention/sm90.h"

namespace ingot {

namespace {

using namespace sm90;

// ---- Ticket counters ----
//
// Launches on several streams may run at a time, so each has a counter of its own, which is 0 again when it has ended.
// Counters of direct launches are reused in turn, after more launches than streams can hold. A launch that is recorded
// in a graph keeps its counter as long as the graph, or an executable made of it, lives.

constexpr int kCounters = 1 << 16;
__device__ int ticket_counters[2][kCounters];  // [0] for direct launches, [1] for recorded ones

struct RecordedCounters {
    std::mutex mutex;
    std::vector<int> released;
    int num_taken = 1;  // counter 0 is not used: as a pointer it would be null
};
RecordedCounters& recorded_counters() {
    static auto* const counters = new RecordedCounters;  // never destroyed: graphs may be, later than static objects
    return *counters;
}
int recorded_counter(cudaGraph_t graph) {
    RecordedCounters& counters = recorded_counters();
    int taken = 0;
    {
        const std::lock_guard lock(counters.mutex);
        if (!counters.released.empty()) {
            taken = counters.released.back();
            counters.released.pop_back();
        } else {
            REQUIRE(
                counters.num_taken < kCounters, "attention (sm90): ", kCounters - 1,
                " launches are recorded in CUDA graphs that live, the most that can be: destroy some of them, or ask "
                "for the kernel sm80");
            taken = counters.num_taken++;
        }
    }
    const auto release = [](void* counter) {
        RecordedCounters& all = recorded_counters();
        const std::lock_guard lock(all.mutex);
        all.released.push_back(static_cast<int>(reinterpret_cast<intptr_t>(counter)));
    };
    cudaUserObject_t owner = nullptr;
    CUDA_CHECK(cudaUserObjectCreate(&owner, reinterpret_cast<void*>(static_cast<intptr_t>(taken)), release, 1,
                                    cudaUserObjectNoDestructorSync));
    CUDA_CHECK(cudaGraphRetainUserObject(graph, owner, 1, cudaGraphUserObjectMove));
    return taken;
}

int* ticket_counter(const CudaContext& context) {
    static int* counters[kMaxGpus];
    static std::once_flag is_found[kMaxGpus];
    static std::atomic<uint32_t> num_launches[kMaxGpus];
    CHECK(context.index < kMaxGpus, "attention on CUDA: GPU ", context.index, ", at most ", kMaxGpus);
    std::call_once(is_found[context.index], [&] {
        void* address = nullptr;
        CUDA_CHECK(cudaGetSymbolAddress(&address, ticket_counters));
        counters[context.index] = static_cast<int*>(address);
    });
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    cudaGraph_t graph = nullptr;
#if CUDART_VERSION >= 13000
    CUDA_CHECK(cudaStreamGetCaptureInfo(context.stream, &capture, nullptr, &graph));
#else
    CUDA_CHECK(cudaStreamGetCaptureInfo_v2(context.stream, &capture, nullptr, &graph));
#endif
    if (capture == cudaStreamCaptureStatusActive) return counters[context.index] + kCounters + recorded_counter(graph);
    return counters[context.index] + num_launches[context.index]++ % kCounters;
}

template <DType kType, int HS, bool kHasAlibi>
void launch(const CudaContext& context, ForwardArgs args) {
    static SharedMemoryLimit limit;
    const auto kernel = forward_kernel<kType, HS, kHasAlibi>;
    constexpr size_t kBytes = sizeof(ForwardShared<HS>);
    static_assert(kBytes <= kMostSharedBytesSm90);
    limit.raise(context, kernel, kBytes);
    const int grid = std::min(args.total_blocks, context.properties.multiProcessorCount);
    args.tickets = ticket_counter(context);
    kernel<<<static_cast<unsigned>(grid), ForwardShape<HS>::kThreads, kBytes, context.stream>>>(args);
    CUDA_CHECK_LAUNCH("attention_forward (sm90)");
}

template <int HS>
void launch_size(const CudaContext& context, const AttentionForward& a) {
    using Shape = ForwardShape<HS>;
    const int64_t N = a.q.shape[0], NKV = a.k.shape[1], G = a.q.shape[1] / NKV;
    const int64_t units = (N + Shape::kUnitRows - 1) / Shape::kUnitRows * G;
    const int64_t blocks_per_head = (units + Shape::kConsumers - 1) / Shape::kConsumers;
    CHECK(blocks_per_head * NKV < int64_t{1} << 30, "attention on CUDA: q is ", a.q.describe(), ", too large");
    const ForwardArgs args = {
        .q = tensor_map("q", a.q, Shape::kUnitRows),
        .k = tensor_map("k", a.k, Shape::kKeys),
        .v = tensor_map("v", a.v, Shape::kKeys),
        .out = tensor_map("out", a.out, Shape::kUnitRows),
        .lse = a.lse.get<float>(),
        .slopes = slopes_of(a.slopes),
        .first_key = a.mask.first_key.get<int32_t>(),
        .end_key = a.mask.end_key.get<int32_t>(),
        .tickets = nullptr,
        .N = static_cast<int>(N),
        .NKV = static_cast<int>(NKV),
        .G = static_cast<int>(G),
        .blocks_per_head = static_cast<int>(blocks_per_head),
        .total_blocks = static_cast<int>(blocks_per_head * NKV),
        .inverse_scale = static_cast<float>(1 / a.scale),
        .scale_log2 = static_cast<float>(a.scale * kLog2E),
    };
    with_type_and_alibi(a.q.dtype, args.slopes != nullptr, [&](auto type, auto has_alibi) {
        launch<decltype(type)::value, HS, decltype(has_alibi)::value>(context, args);
    });
}

}  // namespace

bool is_hopper(const Device& device) {
    const cudaDeviceProp& properties = device.context().properties;
    return properties.major == 9 && properties.minor == 0;
}

// bf16 and fp16, both head sizes, with and without ALiBi: 8 kernels.
void attention_forward_sm90_cuda(const Device& device, const AttentionForward& a) {
    check_size(a.q);
    if (a.q.shape[0] == 0 || a.q.shape[1] == 0) return;
    if (a.q.shape[2] == 64)
        launch_size<64>(device.context(), a);
    else
        launch_size<128>(device.context(), a);
}

}  // namespace ingot
