// A micro-batch in the device's memory, and its copy from the host.
#pragma once

#include "kernels/core/device.h"
#include "src/data/rows.h"
#include "src/model.h"

namespace ingot {

// Planned for N tokens; batch() gives the first n of them.
class BatchBuffers {
  public:
    BatchBuffers(int64_t max_tokens, MemoryPlan* plan);
    MicroBatch upload(const Device& device, const HostBatch& host) const;

  private:
    MicroBatch buffers_;
};

}  // namespace ingot
