// Ranks with a GPU each, whose collectives NCCL runs.
#pragma once

#include <memory>

#include "src/parallel/control_plane.h"
#include "src/parallel/ranks.h"
#include "src/parallel/world.h"

namespace ingot {

// The GPUs themselves are connected by Ranks::connect(). When a rank fails, what NCCL runs is ended, so that no wait
// for the device lasts for ever.
std::unique_ptr<Ranks> nccl_ranks(const World& world, std::shared_ptr<ControlPlane> control);

}  // namespace ingot
