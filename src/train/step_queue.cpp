#include "src/train/step_queue.h"

#include <algorithm>

#include "src/optimizer/schedule.h"

namespace ingot {

StepQueue::StepQueue(const Config& config, TrainingPlan* plan)
    : config_(config), plan_(*plan), slots_{Slot(plan->device()), Slot(plan->device())} {}

void StepQueue::begin() {
    CHECK(last_queued_ - last_finished_ < 2, "two steps are on their way, no third can begin");
    const int64_t step = last_queued_ + 1;
    const OptimizerConfig& o = config_.optimizer;
    const int64_t scheduled = std::min(step, config_.training.steps);  // benchmarks go on beyond the schedule's end
    slot(step).begin.record();
    plan_.begin_step({.lr = learning_rate(config_.schedule, o.lr, config_.training.steps, scheduled),
                      .beta1 = o.beta1,
                      .beta2 = o.beta2,
                      .eps = o.eps,
                      .weight_decay = o.weight_decay,
                      .grad_clip = o.grad_clip,
                      .dynamic_loss_scale = plan_.model.dtype() == DType::f16});
}

void StepQueue::end() {
    Slot& queued = slot(++last_queued_);
    plan_.update();
    plan_.device().start_copy(DeviceStep::bytes_of(queued.block), plan_.step.tensor());
    queued.end.record();
}

StepQueue::Finished StepQueue::finish() {
    CHECK(last_finished_ < last_queued_, "no step is on its way");
    const Slot& finished = slot(++last_finished_);
    finished.end.wait();
    return {*finished.block, finished.end.seconds_since(finished.begin)};
}

}  // namespace ingot
