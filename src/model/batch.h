// The copies of micro-batches to the device.
#pragma once

#include <array>

#include "kernels/core/device.h"
#include "src/data/host_batch.h"
#include "src/model/model.h"

namespace ingot {

// Two slots that take turns, each with host memory and device memory, so that one batch is filled and copied while the
// device still computes with the other:
//
//   fill_batch(..., batches.next());
//   const MicroBatch batch = batches.upload();
//   ... launch the work that reads `batch` ...
class BatchBuffers {
  public:
    static constexpr int kSlots = 2;
    // Planned for N tokens; a batch may have fewer. Without `host_plan` the host memory is allocated when next() is
    // first filled, outside of any plan: for whoever fills batches elsewhere.
    BatchBuffers(const Device& device, int64_t max_tokens, MemoryPlan* plan, MemoryPlan* host_plan = nullptr);
    BatchBuffers(const BatchBuffers&) = delete;  // the plan knows where the tensors are
    BatchBuffers& operator=(const BatchBuffers&) = delete;

    // Goes on to the next slot, and waits until the copy that read its host memory last has ended. Work that reads the
    // batch of the slot before must have been launched.
    void advance();
    // Advances, and returns the slot's host memory for the caller to fill.
    HostBatch* next();
    // Starts the copy of what next() gave; work that is launched from now on waits for it.
    MicroBatch upload() { return upload(slots_[static_cast<size_t>(current_)].host); }
    // Copies a batch that was filled elsewhere, in memory that this device can copy from; it is read until the
    // call of advance() after the next one returns.
    MicroBatch upload(const HostBatch& batch);
    // Returns the slot that upload() used. The memory of a slot never moves.
    int slot() const { return current_; }

  private:
    struct Slot {
        explicit Slot(const Device& device) : host(device), copied(device), read(device) {}
        HostBatch host;
        Tensor arrays;             // (kArrays, N) int32 on the device
        DeviceEvent copied, read;  // the host memory is free again; the device memory is
    };
    Device device_;
    int current_ = 0;
    std::array<Slot, kSlots> slots_;
};

}  // namespace ingot
