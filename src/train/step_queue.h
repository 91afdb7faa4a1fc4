// Optimizer steps on their way. On a GPU one is queued while the one before still runs, so that the GPU never waits for
// the program; the scalars of a step come back at its end, one step late. At most two are on their way.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "kernels/core/device.h"
#include "kernels/core/step.h"
#include "src/config/config.h"
#include "src/train/training_plan.h"

namespace ingot {

class StepQueue {
  public:
    // Both outlive the queue.
    StepQueue(const Config& config, TrainingPlan* plan);
    // The next step to begin is `step` + 1; none is on its way.
    void start_after(int64_t step) { last_queued_ = last_finished_ = step; }

    int64_t last_queued() const { return last_queued_; }
    int64_t last_finished() const { return last_finished_; }
    // How many steps may be queued beyond the one that is waited for: 1 on a GPU, 0 on the CPU, where queueing is
    // doing.
    int64_t ahead() const { return plan_.device().is_cpu() ? 0 : 1; }

    // Begins the next step, with the learning rate of its number. Its micro-steps are the caller's: fill
    // plan.batch.next(), then plan.micro_step(). A step that was begun and never ended is dropped: the next begin()
    // begins it again.
    void begin();
    // After its last micro-step: the update.
    void end();

    // Waits for the oldest step. The reference is good until two more have begun.
    struct Finished {
        const StepBlock& block;  // the step's scalars at its end
        double seconds;          // from its beginning to its end on the device
    };
    Finished finish();

  private:
    struct Slot {
        explicit Slot(const Device& device)
            : memory(device.allocate_host(sizeof(StepBlock))),
              block(static_cast<StepBlock*>(memory.get())),
              begin(device),
              end(device) {}
        std::shared_ptr<void> memory;
        StepBlock* block;
        DeviceEvent begin, end;
    };
    Slot& slot(int64_t step) { return slots_[static_cast<size_t>(step % 2)]; }

    const Config& config_;
    TrainingPlan& plan_;
    std::array<Slot, 2> slots_;
    int64_t last_queued_ = 0, last_finished_ = 0;
};

}  // namespace ingot
