#include "kernels/cuda/nccl.h"

#include <nccl.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "kernels/cuda/context.h"

namespace ingot {

namespace {

void check(const char* function, ncclResult_t result) {
    if (result == ncclSuccess) return;
    throw CudaError(join("NCCL: ", function, " answers \"", ncclGetErrorString(result), "\" (",
                         ncclGetLastError(nullptr), "): NCCL_DEBUG=INFO shows more"));
}
#define NCCL_CHECK(call) check(#call, call)

// One thread is enough for few ranks and three numbers of each.
__global__ void sum_step_sums_kernel(StepSums* sums, const StepSums* of_ranks, int num_ranks) {
    StepSums total;
    for (int rank = 0; rank < num_ranks; ++rank) {
        total.loss += of_ranks[rank].loss;
        total.targets += of_ranks[rank].targets;
        total.squared_norm += of_ranks[rank].squared_norm;
    }
    *sums = total;
}

__global__ void sum_over_ranks_kernel(float* out, const float* in, size_t n, size_t stride, int num_ranks) {
    const size_t step = size_t{gridDim.x} * blockDim.x;
    for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step) {
        float total = in[i];
        for (int rank = 1; rank < num_ranks; ++rank) total += in[static_cast<size_t>(rank) * stride + i];
        out[i] = total;
    }
}

}  // namespace

bool has_nccl() {
    return true;
}

std::string nccl_version() {
    int version = 0;
    if (ncclGetVersion(&version) != ncclSuccess) return "";
    return join(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

// NCCL reads them when the communicator is made. Ring sums each element in one order, whatever the timing.
void make_nccl_deterministic() {
    setenv("NCCL_ALGO", "Ring", 0);
    setenv("NCCL_PROTO", "Simple", 0);
}

std::string nccl_new_id() {
    ncclUniqueId id;
    NCCL_CHECK(ncclGetUniqueId(&id));
    return std::string(id.internal, sizeof id.internal);
}

struct NcclConnection::State {
    Device device;
    cudaStream_t stream;
    int num_ranks, rank;
    ncclComm_t comm = nullptr;
    std::shared_ptr<void> of_ranks;  // a StepSums of each rank
    std::atomic<bool> is_aborted = false;
};

NcclConnection::NcclConnection(const Device& device, const std::string& id, int num_ranks, int rank)
    : state_(new State{.device = device,
                       .stream = device.context().stream_of(Stream::collective),
                       .num_ranks = num_ranks,
                       .rank = rank,
                       .of_ranks = device.allocate(static_cast<size_t>(num_ranks) * sizeof(StepSums))}) {
    ncclUniqueId unique;
    CHECK(id.size() == sizeof unique.internal, "an id of NCCL with ", id.size(), " bytes");
    std::memcpy(unique.internal, id.data(), sizeof unique.internal);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    NCCL_CHECK(ncclCommInitRankConfig(&state_->comm, num_ranks, unique, rank, &config));
}

NcclConnection::~NcclConnection() {
    if (state_->comm != nullptr && !state_->is_aborted) (void)ncclCommDestroy(state_->comm);
}

void NcclConnection::reduce_scatter(float* data, size_t count) {
    float* const own = data + static_cast<size_t>(state_->rank) * count;
    NCCL_CHECK(ncclReduceScatter(data, own, count, ncclFloat32, ncclSum, state_->comm, state_->stream));
}

void NcclConnection::all_reduce(float* data, size_t count) {
    NCCL_CHECK(ncclAllReduce(data, data, count, ncclFloat32, ncclSum, state_->comm, state_->stream));
}

void NcclConnection::all_gather(void* data, size_t bytes) {
    const char* const own = static_cast<char*>(data) + static_cast<size_t>(state_->rank) * bytes;
    NCCL_CHECK(ncclAllGather(own, data, bytes, ncclInt8, state_->comm, state_->stream));
}

void NcclConnection::begin_group() {
    NCCL_CHECK(ncclGroupStart());
}

void NcclConnection::end_group() {
    NCCL_CHECK(ncclGroupEnd());
}

void NcclConnection::send(const void* data, size_t bytes, int to) {
    NCCL_CHECK(ncclSend(data, bytes, ncclInt8, to, state_->comm, state_->stream));
}

void NcclConnection::receive(void* data, size_t bytes, int from) {
    NCCL_CHECK(ncclRecv(data, bytes, ncclInt8, from, state_->comm, state_->stream));
}

void NcclConnection::all_reduce(StepSums* sums) {
    auto* const of_ranks = static_cast<StepSums*>(state_->of_ranks.get());
    NCCL_CHECK(ncclAllGather(sums, of_ranks, sizeof(StepSums), ncclInt8, state_->comm, state_->stream));
    sum_step_sums_kernel<<<1, 1, 0, state_->stream>>>(sums, of_ranks, state_->num_ranks);
    CUDA_CHECK(cudaGetLastError());
}

void NcclConnection::sum(float* out, const float* in, size_t n, size_t stride) {
    constexpr int kThreads = 256, kBlocks = 64;  // few, since GEMMs run beside it
    sum_over_ranks_kernel<<<kBlocks, kThreads, 0, state_->stream>>>(out, in, n, stride, state_->num_ranks);
    CUDA_CHECK(cudaGetLastError());
}

void NcclConnection::abort() {
    if (state_->is_aborted.exchange(true)) return;
    (void)ncclCommAbort(state_->comm);
}

}  // namespace ingot
