// Collectives among the GPUs of one machine by their copy engines, which leave all multiprocessors to the GEMMs that
// run beside them. Each GPU reads from and writes to the memory of the others over NVLink or PCIe; the GPUs wait for
// each other by flags in memory, so that no host is involved.
//
// Sums are taken in the order of the ranks, in fp32: the bits do not depend on timing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/device.h"

namespace ingot {

class PeerCopies {
  public:
    // Elements [begin, end) of a flat tensor that a rank owns. Of fp32, both are multiples of four.
    struct Range {
        int rank;
        int64_t begin, end;
    };

    // A reduce-scatter copies chunks of what the other ranks have into memory of this rank, two from each, so that one
    // is added while the next is copied. They have at most 8 MiB each, and 64 MiB all together.
    static constexpr int kNumChunks = 2;
    static constexpr int64_t chunk_bytes(int num_ranks) {
        constexpr int64_t kMiB = int64_t{1} << 20, kMultiple = 256;
        return std::min(8 * kMiB, 64 * kMiB / (kNumChunks * std::max(num_ranks - 1, 1)) / kMultiple * kMultiple);
    }
    static constexpr int64_t staging_bytes(int num_ranks) {
        return kNumChunks * (num_ranks - 1) * chunk_bytes(num_ranks);
    }

    // `tensors`, of one allocation, are the memory that collectives run on; num_slots of them may be under way at a
    // time (reduce-scatters and all-gathers count apart). `staging` has at least staging_bytes() bytes.
    PeerCopies(const Device& device, int num_ranks, int rank, std::span<const Tensor> tensors, int num_slots,
               const Tensor& staging);
    ~PeerCopies();
    PeerCopies(const PeerCopies&) = delete;
    PeerCopies& operator=(const PeerCopies&) = delete;

    // Returns the bytes that the other ranks need for open(); none where memory cannot be shared.
    std::string handle() const;
    // Opens the memory of the others, given their handles by rank. Returns false if that cannot be: a rank is on
    // another machine, or its GPU cannot be reached from this one.
    bool open(const std::vector<std::string>& handles);

    // Closes the memory of the others, when the collectives have ended. No rank may free its tensors, or destroy this
    // object, before all ranks have called it: CUDA leaves undefined what comes of memory that others still have open.
    void close();

    // Both run on Stream::collective; all ranks call them in the same order. `tensor` is the index of one of the
    // tensors. A rank may write to a tensor again once a later collective of any slot has ended in which all ranks
    // wait for each other: this rank's part of a sum has been read by then.
    //
    // Each range becomes the sum over the ranks where its owner is, fp32; elsewhere it stays.
    void reduce_scatter(int tensor, int slot, std::span<const Range> ranges);
    // Each range becomes, everywhere, what it is where its owner is.
    void all_gather(int tensor, int slot, std::span<const Range> ranges);

    // Lets this GPU's waits for others end, whatever they do, from any thread: one of them has failed, and what is
    // computed from now on is worthless. Waits that begin later need another call.
    void release();

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace ingot
