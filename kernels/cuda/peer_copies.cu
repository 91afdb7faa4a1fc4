#include "kernels/cuda/peer_copies.h"

#include <cuda.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <type_traits>

#include "kernels/cuda/context.h"

namespace ingot {

namespace {

constexpr int kThreads = 256, kBlocks = 128;

// Flags of one slot that each peer writes into this rank's memory, by rank. `ready`: the peer's part is there. `taken`:
// the peer has taken this rank's part of the last time.
enum Flag { kReduceReady, kReduceTaken, kGatherReady, kGatherTaken, kNumFlags };

struct Driver {
    CUresult (*write)(CUstream, CUdeviceptr, cuuint32_t, unsigned int);
    CUresult (*wait)(CUstream, CUdeviceptr, cuuint32_t, unsigned int);
    CUresult (*range)(CUdeviceptr*, size_t*, CUdeviceptr);
};
const Driver& driver() {
    static const Driver found = [] {
        Driver functions{};
        const auto find = [](auto& function, const char* name) {
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(cuda_driver_function(name));
        };
        find(functions.write, "cuStreamWriteValue32");
        find(functions.wait, "cuStreamWaitValue32");
        find(functions.range, "cuMemGetAddressRange");
        return functions;
    }();
    return found;
}

void check_driver(const char* function, CUresult result) {
    if (result != CUDA_SUCCESS)
        throw CudaError(join("the CUDA driver refuses ", function, " (error ", static_cast<int>(result), ")"));
}

// Machines differ in it, and all processes of one agree.
std::string machine() {
    std::string boot;
    std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
    char host[256] = "";
    (void)gethostname(host, sizeof host - 1);
    return boot + "/" + host;
}

struct Handle {
    char machine[320];
    cudaIpcMemHandle_t memory, flags;
    int64_t offsets[4];  // of the tensors, in bytes
};

// own (n) = the sum over the ranks, in their order. The other ranks' parts stand in the same order, `stride` elements
// apart. n is a multiple of four.
__global__ void sum_in_order_kernel(float* own, const float* parts, int64_t n, int64_t stride, int num_ranks,
                                    int rank) {
    const int64_t step = int64_t{gridDim.x} * blockDim.x;
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n / 4; i += step) {
        float4 total{};
        for (int r = 0; r < num_ranks; ++r) {
            const float* const source = r == rank ? own : parts + (r < rank ? r : r - 1) * stride;
            const float4 part = reinterpret_cast<const float4*>(source)[i];
            total = r == 0 ? part : float4{total.x + part.x, total.y + part.y, total.z + part.z, total.w + part.w};
        }
        reinterpret_cast<float4*>(own)[i] = total;
    }
}

}  // namespace

struct PeerCopies::State {
    Device device;
    cudaStream_t stream;
    int num_ranks, rank, num_slots;
    std::vector<Tensor> tensors;
    float* staging;               // (kNumChunks, num_ranks - 1, chunk)
    int64_t chunk;                // elements
    std::vector<int> peers = {};  // the other ranks, beginning with the next: so that not all ask the same one first
    std::shared_ptr<void> flags = nullptr;
    std::vector<uint32_t> ones = {};                              // as many as flags
    cudaStream_t other = nullptr;                                 // for release(): waits for nothing
    cudaStream_t adding = nullptr;                                // of the sums, while the collective stream copies
    cudaEvent_t copied[kNumChunks] = {}, added[kNumChunks] = {};  // of each chunk of the staging memory
    std::vector<char*> memory = {};        // of each rank: its allocation, as this process sees it
    std::vector<uint32_t*> flags_of = {};  // of each rank
    std::vector<Handle> handles = {};

    ~State() {
        for (const cudaEvent_t event : {copied[0], copied[1], added[0], added[1]})
            if (event != nullptr) (void)cudaEventDestroy(event);
        for (const cudaStream_t each : {other, adding})
            if (each != nullptr) (void)cudaStreamDestroy(each);
    }
    uint32_t* flag(int of_rank, Flag which, int slot, int from) const {
        return flags_of[static_cast<size_t>(of_rank)] + (static_cast<int64_t>(which) * num_slots + slot) * num_ranks +
               from;
    }
    // Tells the peer, once all that stands before in the stream is done.
    void tell(int peer, Flag which, int slot) const {
        check_driver("cuStreamWriteValue32",
                     driver().write(stream, reinterpret_cast<CUdeviceptr>(flag(peer, which, slot, rank)), 1, 0));
    }
    // Waits until the peer has told, and forgets it.
    void await(int peer, Flag which, int slot) const {
        const auto own = reinterpret_cast<CUdeviceptr>(flag(rank, which, slot, peer));
        check_driver("cuStreamWaitValue32", driver().wait(stream, own, 1, CU_STREAM_WAIT_VALUE_EQ));
        check_driver("cuStreamWriteValue32", driver().write(stream, own, 0, 0));
    }
    char* tensor_of(int of_rank, int tensor) const {
        return memory[static_cast<size_t>(of_rank)] +
               handles[static_cast<size_t>(of_rank)].offsets[static_cast<size_t>(tensor)];
    }
    void copy(void* destination, const void* source, int64_t bytes) const {
        CUDA_CHECK(cudaMemcpyAsync(destination, source, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream));
    }
};

PeerCopies::PeerCopies(const Device& device, int num_ranks, int rank, std::span<const Tensor> tensors, int num_slots,
                       const Tensor& staging)
    : state_(new State{.device = device,
                       .stream = device.context().stream_of(Stream::collective),
                       .num_ranks = num_ranks,
                       .rank = rank,
                       .num_slots = num_slots,
                       .tensors = {tensors.begin(), tensors.end()},
                       .staging = static_cast<float*>(staging.data),
                       .chunk = chunk_bytes(num_ranks) / static_cast<int64_t>(sizeof(float))}) {
    CHECK(num_ranks == 1 || (staging.data != nullptr && staging.bytes() >= staging_bytes(num_ranks)),
          "the staging memory of ", num_ranks, " ranks is ", staging.describe());
    for (int distance = 1; distance < num_ranks; ++distance) state_->peers.push_back((rank + distance) % num_ranks);
    const int64_t num_flags = static_cast<int64_t>(kNumFlags) * num_slots * num_ranks;
    state_->flags = device.allocate(static_cast<size_t>(num_flags) * sizeof(uint32_t));
    // Nothing was given yet, so that the first of each slot need not wait until it was taken.
    std::vector<uint32_t> initial(static_cast<size_t>(num_flags), 0);
    const auto per_flag = static_cast<size_t>(num_slots) * static_cast<size_t>(num_ranks);
    for (const Flag taken : {kReduceTaken, kGatherTaken})
        std::fill_n(initial.begin() + static_cast<int64_t>(taken * per_flag), per_flag, 1u);
    CUDA_CHECK(
        cudaMemcpy(state_->flags.get(), initial.data(), initial.size() * sizeof(uint32_t), cudaMemcpyHostToDevice));
    state_->ones.assign(initial.size(), 1u);
    CUDA_CHECK(cudaStreamCreateWithFlags(&state_->other, cudaStreamNonBlocking));
    int priority = 0;
    CUDA_CHECK(cudaStreamGetPriority(state_->stream, &priority));
    CUDA_CHECK(cudaStreamCreateWithPriority(&state_->adding, cudaStreamNonBlocking, priority));
    for (int chunk = 0; chunk < kNumChunks; ++chunk)
        for (cudaEvent_t* const event : {&state_->copied[chunk], &state_->added[chunk]})
            CUDA_CHECK(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
}

void PeerCopies::close() {
    for (size_t peer = 0; peer < state_->memory.size(); ++peer) {
        if (static_cast<int>(peer) == state_->rank) continue;
        if (state_->memory[peer] != nullptr) (void)cudaIpcCloseMemHandle(state_->memory[peer]);
        if (state_->flags_of[peer] != nullptr) (void)cudaIpcCloseMemHandle(state_->flags_of[peer]);
    }
    state_->memory.clear();
    state_->flags_of.clear();
    (void)cudaGetLastError();
}

PeerCopies::~PeerCopies() {
    close();
}

void PeerCopies::release() {
    (void)cudaSetDevice(state_->device.context().index);
    (void)cudaMemcpyAsync(state_->flags.get(), state_->ones.data(), state_->ones.size() * sizeof(uint32_t),
                          cudaMemcpyHostToDevice, state_->other);
    (void)cudaStreamSynchronize(state_->other);
}

std::string PeerCopies::handle() const {
    Handle own{};
    const std::string here = machine();
    std::snprintf(own.machine, sizeof own.machine, "%s", here.c_str());
    CHECK(state_->tensors.size() <= std::size(own.offsets), state_->tensors.size(), " tensors to be shared");
    CUdeviceptr base = 0;
    size_t bytes = 0;
    for (size_t i = 0; i < state_->tensors.size(); ++i) {
        const auto at = reinterpret_cast<CUdeviceptr>(state_->tensors[i].data);
        CUdeviceptr of_tensor = 0;
        check_driver("cuMemGetAddressRange", driver().range(&of_tensor, &bytes, at));
        CHECK(base == 0 || base == of_tensor, "tensors of two allocations are to be shared");
        base = of_tensor;
        own.offsets[i] = static_cast<int64_t>(at - base);
    }
    const cudaError_t memory = cudaIpcGetMemHandle(&own.memory, reinterpret_cast<void*>(base));
    const cudaError_t flags = cudaIpcGetMemHandle(&own.flags, state_->flags.get());
    if (memory != cudaSuccess || flags != cudaSuccess) {
        (void)cudaGetLastError();
        return "";
    }
    return std::string(reinterpret_cast<const char*>(&own), sizeof own);
}

bool PeerCopies::open(const std::vector<std::string>& handles) {
    State& s = *state_;
    const std::string here = machine();
    s.handles.resize(handles.size());
    for (size_t peer = 0; peer < handles.size(); ++peer) {
        if (handles[peer].size() != sizeof(Handle)) return false;
        std::memcpy(&s.handles[peer], handles[peer].data(), sizeof(Handle));
        s.handles[peer].machine[sizeof s.handles[peer].machine - 1] = 0;
        if (here != s.handles[peer].machine) return false;
    }
    s.memory.assign(handles.size(), nullptr);
    s.flags_of.assign(handles.size(), nullptr);
    for (size_t peer = 0; peer < handles.size(); ++peer) {
        if (static_cast<int>(peer) == s.rank) {
            s.memory[peer] = static_cast<char*>(s.tensors[0].data) - s.handles[peer].offsets[0];
            s.flags_of[peer] = static_cast<uint32_t*>(s.flags.get());
            continue;
        }
        void *memory = nullptr, *flags = nullptr;
        const cudaError_t first = cudaIpcOpenMemHandle(&memory, s.handles[peer].memory, cudaIpcMemLazyEnablePeerAccess);
        s.memory[peer] = static_cast<char*>(memory);
        const cudaError_t second =
            first != cudaSuccess ? first
                                 : cudaIpcOpenMemHandle(&flags, s.handles[peer].flags, cudaIpcMemLazyEnablePeerAccess);
        s.flags_of[peer] = static_cast<uint32_t*>(flags);
        if (second != cudaSuccess) {
            (void)cudaGetLastError();
            return false;
        }
    }
    return true;
}

void PeerCopies::reduce_scatter(int tensor, int slot, std::span<const Range> ranges) {
    const State& s = *state_;
    for (const int peer : s.peers) {
        s.await(peer, kReduceTaken, slot);
        s.tell(peer, kReduceReady, slot);
    }
    for (const int peer : s.peers) s.await(peer, kReduceReady, slot);
    int64_t num_chunks = 0;
    for (const Range& range : ranges) {
        if (range.rank != s.rank || s.peers.empty()) continue;
        CHECK(range.begin % 4 == 0 && range.end % 4 == 0, "elements ", range.begin, " to ", range.end,
              " are to be summed by vectors of four");
        for (int64_t begin = range.begin; begin < range.end; begin += s.chunk, ++num_chunks) {
            const int64_t count = std::min(s.chunk, range.end - begin);
            const int64_t index = num_chunks % kNumChunks;
            float* const parts = s.staging + index * (s.num_ranks - 1) * s.chunk;
            if (num_chunks >= kNumChunks) CUDA_CHECK(cudaStreamWaitEvent(s.stream, s.added[index]));
            for (const int peer : s.peers)
                s.copy(parts + (peer < s.rank ? peer : peer - 1) * s.chunk,
                       reinterpret_cast<float*>(s.tensor_of(peer, tensor)) + begin,
                       count * static_cast<int64_t>(sizeof(float)));
            CUDA_CHECK(cudaEventRecord(s.copied[index], s.stream));
            CUDA_CHECK(cudaStreamWaitEvent(s.adding, s.copied[index]));
            sum_in_order_kernel<<<kBlocks, kThreads, 0, s.adding>>>(
                reinterpret_cast<float*>(s.tensor_of(s.rank, tensor)) + begin, parts, count, s.chunk, s.num_ranks,
                s.rank);
            CUDA_CHECK_LAUNCH("sum of the ranks' gradients");
            CUDA_CHECK(cudaEventRecord(s.added[index], s.adding));
        }
    }
    // The others may go on once everything is copied; this rank's sums are there once everything is added.
    for (const int peer : s.peers) s.tell(peer, kReduceTaken, slot);
    if (num_chunks > 0) CUDA_CHECK(cudaStreamWaitEvent(s.stream, s.added[(num_chunks - 1) % kNumChunks]));
}

void PeerCopies::all_gather(int tensor, int slot, std::span<const Range> ranges) {
    const State& s = *state_;
    const int64_t element = size_of(s.tensors[static_cast<size_t>(tensor)].dtype);
    for (const int peer : s.peers) {
        s.await(peer, kGatherTaken, slot);
        for (const Range& range : ranges)
            if (range.rank == s.rank)
                s.copy(s.tensor_of(peer, tensor) + range.begin * element,
                       s.tensor_of(s.rank, tensor) + range.begin * element, (range.end - range.begin) * element);
        s.tell(peer, kGatherReady, slot);
    }
    for (const int peer : s.peers) {
        s.await(peer, kGatherReady, slot);
        s.tell(peer, kGatherTaken, slot);
    }
}

}  // namespace ingot
