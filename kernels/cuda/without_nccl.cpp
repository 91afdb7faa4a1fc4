// Stands in for nccl.cu and peer_copies.cu in a build without NCCL or without CUDA.
#include "kernels/cuda/nccl.h"
#include "kernels/cuda/peer_copies.h"

namespace ingot {

namespace {

[[noreturn]] void refuse() {
    throw UserError("this build has no NCCL, which several GPUs need: configure with -DINGOT_NCCL_ROOT=DIR");
}

}  // namespace

struct NcclConnection::State {};
struct PeerCopies::State {};

// clang-format off
bool has_nccl() { return false; }
std::string nccl_version() { return ""; }
void make_nccl_deterministic() {}
std::string nccl_new_id() { refuse(); }
NcclConnection::NcclConnection(const Device&, const std::string&, int, int) { refuse(); }
NcclConnection::~NcclConnection() = default;
void NcclConnection::reduce_scatter(float*, size_t) { refuse(); }
void NcclConnection::all_reduce(float*, size_t) { refuse(); }
void NcclConnection::all_gather(void*, size_t) { refuse(); }
void NcclConnection::begin_group() { refuse(); }
void NcclConnection::end_group() { refuse(); }
void NcclConnection::send(const void*, size_t, int) { refuse(); }
void NcclConnection::receive(void*, size_t, int) { refuse(); }
void NcclConnection::all_reduce(StepSums*) { refuse(); }
void NcclConnection::sum(float*, const float*, size_t, size_t) { refuse(); }
void NcclConnection::abort() {}
PeerCopies::PeerCopies(const Device&, int, int, std::span<const Tensor>, int, const Tensor&) { refuse(); }
PeerCopies::~PeerCopies() = default;
void PeerCopies::close() {}
std::string PeerCopies::handle() const { refuse(); }
bool PeerCopies::open(const std::vector<std::string>&) { refuse(); }
void PeerCopies::reduce_scatter(int, int, std::span<const Range>) { refuse(); }
void PeerCopies::all_gather(int, int, std::span<const Range>) { refuse(); }
void PeerCopies::release() {}
// clang-format on

}  // namespace ingot
