// Reading order: Trainer::loop() is the loop; each line of it calls a function that stands above it.
#include "src/train/train.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>

#include "kernels/core/measure.h"
#include "kernels/core/profile.h"
#include "src/base/console.h"
#include "src/base/progress.h"
#include "src/base/signals.h"
#include "src/base/text.h"
#include "src/checkpoint/checkpoint.h"
#include "src/checkpoint/environment.h"
#include "src/checkpoint/run_folder.h"
#include "src/checkpoint/store.h"
#include "src/config/config.h"
#include "src/data/loader.h"
#include "src/model/generator.h"
#include "src/parallel/ranks.h"
#include "src/parallel/tcp_ranks.h"
#include "src/parallel/world.h"
#include "src/train/log.h"
#include "src/train/peak_rate.h"
#include "src/train/resume.h"
#include "src/train/run_start.h"
#include "src/train/start_ranks.h"
#include "src/train/step_runner.h"
#include "src/train/training_data.h"
#include "src/train/training_plan.h"

namespace ingot {

namespace {

class Trainer {
  public:
    // The arguments outlive the trainer, except the range. `tokenizer` and `hellaswag` may be null; `folder` and
    // `store` are the first rank's, null on the others.
    Trainer(const Config& config, const RunFolder* folder, CheckpointStore* store, TrainingData* data,
            Tokenizer* tokenizer, const HellaSwag* hellaswag, const StepRange& profile, Ranks* ranks,
            const Console& console, TrainingPlan* plan);
    // Goes on from the checkpoint; or begins, with the weights of `initial` if there is one.
    void start(const std::optional<Checkpoint>& checkpoint, const std::optional<Checkpoint>& initial);
    int run();

  private:
    int loop();
    enum class SaveMode {
        running,     // training goes on, also if it fails
        last_chance  // waits for the end, and throws if it fails
    };
    bool launch_step();  // false: the run must stop, and its data were waited for in vain
    void take_times(const StepRunner::Finished& finished, StepReport* report);
    void finish_step();  // waits for the oldest step in flight and takes its report
    bool evaluate();     // false: the run must stop
    bool measure_loss();
    bool measure_hellaswag();
    void save(SaveMode mode);
    void note_save(const std::optional<CheckpointWriter::Result>& result, SaveMode mode);
    void write_log();
    void sample();
    int stop_for_nonfinite() const;
    void finish_and_save();
    int stop();
    int stop_without_folder(const std::string& why);
    [[noreturn]] void end_with(ExitCode code, const std::string& what);
    std::string what_is_saved() const;
    std::string why_taken() const;  // RunFolder::why_taken(), which the first rank tells all
    // The signal that told this rank to stop, kTimeIsUp, or 0.
    int64_t told_to_stop() const;
    // Returns whether a step that was begun may be dropped while it waits for data: by one rank, not by one of several,
    // since the others go through with it.
    bool gives_up_waiting() {
        why_stopped_ = ranks_.size() == 1 ? told_to_stop() : 0;
        return why_stopped_ != 0;
    }
    bool must_stop();  // whether any rank was told to; all ranks ask together
    int64_t rows_per_step() const { return config_.training.batch_tokens / config_.model.context_length; }
    bool is_due(int64_t every, int64_t step) const { return every > 0 && step > 0 && step % every == 0; }
    bool is_due(int64_t every) const { return is_due(every, training_.step); }
    bool is_last(int64_t step) const { return step >= *config_.training.steps; }
    bool is_last() const { return is_last(training_.step); }
    // Returns whether the host reads weights after this step, so that no later one may be launched before, or whether a
    // profile begins or ends.
    bool pauses_after(int64_t step) const {
        return is_due(config_.checkpoint.every, step) || is_due(config_.eval.every, step) ||
               is_due(config_.sample.every, step) || profile_.contains(step) != profile_.contains(step + 1);
    }

    const Config& config_;
    const RunFolder* const folder_;
    CheckpointStore* const store_;
    TrainingData& data_;
    Tokenizer* const tokenizer_;
    const HellaSwag* const hellaswag_;
    const StepRange profile_;
    Ranks& ranks_;
    const Console& console_;
    TrainingPlan& plan_;
    const double start_seconds_ = seconds_now();
    std::unique_ptr<RunLog> log_;
    std::unique_ptr<Loader> loader_;
    StepRunner runner_;
    TrainingState training_;          // as of the last finished step
    bool report_is_pending_ = false;  // the line of training_.step is not in the log yet
    bool is_updating_ = false;        // weights and moments are between two steps
    double visible_pairs_ = 0;        // of all ranks' rows in the last finished step
    int64_t saved_step_ = -1;         // the last step whose checkpoint was committed or is being written
    bool has_lost_last_save_ = false;
    static constexpr int64_t kTimeIsUp = INT64_MAX;
    int64_t why_stopped_ = 0;  // what must_stop() found
};

Trainer::Trainer(const Config& config, const RunFolder* folder, CheckpointStore* store, TrainingData* data,
                 Tokenizer* tokenizer, const HellaSwag* hellaswag, const StepRange& profile, Ranks* ranks,
                 const Console& console, TrainingPlan* plan)
    : config_(config),
      folder_(folder),
      store_(store),
      data_(*data),
      tokenizer_(tokenizer),
      hellaswag_(hellaswag),
      profile_(profile),
      ranks_(*ranks),
      console_(console),
      plan_(*plan),
      runner_(config, plan, ranks, console) {}

// ---- Start ----

void Trainer::start(const std::optional<Checkpoint>& checkpoint, const std::optional<Checkpoint>& initial) {
    std::optional<Resume> resume;
    if (checkpoint) resume.emplace(*checkpoint, config_, tokenizer_, console_);
    training_ =
        runner_.prepare({.resumed = checkpoint ? &*checkpoint : nullptr, .initial = initial ? &*initial : nullptr});
    if (resume) resume->describe(training_, plan_.device(), ranks_.size(), &data_);
    // Checkpoints ahead of the resumed step are damaged, or belong to steps that this run will train anew.
    if (resume && store_ != nullptr)
        for (const std::string& path : store_->set_aside_after(training_.step))
            console_.line("set aside, remove it when you like: ", path);
    REQUIRE(profile_.is_empty() || (profile_.first > training_.step && profile_.last <= *config_.training.steps),
            "--profile ", profile_.first, ":", profile_.last, ": this run goes from step ", training_.step + 1, " to ",
            *config_.training.steps, ": name steps among these");
    loader_ = std::make_unique<Loader>(*data_.train,
                                       LoaderPlan{.first_row = static_cast<uint64_t>(training_.rows_consumed),
                                                  .rows_per_step = rows_per_step(),
                                                  .batch_rows = config_.training.micro_batch_size,
                                                  .ranks = ranks_.size(),
                                                  .rank = ranks_.rank()},
                                       plan_.loader_ring, data_.unread());
    const bool is_own = checkpoint && store_ != nullptr && store_->holds(checkpoint->folder);
    if (ranks_.agree(is_own) != 0) saved_step_ = training_.step;
    if (config_.log.jsonl && folder_ != nullptr) log_ = std::make_unique<RunLog>(folder_->folder(), training_.step);
    if (folder_ != nullptr) folder_->write_config(config_);
    // A kill may have come between the save and the log line of its step.
    const bool has_line = log_ != nullptr && log_->has_last_step();
    report_is_pending_ = training_.step > 0 && ranks_.agree(has_line) == 0;
}

// ---- The parts of the loop ----

std::string Trainer::why_taken() const {
    return ranks_.from_first(folder_ != nullptr ? folder_->why_taken() : "");
}

int64_t Trainer::told_to_stop() const {
    if (stop_signal() != 0) return stop_signal();
    const std::optional<double>& minutes = config_.training.max_minutes;
    return minutes && seconds_now() - start_seconds_ >= 60 * *minutes ? kTimeIsUp : 0;
}

bool Trainer::must_stop() {
    why_stopped_ = ranks_.agree(told_to_stop());
    return why_stopped_ != 0;
}

// Runs one optimizer step: micro-steps of forward and backward, then one update. On a GPU all of it is launched, and
// the program waits only for batches and for the memory that they are copied from.
bool Trainer::launch_step() {
    const int64_t step = runner_.last_launched() + 1;
    if (step == profile_.first) begin_profile();
    runner_.use_graphs(!profile_.contains(step));
    runner_.begin();
    for (int64_t micro_step = 0; micro_step < plan_.num_micro_steps(); ++micro_step)
        if (!runner_.micro_step([this] { return loader_->next([this] { return gives_up_waiting(); }); })) return false;
    is_updating_ = true;
    runner_.update();
    is_updating_ = false;
    return true;
}

// Asks the clocks of all ranks: a step takes as long as its slowest rank.
void Trainer::take_times(const StepRunner::Finished& finished, StepReport* report) {
    const double own[] = {finished.seconds, finished.data_wait_seconds, finished.visible_pairs};
    double fastest = finished.seconds;
    visible_pairs_ = 0;
    for (const std::string& text : ranks_.exchange(std::string(reinterpret_cast<const char*>(own), sizeof own))) {
        double of_rank[3];
        CHECK(text.size() == sizeof of_rank, "a report of a step with ", text.size(), " bytes");
        std::memcpy(of_rank, text.data(), sizeof of_rank);
        report->step_seconds = std::max(report->step_seconds, of_rank[0]);
        fastest = std::min(fastest, of_rank[0]);
        report->data_wait_seconds = std::max(report->data_wait_seconds, of_rank[1]);
        visible_pairs_ += of_rank[2];
    }
    if (ranks_.size() > 1) report->fastest_rank_seconds = fastest;
}

void Trainer::finish_step() {
    const StepRunner::Finished finished = runner_.finish();
    const StepBlock& block = finished.block;
    training_.step += 1;
    if (training_.step == profile_.last) end_profile();
    training_.rows_consumed += rows_per_step();
    training_.state = block.state;
    StepReport report;
    report.step = training_.step;
    report.lr = block.settings.lr;
    report.loss = block.decision.loss;
    report.grad_norm = block.decision.grad_norm;
    report.skipped = block.decision.apply == 0;
    report.loss_scale = block.state.loss_scale;
    report.tokens = training_.rows_consumed * config_.model.context_length;
    report.memory_bytes = plan_.total_bytes();
    take_times(finished, &report);
    report.tokens_per_second = static_cast<double>(config_.training.batch_tokens) / report.step_seconds;
    if (const auto peak = peak_rate(plan_.device().name(), plan_.model.dtype()))
        report.mfu = plan_.model.flops(static_cast<double>(config_.training.batch_tokens), visible_pairs_) /
                     report.step_seconds / (peak->flops * static_cast<double>(ranks_.size()));
    training_.report = report;
    report_is_pending_ = true;
}

bool Trainer::evaluate() {
    return measure_loss() && measure_hellaswag();
}

// Mean loss over the validation rows.
bool Trainer::measure_loss() {
    if (!data_.val) return true;
    plan_.eval_step.write(StepBlock{});
    const int64_t micro_batch = config_.training.micro_batch_size, num_rows = data_.val->num_rows();
    Progress progress("evaluating", num_rows, "rows");
    for (int64_t first = 0; first < num_rows; first += ranks_.size() * micro_batch) {
        if (must_stop()) return false;
        const int64_t row = std::min(first + ranks_.rank() * micro_batch, num_rows);
        fill_batch(*data_.val, static_cast<uint64_t>(row), std::min(micro_batch, num_rows - row), micro_batch,
                   plan_.batch.next());
        plan_.model.evaluate(plan_.batch.upload(), plan_.eval_step.get());
        progress.advance(std::min(ranks_.size() * micro_batch, num_rows - first));
    }
    ranks_.all_reduce(plan_.device(), &plan_.eval_step.get()->sums);
    const StepSums sums = plan_.eval_step.read().sums;
    training_.report.val_loss = sums.loss / static_cast<double>(sums.targets);
    return true;
}

bool Trainer::measure_hellaswag() {
    if (hellaswag_ == nullptr) return true;
    const std::optional<HellaSwagResult> result =
        hellaswag_->measure(&plan_.model, &plan_.batch, plan_.eval_step, &ranks_, [this] { return must_stop(); });
    if (result) training_.report.hellaswag = result->accuracy();
    return result.has_value();
}

// A save that fails (a full disk) leaves the older checkpoints whole, and the run alive unless it was the last one.
void Trainer::note_save(const std::optional<CheckpointWriter::Result>& result, SaveMode mode) {
    if (!result) return;
    if (result->fault.empty()) {
        console_.line("checkpoint of step ", result->step, " committed");
        if (!result->set_aside.empty())
            console_.line("set aside, since it had this name: ", printable_line(result->set_aside));
        return;
    }
    saved_step_ = -1;
    has_lost_last_save_ = mode == SaveMode::last_chance;
    if (has_lost_last_save_) throw Error(kExitAllocation, result->fault);
    console_.error_line("WARNING: ", result->fault, "; training goes on without this checkpoint");
}

void Trainer::save(SaveMode mode) {
    note_save(plan_.writer.wait(), SaveMode::running);
    if (saved_step_ != training_.step) {
        training_.data = data_.state(training_.rows_consumed);
        // A run that goes on without fp8 does not hand on what one with it has seen.
        training_.fp8_recent.clear();
        if (plan_.model.fp8() != nullptr) training_.fp8_recent = plan_.model.fp8()->recent(plan_.device());
        plan_.writer.start(store_, config_, training_, tokenizer_ != nullptr ? tokenizer_->source() : "");
        saved_step_ = training_.step;
    }
    note_save(mode == SaveMode::last_chance ? plan_.writer.wait() : plan_.writer.poll(), mode);
}

void Trainer::write_log() {
    if (log_) log_->write(training_.report);
    if (is_due(config_.log.every) || is_last() || training_.report.val_loss || training_.report.hellaswag)
        console_.line(report_line(training_.report, *config_.training.steps));
    report_is_pending_ = false;
}

void Trainer::sample() {
    for (const std::string& prompt : config_.sample.prompts) {
        const std::string text =
            sample_text(*plan_.generator, *tokenizer_, prompt_tokens(*tokenizer_, prompt, config_.data), prompt,
                        {.num_tokens = config_.sample.tokens,
                         .sampling = {.temperature = config_.sample.temperature, .top_k = 0, .top_p = 1},
                         .seed = static_cast<uint64_t>(config_.seed + training_.step),
                         .eot_token = static_cast<int32_t>(config_.data.eot_token.value_or(-1))});
        console_.line("--- sample at step ", training_.step, " ---\n", printable(prompt), printable(text));
    }
    console_.line("---");
}

// Decides from the report alone, which a checkpoint keeps: a run that was killed between a save and the end that its
// step is ends there too.
int Trainer::stop_for_nonfinite() const {
    const bool is_finite = std::isfinite(training_.report.loss) && std::isfinite(training_.report.grad_norm);
    if (!training_.report.skipped || is_finite) return kExitDone;
    if (config_.training.on_nonfinite == NonFinite::skip &&
        training_.state.consecutive_skips <= config_.training.max_skipped_steps)
        return kExitDone;
    console_.error_line("error: the loss or the gradient norm is not finite at step ", training_.step, " (",
                        training_.state.consecutive_skips,
                        " steps in a row): lower optimizer.lr, or go back to an earlier checkpoint with --resume PATH");
    return kExitDiverged;
}

// Finishes the steps in flight and saves, before the run ends early.
void Trainer::finish_and_save() {
    while (training_.step < runner_.last_launched()) {
        finish_step();
        write_log();
    }
    if (training_.step > 0) save(SaveMode::last_chance);
}

std::string Trainer::what_is_saved() const {
    if (training_.step == 0) return "before the first step: nothing was trained";
    return join("after step ", training_.step, ", which is saved");
}

int Trainer::stop() {
    if (const std::string why = why_taken(); !why.empty()) return stop_without_folder(why);
    finish_and_save();
    const std::string why = why_stopped_ != kTimeIsUp
                                ? "by " + describe_signal(static_cast<int>(why_stopped_))
                                : join("after training.max_minutes ", *config_.training.max_minutes);
    console_.error_line("stopped ", why, ", ", what_is_saved(), ": go on with --resume auto");
    return kExitInterrupted;
}

// Saves into the folder that the run holds, if it still exists. Its path may be another run's by now.
int Trainer::stop_without_folder(const std::string& why) {
    try {
        finish_and_save();
    } catch (const Error& fault) {
        has_lost_last_save_ = true;
        throw Error(kExitAllocation, join(why, ", and what was trained cannot be saved: ", fault.what()));
    }
    const bool is_saved = store_ != nullptr && training_.step > 0;
    const std::string where = is_saved ? join(" as ", store_->place_of(training_.step)) : "";
    const std::string text = join(why, " while the run trained there: stopped ", what_is_saved(), where,
                                  ": put the folder back, or set run_dir to where it is, and go on with --resume auto");
    console_.error_line("error: ", printable_line(text));
    return kExitUsage;
}

// An error that is not the device's ends the run: what was trained is saved first, if it is whole and was not what
// could not be saved.
void Trainer::end_with(ExitCode code, const std::string& what) {
    // One rank of several cannot save what all have.
    if (training_.step == 0 || is_updating_ || has_lost_last_save_ || ranks_.size() > 1) throw Error(code, what);
    try {
        finish_and_save();
    } catch (const std::exception& fault) {
        throw Error(kExitAllocation, join(what, "; and what was trained cannot be saved: ", fault.what()));
    }
    throw Error(code, join(what, "; stopped ", what_is_saved(), ": go on with --resume auto"));
}

int Trainer::run() {
    if (is_last() && !report_is_pending_ && saved_step_ == training_.step) {
        console_.line("this run is finished: raise training.steps to go on");
        return kExitDone;
    }
    try {
        return loop();
    } catch (const PeerError&) {  // what the ranks had together is lost
        throw;
    } catch (const CudaError&) {  // nothing can be read from the device any more
        ranks_.check();           // where a peer has failed, that is why
        throw;
    } catch (const Error& error) {
        end_with(error.exit_code, error.what());
    } catch (const std::bad_alloc&) {
        end_with(kExitAllocation, "out of memory: use a smaller model or training.micro_batch_size");
    } catch (const std::exception& error) {
        end_with(kExitFault, error.what());
    }
}

int Trainer::loop() {
    for (;;) {
        // An update is saved first, so that nothing that follows can lose it; then come evaluation, log and samples.
        note_save(plan_.writer.poll(), SaveMode::running);
        if (const std::string why = why_taken(); !why.empty()) return stop_without_folder(why);
        if (is_last() || (is_due(config_.checkpoint.every) && saved_step_ != training_.step))
            save(is_last() ? SaveMode::last_chance : SaveMode::running);
        if (report_is_pending_) {
            if ((is_due(config_.eval.every) || is_last()) && !evaluate()) return stop();
            if (const std::string why = why_taken(); !why.empty()) return stop_without_folder(why);
            write_log();
            if (const int code = stop_for_nonfinite(); code != kExitDone) return code;
        }
        if (config_.sample.every > 0 && (is_due(config_.sample.every) || is_last()) && !must_stop()) sample();
        console_.flush();
        if (is_last()) {
            console_.text(data_.describe_blend(training_.rows_consumed));
            return kExitDone;
        }
        // On a GPU the next step is launched before the report of this one is awaited.
        while (runner_.last_launched() == training_.step ||
               (runner_.last_launched() <= training_.step + runner_.ahead() && !is_last(runner_.last_launched()) &&
                !pauses_after(runner_.last_launched())))
            if (must_stop() || !launch_step()) return stop();
        finish_step();
    }
}

// ---- Before the run ----

int stopped_before_training(int64_t signal, const Console& console) {
    console.error_line("stopped by ", describe_signal(static_cast<int>(signal)),
                       " before the first step of this command: nothing was trained: run it again");
    return kExitInterrupted;
}

int train_in_folder(const TrainOptions& options, Config config, Ranks* ranks, const Console& console) {
    std::optional<RunFolder> folder;  // the first rank's, as the store is
    if (ranks->is_first()) folder.emplace(config);
    const Device device = training_device(config, *ranks, console);
    REQUIRE(options.profile.is_empty() || !device.is_cpu(),
            "--profile is for a GPU, and this run is on the CPU: leave it out, or use --device cuda");
    const std::unique_ptr<Tokenizer> tokenizer = training_tokenizer(config);
    const std::unique_ptr<HellaSwag> hellaswag = training_hellaswag(config, tokenizer.get());
    TrainingData data(config, folder ? &folder->folder() : nullptr);
    data.require_targets();
    data.take_fingerprints();
    if (const int64_t signal = ranks->agree(stop_signal())) return stopped_before_training(signal, console);
    if (!config.training.steps) resolve_steps(&config, data.epoch_tokens());
    std::optional<CheckpointStore> store;
    if (folder) store.emplace(*folder);
    CheckpointStore* const own_store = store ? &*store : nullptr;
    const std::optional<Checkpoint> checkpoint = checkpoint_to_resume(config.run_dir, own_store, options.resume, ranks);
    const std::optional<Checkpoint> initial = checkpoint ? std::nullopt : checkpoint_to_start_from(config, ranks);
    if (const int64_t signal = ranks->agree(stop_signal())) return stopped_before_training(signal, console);
    if (checkpoint && config.training.micro_batch_is_auto) {
        // Another size would round differently.
        const TrainingConfig& then = checkpoint->manifest.config.training;
        if (config.training.batch_tokens % (then.micro_batch_size * config.model.context_length) == 0) {
            config.training.micro_batch_size = then.micro_batch_size;
            config.training.micro_batch_is_auto = false;
        }
    }
    resolve_micro_batch(&config, device, ranks);
    TrainingPlan plan(config, device, ranks);
    print_notes(config, device, console);
    print_data(data, hellaswag.get(), console);
    if (tokenizer) console.line("tokenizer: ", tokenizer->describe());
    if (initial) print_start(*initial, config, tokenizer.get(), console);
    print_plan(config, plan, console);
    console.line("environment: ", environment_hash(environment(device, config, ranks->size())));
    Trainer trainer(config, folder ? &*folder : nullptr, own_store, &data, tokenizer.get(), hellaswag.get(),
                    options.profile, ranks, console, &plan);
    trainer.start(checkpoint, initial);
    return trainer.run();
}

}  // namespace

int train(const TrainOptions& options) {
    Config config = read_config(options.config_file, options.overrides);
    const std::optional<World> world = world_of_process();
    const int64_t num_ranks = num_ranks_of_run(options, config, world);
    if (options.is_dry_run) {
        const bool is_first = !world || world->rank == 0;
        return is_first ? dry_run(config, planned_ranks(num_ranks).get(), Console(true)) : kExitDone;
    }
    if (!world && num_ranks > 1) return start_ranks(options, config, num_ranks);
    const std::unique_ptr<Ranks> ranks = join_ranks(config, world);
    const Console console(ranks->is_first());
    catch_stop_signals();
    outlive_the_reader();
    reserve_cpu_time_for_saving();
    try {
        return train_in_folder(options, std::move(config), ranks.get(), console);
    } catch (const Stopped&) {  // while the data were read, after which all ranks ask each other
        return stopped_before_training(ranks->agree(stop_signal()), console);
    } catch (const std::exception& error) {
        ranks->leave(error.what());
        throw;
    }
}

}  // namespace ingot
