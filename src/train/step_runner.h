// The optimizer steps of a run. On a GPU a step is launched while the one before still runs, so that the GPU never
// waits for the program; the scalars of a step come back at its end, one step late.
//
//   runner.prepare(...);
//   runner.begin();
//   for each micro-step:  runner.micro_step(next_batch);
//   runner.update();
//   ... = runner.finish();      of this step, or on a GPU of the one before
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/core/device.h"
#include "kernels/core/step.h"
#include "src/base/console.h"
#include "src/checkpoint/checkpoint.h"
#include "src/config/config.h"
#include "src/parallel/ranks.h"
#include "src/train/training_plan.h"

namespace ingot {

class StepRunner {
  public:
    // Steps that may be in flight on a GPU: one runs, one waits for it.
    static constexpr int64_t kStepsInFlight = 2;

    // All of them outlive the runner.
    StepRunner(const Config& config, TrainingPlan* plan, Ranks* ranks, const Console& console);
    // Disconnects the ranks, before the plan frees the memory that they share.
    ~StepRunner();
    StepRunner(const StepRunner&) = delete;
    StepRunner& operator=(const StepRunner&) = delete;

    // The source of the first step's weights: a run that goes on, else a model to start from, else the seed.
    struct Start {
        const Checkpoint* resumed = nullptr;
        const Checkpoint* initial = nullptr;
    };
    // Allocates the plan. On CUDA then runs one step on blank memory, before there are weights, so that kernels are
    // loaded and GEMMs have their algorithms when the first step comes: those of the resumed run's record, of the
    // machine's cache, or timed now. Fills everything that a step reads. Returns what a resumed run goes on from.
    // Throws UserError if the plan does not fit.
    TrainingState prepare(const Start& start);

    int64_t last_launched() const { return last_launched_; }
    int64_t last_finished() const { return last_finished_; }
    // Returns how many steps may be launched beyond the one that is waited for: none on the CPU, where a launch runs
    // the step.
    int64_t ahead() const { return plan_.device().is_cpu() ? 0 : kStepsInFlight - 1; }

    // Begins the next step, with the learning rate of its number. A step that was begun and never updated is dropped:
    // the next begin() begins it again.
    void begin();
    // Forward and backward of the batch that `next_batch` returns, in memory that this device can copy from and that
    // stays as it is until next_batch() is called for the micro-step after the next one. Returns false, without work,
    // where next_batch() returns null.
    bool micro_step(const std::function<const HostBatch*()>& next_batch);
    // Ends the step with the optimizer's update. Waits before, on the device if it can, until a save has copied the
    // weights and moments.
    void update();

    // Waits for the oldest step in flight. Throws PeerError if a rank failed. The reference is good until
    // kStepsInFlight more have begun.
    struct Finished {
        const StepBlock& block;    // the step's scalars at its end
        double seconds;            // from its beginning to its end on the device
        double data_wait_seconds;  // that the program waited for batches
        double visible_pairs;      // HostBatch::visible_pairs() of all micro-steps
    };
    Finished finish();

    // False: from now on ops are launched one by one, so that a profiler sees which of them belong to which range
    // (kernels/core/profile.h). True, as from the beginning: what is launched again and again is a graph. The bits are
    // the same.
    void use_graphs(bool uses_graphs) { uses_graphs_ = uses_graphs; }

  private:
    StepSettings settings_of(int64_t step) const;
    void find_fp8_scales(const MicroBatch& batch);
    void warm_up(const std::vector<MatmulChoice>& record);
    void choose_algorithms(const MicroBatch& blank, const std::vector<MatmulChoice>& record);
    // Forward and backward; after those of a step's last micro-step the gradients are summed over the ranks.
    void train(const MicroBatch& batch, bool accumulate, bool is_last);
    void run(DeviceGraph* graph, const std::function<void()>& work);

    struct Slot {  // of a step in flight
        explicit Slot(const Device& device)
            : memory(device.allocate_host(sizeof(StepBlock))),
              block(static_cast<StepBlock*>(memory.get())),
              begin(device),
              end(device) {}
        std::shared_ptr<void> memory;
        StepBlock* block;
        DeviceEvent begin, end;
        double data_wait_seconds = 0, visible_pairs = 0;
    };
    Slot& slot(int64_t step) { return slots_[static_cast<size_t>(step % kStepsInFlight)]; }

    const Config& config_;
    TrainingPlan& plan_;
    Ranks& ranks_;
    const Console& console_;
    std::array<Slot, kStepsInFlight> slots_;
    int64_t last_launched_ = 0, last_finished_ = 0;
    // A graph for each slot of the batch, and for the first, the last and the other micro-steps of a step.
    std::map<std::array<int64_t, 3>, DeviceGraph> micro_step_;
    DeviceGraph update_;
    bool uses_graphs_ = true;
    bool has_fp8_scales_ = false;
    int64_t num_launched_ = 0;  // micro-steps of the step that was begun
};

}  // namespace ingot
