// Everything of a run that takes memory, planned by name before any of it is allocated: what `--dry-run` prints is what
// a run allocates.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/core/device.h"
#include "src/base/available_memory.h"
#include "src/checkpoint/writer.h"
#include "src/config/config.h"
#include "src/data/loader.h"
#include "src/model/batch.h"
#include "src/model/device_step.h"
#include "src/model/generator.h"
#include "src/model/model.h"
#include "src/optimizer/optimizer.h"

namespace ingot {

class TrainingPlan {
  public:
    // Nothing is allocated yet. `config` is resolved; the ranks, which outlive the plan, share a step's rows.
    TrainingPlan(const Config& config, const Device& device, Ranks* ranks);
    TrainingPlan(const TrainingPlan&) = delete;
    TrainingPlan& operator=(const TrainingPlan&) = delete;

    // Throws UserError if it is more than the device or the host has free.
    void check_memory() const;
    // The host's part of it: all of a run on the CPU; beside a GPU what is page-locked, of which each page is touched.
    void check_host_memory(const AvailableMemory& available) const;
    // Checks that first.
    void allocate();
    // Zeroes the device's memory.
    void clear();
    size_t total_bytes() const { return memory_.total_bytes(); }

    int64_t num_micro_steps() const;

    // The memory plan by name.
    std::string memory_table() const;

    const Device& device() const { return device_; }

  private:
    MemoryPlan* host_plan() { return device_.is_cpu() ? &memory_ : &host_memory_; }

    Config config_;
    Device device_;
    Ranks& ranks_;
    MemoryPlan memory_, host_memory_;  // of the device; of the host, where the device is another
    std::shared_ptr<void> allocation_, host_allocation_;

  public:
    Model model;
    Optimizer optimizer;
    Tensor staging;  // of the GPUs' collectives: Ranks::connect()
    BatchBuffers batch;
    std::vector<HostBatch> loader_ring;    // what training reads (Loader::kBatches)
    std::unique_ptr<Generator> generator;  // if samples are written
    DeviceStep step, eval_step;
    CheckpointWriter writer;  // last: it reads the model until its save has ended
};

// Sets a training.micro_batch_size of "auto" to the largest that divides the step and that the device has memory for.
// Throws UserError if not even one row fits. Does nothing on the CPU (the config's own default stands) and where a size
// was given.
// The ranks agree on the smallest.
void resolve_micro_batch(Config* config, const Device& device, Ranks* ranks);

}  // namespace ingot
