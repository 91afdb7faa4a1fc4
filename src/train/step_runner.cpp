#include "src/train/step_runner.h"

#include <algorithm>
#include <cmath>

#include "kernels/matmul/choices.h"
#include "kernels/step.h"
#include "src/base/clock.h"
#include "src/model/matmul_cache.h"
#include "src/optimizer/schedule.h"

namespace ingot {

StepRunner::StepRunner(const Config& config, TrainingPlan* plan, Ranks* ranks, const Console& console)
    : config_(config),
      plan_(*plan),
      ranks_(*ranks),
      console_(console),
      slots_{Slot(plan->device()), Slot(plan->device())},
      micro_step_{{{DeviceGraph(plan->device()), DeviceGraph(plan->device())},
                   {DeviceGraph(plan->device()), DeviceGraph(plan->device())}}},
      update_(plan->device()) {}

TrainingState StepRunner::prepare(const Start& start) {
    plan_.allocate();
    warm_up(start.resumed != nullptr ? start.resumed->manifest.matmul_choices : std::vector<MatmulChoice>{});
    plan_.model.initialize_constants();
    plan_.optimizer.initialize_constants();
    TrainingState training;
    if (start.resumed != nullptr)
        training = load_training(*start.resumed, plan_.model, &plan_.optimizer);
    else if (start.initial != nullptr)
        load_weights(*start.initial, plan_.model, &plan_.optimizer);
    else
        plan_.optimizer.initialize_weights(static_cast<uint64_t>(config_.seed));
    StepBlock block;
    block.state = training.state;
    plan_.step.write(block);
    last_launched_ = last_finished_ = training.step;
    return training;
}

void StepRunner::warm_up(const std::vector<MatmulChoice>& record) {
    const Device& device = plan_.device();
    if (device.is_cpu()) return;
    const std::string machine = matmul_machine(device);
    std::string note;
    prefer_matmul_choices(device, record, MatmulSource::record);
    if (config_.training.tune) prefer_matmul_choices(device, read_matmul_cache(machine, &note), MatmulSource::cache);
    if (!note.empty()) console_.line("note: ", note);
    set_matmul_tuning(device, config_.training.tune ? MatmulTuning::timed : MatmulTuning::first_choice);

    plan_.batch.advance();
    HostBatch& blank = plan_.loader_ring[0];
    blank.resize(plan_.model.max_tokens());
    Device::cpu().zero(blank.all());
    const MicroBatch micro_batch = plan_.batch.upload(blank);
    step_begin(device, plan_.step.get(), {});
    // A micro-step that overwrites the gradients and, if there are more, one that adds: their GEMMs are not the same.
    for (const bool accumulate : {false, true}) {
        if (accumulate && plan_.num_micro_steps() == 1) break;
        plan_.model.train(micro_batch, plan_.step.get(), accumulate);
    }
    plan_.optimizer.update(plan_.step.get());
    plan_.clear();

    set_matmul_tuning(device, MatmulTuning::first_choice);
    const MatmulCounts counts = matmul_counts(device);
    console_.line("GEMMs: algorithms of ", counts.from_record, " from the run's record, ", counts.from_cache,
                  " from the machine's cache, ", counts.timed, " timed in ",
                  std::round(10 * counts.tuning_seconds) / 10, " s, ", counts.first_choice, " of the library's choice");
    if (counts.timed == 0 || !ranks_.is_first()) return;
    write_matmul_cache(machine, matmul_choices(device), &note);
    if (!note.empty()) console_.line("note: ", note);
}

void StepRunner::begin() {
    CHECK(last_launched_ - last_finished_ < kStepsInFlight, kStepsInFlight, " steps are in flight, no other can begin");
    const int64_t step = last_launched_ + 1;
    const OptimizerConfig& o = config_.optimizer;
    const int64_t scheduled = std::min(step, *config_.training.steps);  // benchmarks go on beyond the schedule's end
    slot(step).begin.record();
    slot(step).data_wait_seconds = slot(step).visible_pairs = 0;
    accumulates_ = false;
    step_begin(plan_.device(), plan_.step.get(),
               {.lr = learning_rate(config_.schedule, o.lr, *config_.training.steps, scheduled),
                .beta1 = o.beta1,
                .beta2 = o.beta2,
                .eps = o.eps,
                .weight_decay = o.weight_decay,
                .grad_clip = o.grad_clip,
                .dynamic_loss_scale = plan_.model.dtype() == DType::f16});
}

void StepRunner::run(DeviceGraph* graph, const std::function<void()>& work) {
    if (uses_graphs_)
        graph->run(work);
    else
        work();
}

bool StepRunner::micro_step(const std::function<const HostBatch*()>& next_batch) {
    plan_.batch.advance();  // before the batch is asked for: whoever fills batches may then use an older one again
    const double asked = seconds_now();
    const HostBatch* const host = next_batch();
    if (host == nullptr) return false;
    Slot& current = slot(last_launched_ + 1);
    current.data_wait_seconds += seconds_now() - asked;
    current.visible_pairs += host->visible_pairs();
    const MicroBatch batch = plan_.batch.upload(*host);
    run(&micro_step_[static_cast<size_t>(plan_.batch.slot())][accumulates_ ? 1 : 0],
        [&] { plan_.model.train(batch, plan_.step.get(), accumulates_); });
    accumulates_ = true;
    return true;
}

void StepRunner::update() {
    Slot& launched = slot(++last_launched_);
    plan_.writer.wait_until_copied();
    run(&update_, [&] { plan_.optimizer.update(plan_.step.get()); });
    plan_.device().start_copy(DeviceStep::bytes_of(launched.block), plan_.step.tensor());
    launched.end.record();
}

StepRunner::Finished StepRunner::finish() {
    CHECK(last_finished_ < last_launched_, "no step is in flight");
    const Slot& finished = slot(++last_finished_);
    finished.end.wait();
    return {*finished.block, finished.end.seconds_since(finished.begin), finished.data_wait_seconds,
            finished.visible_pairs};
}

}  // namespace ingot
