// Collectives of GPUs by NCCL. No header of NCCL or CUDA is needed here. In a build without NCCL or without CUDA
// without_nccl.cpp stands in, and has_nccl() says so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/core/device.h"
#include "kernels/core/step.h"

namespace ingot {

// Returns whether this program was built with NCCL.
bool has_nccl();
// "2.28.9": the version of the library that is loaded; empty without one.
std::string nccl_version();
// Lets NCCL have one algorithm and protocol, so that sums have the same bits in each run. NCCL_ALGO and NCCL_PROTO are
// stronger where they are set already. NCCL has no other setting for it than these variables of the environment, which
// a process with threads must not change.
void make_nccl_deterministic();
// Returns an id that nccl_connect() of all ranks must be given, as bytes.
std::string nccl_new_id();

// The connection of this rank's GPU to those of the other ranks (ncclComm_t). All work is put into the device's
// Stream::collective, in the order of the calls, which must be the same on all ranks; the host does not wait.
// Every function but abort() throws CudaError where NCCL or CUDA reports an error.
class NcclConnection {
  public:
    // Waits for all ranks.
    NcclConnection(const Device& device, const std::string& id, int num_ranks, int rank);
    ~NcclConnection();
    NcclConnection(const NcclConnection&) = delete;
    NcclConnection& operator=(const NcclConnection&) = delete;

    // fp32, in place: `data` has num_ranks parts of `count` elements; this rank's part becomes the sum of all ranks'.
    void reduce_scatter(float* data, size_t count);
    // fp32, in place.
    void all_reduce(float* data, size_t count);
    // In place: `data` has num_ranks parts of `bytes`; all become what their rank has there.
    void all_gather(void* data, size_t bytes);

    // Between the two, sends and receives are collected and then run as one.
    void begin_group();
    void end_group();
    void send(const void* data, size_t bytes, int to);
    void receive(void* data, size_t bytes, int from);

    // `sums` on the device become their sums over the ranks, in the order of the ranks.
    void all_reduce(StepSums* sums);
    // out (n) fp32 = the sum of in[rank * stride] (n) over the ranks, in their order.
    void sum(float* out, const float* in, size_t n, size_t stride);

    // Ends what is running and all that comes: kernels that wait for a peer return, and what they wrote is worthless.
    // From any thread; the connection is of no use afterwards.
    void abort();

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace ingot
