// Ranks on the CPU: each pair of processes has a TCP connection, over which the collectives run.
#pragma once

#include <memory>

#include "src/parallel/control_plane.h"
#include "src/parallel/ranks.h"
#include "src/parallel/world.h"

namespace ingot {

// Connects to all other ranks, which call it at the same time. Every collective is complete when it returns, and its
// sums are taken in the order of the ranks, so that the bits do not depend on who is faster. Throws PeerError.
std::unique_ptr<Ranks> cpu_ranks(const World& world, std::shared_ptr<ControlPlane> control);

// The ranks of a plan: there are so many, this is the first, the others would pass what it passes, and none computes.
std::unique_ptr<Ranks> planned_ranks(int64_t size);

}  // namespace ingot
