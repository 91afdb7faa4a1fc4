// Reading order: Trainer::run() is the loop; each line of it is a function below.
#include "src/train.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>

#include "kernels/core/blas.h"
#include "kernels/step.h"
#include "src/batch.h"
#include "src/checkpoint.h"
#include "src/config.h"
#include "src/data/rows.h"
#include "src/data/shards.h"
#include "src/generate.h"
#include "src/log.h"
#include "src/model.h"
#include "src/optimizer.h"
#include "src/run_folder.h"
#include "src/schedule.h"
#include "src/signals.h"
#include "src/text.h"

namespace ingot {

namespace {

double seconds_now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Device choose_device(const TrainingConfig& config) {
    if (config.device == "auto")
        std::printf("device: CPU (the CUDA device cannot train yet: not every op has its kernel)\n");
    return Device::cpu();
}

class Trainer {
  public:
    Trainer(const Config& config, bool resumes);
    int run();

  private:
    void print_summary() const;
    void start_or_resume();
    bool train_step();  // false: a signal came, the unfinished step is dropped
    void evaluate();
    void save(bool is_last_chance);
    void sample();
    int stop_for_nonfinite() const;

    Config config_;
    RunFolder folder_;
    TokenShards train_shards_;
    std::unique_ptr<TokenShards> val_shards_;
    RowSource rows_;
    std::unique_ptr<ValidationRows> val_rows_;
    Device device_;
    MemoryPlan plan_;
    int64_t micro_batch_, num_micro_steps_;
    Model model_;
    Optimizer optimizer_;
    BatchBuffers batch_;
    Tensor step_tensor_, eval_tensor_;
    std::unique_ptr<Generator> generator_;  // if there are samples to draw
    std::shared_ptr<void> memory_;
    StepBlock *step_block_ = nullptr, *eval_block_ = nullptr;
    std::unique_ptr<RunLog> log_;
    HostBatch host_batch_;
    TrainingState training_;
    bool resumes_, report_is_pending_ = false;
    int64_t saved_step_ = -1;
};

Trainer::Trainer(const Config& config, bool resumes)
    : config_(config),
      folder_(config),
      train_shards_(config.data.train, "data.train", config.model.vocab_size, config.data.eot_token, config.data.eot),
      rows_(train_shards_, config.data, config.model.context_length, static_cast<uint64_t>(config.seed)),
      device_(choose_device(config.training)),
      micro_batch_(config.training.micro_batch_size),
      num_micro_steps_(config.training.batch_tokens / (micro_batch_ * config.model.context_length)),
      model_(device_, config.model, DType::f32, micro_batch_ * config.model.context_length, config.model.context_length,
             config.training.recompute, config.training.z_loss, true, &plan_),
      optimizer_(model_, &plan_),
      batch_(model_.max_tokens(), &plan_),
      resumes_(resumes) {
    if (!config.data.val.empty()) {
        val_shards_ = std::make_unique<TokenShards>(config.data.val, "data.val", config.model.vocab_size,
                                                    config.data.eot_token, config.data.eot);
        val_rows_ = std::make_unique<ValidationRows>(*val_shards_, config.data, config.model.context_length,
                                                     config.eval.tokens);
        for (const std::string& file : shared_files(train_shards_, *val_shards_))
            std::fprintf(stderr, "WARNING: %s is in data.train and in data.val: the validation loss will be too good\n",
                         file.c_str());
    }
    plan_.add("step", DType::u8, {sizeof(StepBlock)}, &step_tensor_);
    plan_.add("eval_step", DType::u8, {sizeof(StepBlock)}, &eval_tensor_);
    if (config.sample.every > 0)
        generator_ = std::make_unique<Generator>(model_, batch_, config.model.context_length, &plan_);
    print_summary();
    memory_ = plan_.allocate(device_);
    step_block_ = new (step_tensor_.data) StepBlock{};
    eval_block_ = new (eval_tensor_.data) StepBlock{};
    model_.initialize_constants();
}

void Trainer::print_summary() const {
    const ModelConfig& m = config_.model;
    const char* const positions[] = {"ALiBi", "RoPE", "no positions"};
    std::printf("model: %.2fM parameters, %ld layers, width %ld, context %ld, vocabulary %ld%s%s\n",
                static_cast<double>(model_.table().num_parameters()) / 1e6, static_cast<long>(m.n_layers),
                static_cast<long>(m.d_model), static_cast<long>(m.context_length), static_cast<long>(m.vocab_size),
                m.tie_embeddings ? ", tied embeddings" : "", m.qk_norm ? ", QK-norm" : "");
    std::printf("attention: causal, %s, %ld query / %ld kv heads of %ld, documents %s\n",
                positions[static_cast<int>(m.position)], static_cast<long>(m.n_heads), static_cast<long>(m.n_kv_heads),
                static_cast<long>(m.head_dim), config_.data.mask_documents ? "masked" : "not masked");
    std::printf("data: %s\n", train_shards_.describe().c_str());
    if (val_shards_) std::printf("validation: %s\n", val_shards_->describe().c_str());
    std::printf("step: %ld micro-batches of %ld x %ld tokens, fp32, %d threads, %s\n",
                static_cast<long>(num_micro_steps_), static_cast<long>(micro_batch_),
                static_cast<long>(m.context_length), omp_get_max_threads(), blas_description());
    std::printf("memory plan:\n%s", plan_.table().c_str());
}

void Trainer::start_or_resume() {
    remove_unfinished_checkpoints(folder_.path());
    const std::vector<std::string> existing = list_checkpoints(folder_.path());
    REQUIRE(existing.empty() || resumes_, folder_.path(), " holds a checkpoint (", existing.back(),
            "): go on with --resume auto, or start anew with another name or run_dir");
    if (existing.empty()) {
        model_.initialize_weights(static_cast<uint64_t>(config_.seed));
    } else {
        training_ = load_newest_checkpoint(folder_.path(), config_, model_, optimizer_);
        step_block_->state = training_.state;
        saved_step_ = training_.step;
        report_is_pending_ = training_.step > 0;
        std::printf("resumed from step %ld\n", static_cast<long>(training_.step));
        if (training_.step >= config_.training.steps)
            std::printf("this run is finished: raise training.steps to go on\n");
    }
    folder_.write_config(config_);
    // The line of the checkpoint's own step is written again: a kill may have come between saving and logging.
    log_ = std::make_unique<RunLog>(folder_.path() + "/log.jsonl", training_.step - 1);
}

// One optimizer step: micro-steps of forward and backward, then one update.
bool Trainer::train_step() {
    const double begin = seconds_now();
    double data_seconds = 0;
    StepReport report;
    report.step = training_.step + 1;
    report.lr = learning_rate(config_.schedule, config_.optimizer.lr, config_.training.steps, report.step);
    const OptimizerConfig& o = config_.optimizer;
    step_begin(device_, step_block_,
               {.lr = report.lr,
                .beta1 = o.beta1,
                .beta2 = o.beta2,
                .eps = o.eps,
                .weight_decay = o.weight_decay,
                .grad_clip = o.grad_clip});
    device_.zero(model_.gradients());
    for (int64_t micro_step = 0; micro_step < num_micro_steps_; ++micro_step) {
        if (stop_signal() != 0) return false;
        const double data_begin = seconds_now();
        fill_batch(rows_, static_cast<uint64_t>(training_.rows_consumed + micro_step * micro_batch_), micro_batch_,
                   micro_batch_, &host_batch_);
        data_seconds += seconds_now() - data_begin;
        const MicroBatch batch = batch_.upload(device_, host_batch_);
        model_.forward(batch, step_block_);
        model_.backward(batch);
    }
    optimizer_.update(model_, step_block_);

    training_.step += 1;
    training_.rows_consumed += num_micro_steps_ * micro_batch_;
    training_.state = step_block_->state;
    report.loss = step_block_->decision.loss;
    report.grad_norm = step_block_->decision.grad_norm;
    report.skipped = step_block_->decision.apply == 0;
    report.loss_scale = step_block_->state.loss_scale;
    report.tokens = training_.rows_consumed * config_.model.context_length;
    report.memory_bytes = plan_.total_bytes();
    report.step_seconds = seconds_now() - begin;
    report.data_wait_seconds = data_seconds;
    report.tokens_per_second = static_cast<double>(config_.training.batch_tokens) / report.step_seconds;
    training_.report = report;
    report_is_pending_ = true;
    return true;
}

// Mean loss over the validation rows; a signal leaves it empty.
void Trainer::evaluate() {
    *eval_block_ = StepBlock{};
    for (int64_t row = 0; row < val_rows_->num_rows(); row += micro_batch_) {
        if (stop_signal() != 0) return;
        const int64_t num_rows = std::min(micro_batch_, val_rows_->num_rows() - row);
        fill_batch(*val_rows_, static_cast<uint64_t>(row), num_rows, micro_batch_, &host_batch_);
        model_.evaluate(batch_.upload(device_, host_batch_), eval_block_);
    }
    training_.report.val_loss = eval_block_->sums.loss / static_cast<double>(eval_block_->sums.targets);
}

// A save that fails (a full disk) leaves the older checkpoints whole, and the run alive unless it was the last one.
void Trainer::save(bool is_last_chance) {
    try {
        save_checkpoint(folder_.path(), config_, training_, model_, optimizer_);
    } catch (const Error& error) {
        if (is_last_chance) throw;
        std::fprintf(stderr, "WARNING: %s; training goes on without this checkpoint\n", error.what());
        return;
    }
    saved_step_ = training_.step;
    std::printf("checkpoint of step %ld committed\n", static_cast<long>(training_.step));
}

void Trainer::sample() {
    for (const std::string& prompt : config_.sample.prompts) {
        const std::string text =
            sample_text(*generator_, prompt,
                        {.num_tokens = config_.sample.tokens,
                         .sampling = {.temperature = config_.sample.temperature, .top_k = 0, .top_p = 1},
                         .seed = static_cast<uint64_t>(config_.seed + training_.step),
                         .eot_token = static_cast<int32_t>(config_.data.eot_token)});
        std::printf("--- sample at step %ld ---\n%s%s\n", static_cast<long>(training_.step), printable(prompt).c_str(),
                    printable(text).c_str());
    }
    std::printf("---\n");
}

int Trainer::stop_for_nonfinite() const {
    if (!training_.report.skipped || step_block_->decision.nonfinite == 0) return kExitDone;
    if (config_.training.on_nonfinite == NonFinite::skip &&
        training_.state.consecutive_skips <= config_.training.max_skipped_steps)
        return kExitDone;
    std::fprintf(stderr,
                 "error: the loss or the gradient norm is not finite at step %ld (%d steps in a row): lower "
                 "optimizer.lr, or go back to an earlier checkpoint\n",
                 static_cast<long>(training_.step), training_.state.consecutive_skips);
    return kExitDiverged;
}

int Trainer::run() {
    start_or_resume();
    const auto is_due = [&](int64_t every) { return every > 0 && training_.step > 0 && training_.step % every == 0; };
    for (;;) {
        const bool is_last = training_.step >= config_.training.steps;
        // After an update: first save, so that nothing that follows can lose it; then evaluate, log, sample.
        if ((is_due(config_.checkpoint.every) || is_last) && saved_step_ != training_.step) save(is_last);
        if (val_rows_ && (is_due(config_.eval.every) || is_last)) evaluate();
        if (report_is_pending_) {
            log_->write(training_.report);
            if (is_due(config_.log.every) || is_last || training_.report.val_loss)
                std::printf("%s\n", report_line(training_.report, config_.training.steps).c_str());
            report_is_pending_ = false;
            if (const int code = stop_for_nonfinite(); code != kExitDone) return code;
        }
        if (config_.sample.every > 0 && (is_due(config_.sample.every) || is_last) && stop_signal() == 0) sample();
        std::fflush(stdout);
        if (is_last) return kExitDone;
        if (stop_signal() != 0 || !train_step()) {
            if (saved_step_ != training_.step && training_.step > 0) save(true);
            std::fprintf(stderr, "stopped by signal %d after step %ld: go on with --resume auto\n", stop_signal(),
                         static_cast<long>(training_.step));
            return kExitInterrupted;
        }
    }
}

}  // namespace

int train(const TrainOptions& options) {
    REQUIRE(options.resume == "auto" || options.resume == "none", "--resume ", options.resume, ": use auto or none");
    REQUIRE(!options.is_dry_run, "--dry-run is not there yet: leave it out");
    const Config config = read_config(options.config_file, options.overrides);
    install_stop_handlers();
    Trainer trainer(config, options.resume == "auto");
    return trainer.run();
}

}  // namespace ingot
