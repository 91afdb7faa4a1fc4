#include "src/train/step_runner.h"

#include <algorithm>
#include <cmath>
#include <exception>

#include "kernels/core/measure.h"
#include "kernels/matmul/choices.h"
#include "kernels/step.h"
#include "src/model/matmul_cache.h"
#include "src/optimizer/schedule.h"

namespace ingot {

StepRunner::StepRunner(const Config& config, TrainingPlan* plan, Ranks* ranks, const Console& console)
    : config_(config),
      plan_(*plan),
      ranks_(*ranks),
      console_(console),
      slots_{Slot(plan->device()), Slot(plan->device())},
      update_(plan->device()) {}

// Where an error ends this rank the others do not come here, and are not waited for.
StepRunner::~StepRunner() {
    if (std::uncaught_exceptions() == 0) ranks_.disconnect();
}

TrainingState StepRunner::prepare(const Start& start) {
    plan_.allocate();
    const std::string connection = ranks_.connect(plan_.device(), {.gradients = plan_.model.gradients(),
                                                                   .weights = plan_.model.weights(),
                                                                   .num_buckets = plan_.model.table().num_buckets(),
                                                                   .staging = plan_.staging});
    if (!connection.empty()) console_.line("ranks: ", connection);
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
    if (plan_.model.fp8() != nullptr && !training.fp8_recent.empty()) {
        REQUIRE(static_cast<int64_t>(training.fp8_recent.size()) == plan_.model.fp8()->num_scales(),
                start.resumed->folder, "/manifest.json: fp8.recent has ", training.fp8_recent.size(), " numbers, ",
                plan_.model.fp8()->num_scales(), " belong to this model: go on from another checkpoint");
        plan_.model.fp8()->set_recent(plan_.device(), training.fp8_recent);
        has_fp8_scales_ = true;
    }
    StepBlock block;
    block.state = training.state;
    plan_.step.write(block);
    last_launched_ = last_finished_ = training.step;
    return training;
}

void StepRunner::train(const MicroBatch& batch, bool accumulate, bool is_last) {
    if (is_last) plan_.optimizer.start_reducing();
    plan_.model.train(batch, plan_.step.get(), accumulate);
    if (is_last) plan_.optimizer.finish_reducing();
}

// Runs every GEMM of a step once, so that it has its algorithm: of the run's record, of the machine's cache, or timed.
void StepRunner::choose_algorithms(const MicroBatch& blank, const std::vector<MatmulChoice>& record) {
    const Device& device = plan_.device();
    const std::string machine = matmul_machine(device);
    std::string note;
    prefer_matmul_choices(device, record, MatmulSource::record);
    if (config_.training.tune) prefer_matmul_choices(device, read_matmul_cache(machine, &note), MatmulSource::cache);
    if (!note.empty()) console_.line("note: ", note);
    set_matmul_tuning(device, config_.training.tune ? MatmulTuning::timed : MatmulTuning::first_choice);
    // A micro-step that overwrites the gradients and, if there are more, one that adds: their GEMMs are not the same.
    for (const bool accumulate : {false, true})
        if (!accumulate || plan_.num_micro_steps() > 1) train(blank, accumulate, false);
    set_matmul_tuning(device, MatmulTuning::first_choice);
    const MatmulCounts counts = matmul_counts(device);
    console_.line("GEMMs: algorithms of ", counts.from_record, " from the run's record, ", counts.from_cache,
                  " from the machine's cache, ", counts.timed, " timed in ",
                  std::round(10 * counts.tuning_seconds) / 10, " s, ", counts.first_choice, " of the library's choice");
    if (counts.timed == 0) return;
    write_matmul_cache(machine, matmul_choices(device), &note);
    if (!note.empty()) console_.line("note: ", note);
}

void StepRunner::warm_up(const std::vector<MatmulChoice>& record) {
    const Device& device = plan_.device();
    if (device.is_cpu()) return;
    plan_.batch.advance();
    HostBatch& blank = plan_.loader_ring[0];
    blank.resize(plan_.model.max_tokens());
    Device::cpu().zero(blank.all());
    const MicroBatch micro_batch = plan_.batch.upload(blank);
    step_begin(device, plan_.step.get(), {});
    // The first rank chooses for all: two algorithms may round in two ways.
    if (ranks_.is_first()) choose_algorithms(micro_batch, record);
    const std::string chosen = ranks_.from_first(matmul_choices_to_json(matmul_choices(device)).dump());
    prefer_matmul_choices(device, matmul_choices_from_json(nlohmann::json::parse(chosen)), MatmulSource::record);
    const bool has_one = plan_.num_micro_steps() == 1;
    train(micro_batch, false, has_one);
    if (!has_one) train(micro_batch, true, true);
    plan_.optimizer.update(plan_.step.get());
    plan_.model.update_fp8_scales();
    plan_.optimizer.gather_weights();
    for (int64_t bucket = 0; bucket < plan_.model.table().num_buckets(); ++bucket)
        plan_.optimizer.before_weights(bucket);
    plan_.clear();
}

void StepRunner::begin() {
    CHECK(last_launched_ - last_finished_ < kStepsInFlight, kStepsInFlight, " steps are in flight, no other can begin");
    const int64_t step = last_launched_ + 1;
    slot(step).begin.record();
    slot(step).data_wait_seconds = slot(step).visible_pairs = 0;
    num_launched_ = 0;
    step_begin(plan_.device(), plan_.step.get(), settings_of(step));
}

StepSettings StepRunner::settings_of(int64_t step) const {
    const OptimizerConfig& o = config_.optimizer;
    const int64_t scheduled = std::min(step, *config_.training.steps);  // benchmarks go on beyond the schedule's end
    return {.lr = learning_rate(config_.schedule, o.lr, *config_.training.steps, scheduled),
            .beta1 = o.beta1,
            .beta2 = o.beta2,
            .eps = o.eps,
            .weight_decay = o.weight_decay,
            .grad_clip = o.grad_clip,
            .dynamic_loss_scale = plan_.model.dtype() == DType::f16};
}

// The first micro-step of a run in fp8 runs twice more before, for its largest values alone: the first time with scales
// of 1, which may saturate, the second time with scales that are about right.
void StepRunner::find_fp8_scales(const MicroBatch& batch) {
    for (int i = 0; i < 2; ++i) {
        train(batch, false, false);
        plan_.model.update_fp8_scales();
    }
    step_begin(plan_.device(), plan_.step.get(), settings_of(last_launched_ + 1));  // drops what they summed
    has_fp8_scales_ = true;
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
    if (plan_.model.fp8() != nullptr && !has_fp8_scales_) find_fp8_scales(batch);
    const bool accumulate = num_launched_++ > 0, is_last = num_launched_ == plan_.num_micro_steps();
    DeviceGraph& graph =
        micro_step_.try_emplace({plan_.batch.slot(), accumulate, is_last}, plan_.device()).first->second;
    run(&graph, [&] { train(batch, accumulate, is_last); });
    return true;
}

void StepRunner::update() {
    Slot& launched = slot(++last_launched_);
    plan_.writer.wait_until_copied();
    run(&update_, [&] {
        plan_.optimizer.update(plan_.step.get());
        plan_.model.update_fp8_scales();
    });
    // Before the weights are gathered, whose copies would occupy the copy engine first.
    plan_.device().start_copy(DeviceStep::bytes_of(launched.block), plan_.step.tensor());
    launched.end.record();
    plan_.optimizer.gather_weights();
}

StepRunner::Finished StepRunner::finish() {
    CHECK(last_finished_ < last_launched_, "no step is in flight");
    const Slot& finished = slot(++last_finished_);
    finished.end.wait();
    ranks_.check();
    return {*finished.block, finished.end.seconds_since(finished.begin), finished.data_wait_seconds,
            finished.visible_pairs};
}

}  // namespace ingot
