// The ranks of a run: how many there are, who starts them, and how this process joins the others.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "src/config/config.h"
#include "src/parallel/ranks.h"
#include "src/parallel/world.h"
#include "src/train/train.h"

namespace ingot {

// Returns how many ranks the run has: those that a launcher started, which --gpus may repeat; else what --gpus says;
// else all GPUs of this machine, where the build has NCCL, or one rank on the CPU. Throws UserError if the launcher and
// --gpus disagree, or if there are fewer GPUs, unless it is a dry run.
int64_t num_ranks_of_run(const TrainOptions& options, const Config& config, const std::optional<World>& world);

// Starts so many copies of this program and waits for them. Returns the exit code of the run.
int start_ranks(const TrainOptions& options, const Config& config, int64_t num_ranks);

// Waits for the other ranks. Throws UserError if this process does not belong to them, PeerError if one does not come.
std::unique_ptr<Ranks> join_ranks(const Config& config, const std::optional<World>& world);

}  // namespace ingot
