// Ranks with a GPU each. On one machine whose GPUs reach each other's memory, their copy engines exchange gradients and
// weights (kernels/cuda/peer_copies.h); else, and for all that is small, NCCL does. INGOT_COLLECTIVES=nccl in the
// environment leaves all of it to NCCL.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "src/parallel/control_plane.h"
#include "src/parallel/ranks.h"
#include "src/parallel/world.h"

namespace ingot {

// Returns how many bytes of each GPU's memory their collectives need: Ranks::Shared::staging. What NCCL itself
// allocates is not among them.
int64_t staging_bytes_of_gpu_ranks(int64_t num_ranks);

// Readies a process that has no threads and no page-locked memory yet for its GPU: binds it to the CPUs and the memory
// near that (host_binding.h), and sets what NCCL needs if its sums are to have the same bits in each run. Returns what
// was bound, or why nothing was, for people; empty where there is nothing to say.
std::string prepare_for_gpu(const World& world, bool deterministic);

// The GPUs themselves are connected by Ranks::connect(). When a rank fails, what is under way is ended, so that no wait
// for the device lasts for ever. `bound` is what prepare_for_gpu() returned.
std::unique_ptr<Ranks> gpu_ranks(const World& world, std::shared_ptr<ControlPlane> control, std::string bound);

}  // namespace ingot
