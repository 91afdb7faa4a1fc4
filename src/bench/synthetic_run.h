// Runs the training step on random tokens, without data files and a run folder, for benchmarks and tests.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/device.h"
#include "src/config/config.h"
#include "src/train/step_runner.h"
#include "src/train/training_plan.h"

namespace ingot {

struct SyntheticOptions {
    int64_t document_tokens = 0;  // 0: a quarter of the context
    bool leaves_out_attention = false;
};

class SyntheticRun {
  public:
    // Allocates, warms up and draws weights. `config` is resolved. The ranks (null: one) outlive the run. Throws
    // UserError if the plan does not fit.
    SyntheticRun(const Config& config, const Device& device, const SyntheticOptions& options = {},
                 Ranks* ranks = nullptr);

    // Finishes the steps up to `step`. On a GPU one more is then in flight, unless `drains` is set.
    void run_to(int64_t step, bool drains = false);
    int64_t step() const { return runner_.last_finished(); }  // the last finished one
    // Returns the time of the last finished step on the device.
    double seconds() const { return seconds_; }
    const StepDecision& decision() const { return decision_; }
    int64_t num_skipped() const { return num_skipped_; }
    TrainingPlan& plan() { return plan_; }
    // Returns the number of pairs of a token and a token that it attends to, per token. A document of n tokens counts
    // n^2 / 2.
    double visible_pairs_per_token() const { return visible_pairs_per_token_; }

  private:
    void draw_batches(int64_t document_tokens);
    void launch_step();

    Config config_;
    const std::unique_ptr<Ranks> alone_ = one_rank();
    Ranks& ranks_;
    Console console_;
    TrainingPlan plan_;
    StepRunner runner_;
    static constexpr size_t kBatches = 8;
    std::vector<HostBatch> batches_;  // drawn once, since drawing could take longer than a small model's step
    int64_t num_used_ = 0, num_skipped_ = 0;
    double seconds_ = 0, visible_pairs_per_token_ = 0;
    StepDecision decision_;
};

}  // namespace ingot
