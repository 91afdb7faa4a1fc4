#include "src/bench/synthetic_run.h"

#include <algorithm>

#include "kernels/core/rng.h"

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
    : config_(without_files(config)), plan_(config_, device), queue_(config_, &plan_) {
    if (options.leaves_out_attention) plan_.model.leave_out_attention();
    plan_.allocate();
    plan_.warm_up({});
    plan_.model.initialize_constants();
    plan_.optimizer.initialize_constants(plan_.model);
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
    queue_.begin();
    for (int64_t micro_step = 0; micro_step < plan_.num_micro_steps(); ++micro_step) {
        HostBatch* const host = plan_.batch.next();
        host->resize(plan_.model.max_tokens());
        const HostBatch& drawn = batches_[static_cast<size_t>(num_filled_++) % kBatches];
        Device::cpu().copy(host->all(), drawn.all());
        plan_.micro_step(*host);
    }
    queue_.end();
}

void SyntheticRun::run_to(int64_t step, bool drains) {
    while (queue_.last_finished() < step) {
        const int64_t next = queue_.last_finished() + 1 + queue_.ahead();
        while (queue_.last_queued() < (drains ? std::min(step, next) : next)) queue_step();
        const StepQueue::Finished finished = queue_.finish();
        decision_ = finished.block.decision;
        num_skipped_ += decision_.apply == 0;
        seconds_ = finished.seconds;
    }
}

}  // namespace ingot
