#include "src/synthetic_run.h"

#include <algorithm>
#include <cstring>

#include "kernels/core/rng.h"
#include "src/schedule.h"

namespace ingot {

namespace {

// What a benchmark has no use for takes no memory: samples, and the copy that a checkpoint is written from.
Config without_files(Config config) {
    config.sample.every = 0;
    config.checkpoint.host_memory = 0;
    return config;
}

}  // namespace

SyntheticRun::SyntheticRun(const Config& config, const Device& device, const SyntheticOptions& options)
    : config_(without_files(config)), plan_(config_, device), queue_{QueuedStep(device), QueuedStep(device)} {
    if (options.leaves_out_attention) plan_.model.leave_out_attention();
    plan_.allocate();
    plan_.warm_up({});
    plan_.model.initialize_constants();
    plan_.step.write(StepBlock{});
    plan_.model.initialize_weights(static_cast<uint64_t>(config_.seed));
    const int64_t T = config_.model.context_length;
    const int64_t document_tokens = options.document_tokens > 0 ? options.document_tokens : std::max<int64_t>(T / 4, 1);
    draw_batches(config_.data.mask_documents ? std::min(document_tokens, T) : T);
}

void SyntheticRun::draw_batches(int64_t document_tokens) {
    const int64_t T = config_.model.context_length, N = plan_.model.max_tokens();
    for (size_t b = 0; b < kBatches; ++b) {
        HostBatch& batch = batches_.emplace_back();
        batch.resize(N);
        const auto token = [&](int64_t i) {
            return static_cast<int32_t>(random_bits(static_cast<uint64_t>(config_.seed), b, static_cast<uint64_t>(i)) %
                                        static_cast<uint64_t>(config_.model.vocab_size));
        };
        for (int64_t i = 0; i < N; ++i) {
            const int64_t position = i % T % document_tokens;
            const bool ends_row = (i + 1) % T == 0, ends_document = (i + 1) % T % document_tokens == 0;
            if (position == 0) batch.document_starts.push_back(i);
            batch.tokens[static_cast<size_t>(i)] = token(i);
            batch.targets[static_cast<size_t>(i)] = ends_document && !ends_row ? -1 : token(i + 1);
            batch.positions[static_cast<size_t>(i)] = static_cast<int32_t>(position);
        }
        fill_document_mask(batch.mask(), batch.document_starts, true);
    }
    visible_pairs_per_token_ = batches_[0].visible_pairs() / static_cast<double>(N);
}

void SyntheticRun::queue_step() {
    const int64_t step = queued_step_ + 1;
    const OptimizerConfig& o = config_.optimizer;
    QueuedStep& queued = queue_[static_cast<size_t>(step % 2)];
    queued.begin.record();
    plan_.begin_step(
        {.lr = learning_rate(config_.schedule, o.lr, config_.training.steps, std::min(step, config_.training.steps)),
         .beta1 = o.beta1,
         .beta2 = o.beta2,
         .eps = o.eps,
         .weight_decay = o.weight_decay,
         .grad_clip = o.grad_clip,
         .dynamic_loss_scale = plan_.model.dtype() == DType::f16});
    for (int64_t micro_step = 0; micro_step < plan_.num_micro_steps(); ++micro_step) {
        HostBatch* const host = plan_.batch.next();
        host->resize(plan_.model.max_tokens());
        const HostBatch& drawn = batches_[static_cast<size_t>(num_filled_++) % kBatches];
        Device::cpu().copy(host->all(), drawn.all());
        plan_.micro_step(*host);
    }
    plan_.update();
    plan_.device().start_copy(DeviceStep::bytes_of(queued.block), plan_.step.tensor());
    queued.end.record();
    queued_step_ = step;
}

void SyntheticRun::finish_step() {
    const QueuedStep& queued = queue_[static_cast<size_t>((step_ + 1) % 2)];
    queued.end.wait();
    step_ += 1;
    decision_ = queued.block->decision;
    num_skipped_ += decision_.apply == 0;
    seconds_ = queued.end.seconds_since(queued.begin);
}

void SyntheticRun::run_to(int64_t step, bool drains) {
    const int64_t ahead = plan_.device().is_cpu() ? 0 : 1;
    while (step_ < step) {
        const int64_t last = drains ? std::min(step, step_ + 1 + ahead) : step_ + 1 + ahead;
        while (queued_step_ < last) queue_step();
        finish_step();
    }
}

}  // namespace ingot
