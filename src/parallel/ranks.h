// The processes that train one model together, each with a device of its own: the one seam through which they meet. A
// run on one device is one rank, whose collectives do nothing, so that no caller asks how many there are.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/core/device.h"
#include "kernels/core/step.h"

namespace ingot {

class Ranks {
  public:
    virtual ~Ranks() = default;

    virtual int64_t size() const = 0;
    virtual int64_t rank() const = 0;
    // The index of the GPU, among those of its machine, that this rank computes on.
    virtual int local_rank() const = 0;
    // The first rank prints, and writes what there is one of.
    bool is_first() const { return rank() == 0; }

    // Collectives over the memory of `device`, in the order of its compute stream; the host does not wait. All ranks
    // call the same ones in the same order. Sums are taken in the order of the ranks.
    //
    // flat (n) fp32: the part that this rank owns becomes the sum over all ranks; the rest holds nothing afterwards.
    virtual void reduce_scatter(const Device& device, const Tensor& flat) = 0;
    // flat (n): every part becomes that of the rank which owns it.
    virtual void all_gather(const Device& device, const Tensor& flat) = 0;
    // Every rank's sums become those of all.
    virtual void all_reduce(const Device& device, StepSums* sums) = 0;

    // The largest of what the ranks pass. The host waits for all of them.
    virtual int64_t agree(int64_t value) = 0;
};

std::unique_ptr<Ranks> one_rank();

}  // namespace ingot
