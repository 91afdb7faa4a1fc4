// The processes that train one model together, each with a device of its own: the one seam through which they meet. A
// run on one device is one rank, whose collectives do nothing, so that no caller asks how many there are.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/device.h"
#include "kernels/core/step.h"
#include "src/parallel/partition.h"

namespace ingot {

// A rank died, stopped answering, or cannot be reached; the text names it.
class PeerError : public Error {
  public:
    explicit PeerError(const std::string& what) : Error(kExitPeer, what) {}
};

class Ranks {
  public:
    virtual ~Ranks() = default;

    virtual int64_t size() const = 0;
    virtual int64_t rank() const = 0;
    // The index of the GPU, among those of its machine, that this rank computes on.
    virtual int local_rank() const = 0;
    // The first rank prints, and writes what there is one of.
    bool is_first() const { return rank() == 0; }

    // The memory of this rank that collectives of buckets run on, in one allocation.
    struct Shared {
        Tensor gradients, weights;
        int64_t num_buckets;
        Tensor staging;  // uint8, for what is under way: as many bytes as staging_bytes() says
    };
    // Connects the devices, before the first collective; waits for all ranks. Returns how they are connected, for
    // people; empty where there is nothing to say.
    virtual std::string connect(const Device&, const Shared&) { return ""; }
    // Undoes connect(), so that the memory can be freed: afterwards no other rank has it open. Waits for all ranks,
    // unless one has failed. Never throws.
    virtual void disconnect() noexcept {}
    // Throws PeerError if a rank has failed: what the device has computed since is worthless.
    virtual void check() const {}
    // Ends this rank for a reason that the others are told. Nothing can be exchanged any more.
    virtual void leave(const std::string& /*reason*/) {}

    // ---- Collectives over the memory of `device`. The host does not wait (on the CPU they are done on return). All
    // ranks call the same ones in the same order. `bucket` has the ranges of one bucket (Partition::bucket()), `flat`
    // is a flat space of the parameter table, contiguous.
    //
    // Starts to sum the bucket over the ranks, of fp32 gradients, after what the compute stream has been given so far:
    // the ranges of this rank become the sums, taken in the order of the ranks; the others hold nothing afterwards.
    virtual void start_reduce_scatter(const Device& device, std::span<const OwnedRange> bucket, const Tensor& flat) = 0;
    // The same, and every range becomes the sum on every rank.
    virtual void start_all_reduce(const Device& device, std::span<const OwnedRange> bucket, const Tensor& flat) = 0;
    // Makes the work that the compute stream is given from now on wait for all sums that were started.
    virtual void finish_reduce(const Device& device) = 0;
    // Starts to give every range of the bucket to all ranks, after what the compute stream has been given so far.
    virtual void start_all_gather(const Device& device, std::span<const OwnedRange> bucket, const Tensor& flat) = 0;
    // Makes the work that the compute stream is given from now on wait for the last all-gather of this bucket.
    virtual void finish_all_gather(const Device& device, std::span<const OwnedRange> bucket) = 0;
    // Every rank's sums become those of all, in the order of the compute stream.
    virtual void all_reduce(const Device& device, StepSums* sums) = 0;

    // ---- Agreement of the hosts, which wait for each other. Each channel may be used by a thread of its own; within
    // one, all ranks call the same functions in the same order. Throws PeerError.
    enum class Channel { loop, save };  // the training loop; the thread that writes a checkpoint
    // Returns what each rank passed, by rank.
    virtual std::vector<std::string> exchange(const std::string& text, Channel channel = Channel::loop) = 0;
    // Returns the largest of what the ranks pass.
    int64_t agree(int64_t value);
    // Returns what the first rank passes.
    std::string from_first(const std::string& text) { return exchange(is_first() ? text : "")[0]; }
};

std::unique_ptr<Ranks> one_rank();

// Returns "rank 3" or "ranks 0, 1, 2"; of many the first 16: "ranks 0, 1, 2 and 500 more", say.
std::string list_of_ranks(const std::vector<int64_t>& ranks);
// Returns what the ranks say, given by rank, as one line: "rank 0: a; ranks 1, 2: b". An empty text says nothing.
std::string summary_of_ranks(const std::vector<std::string>& texts);

}  // namespace ingot
