#include "src/bench/synthetic_run.h"

#include <algorithm>

#include "kernels/core/rng.h"

namespace ingot {

namespace {

// Removes what a benchmark does not use, so that it takes no memory: samples, and the snapshot for checkpoints.
Config without_files(Config config) {
    config.sample.every = 0;
    config.checkpoint.host_memory = 0;
    return config;
}

}  // namespace

SyntheticRun::SyntheticRun(const Config& config, const Device& device, const SyntheticOptions& options, Ranks* ranks)
    : config_(without_files(config)),
      ranks_(ranks != nullptr ? *ranks : *alone_),
      console_(ranks_.is_first()),
      plan_(config_, device, &ranks_),
      runner_(config_, &plan_, &ranks_, console_) {
    if (options.leaves_out_attention) plan_.model.leave_out_attention();
    runner_.prepare({});
    const int64_t T = config_.model.context_length;
    const int64_t document_tokens = options.document_tokens > 0 ? options.document_tokens : std::max<int64_t>(T / 4, 1);
    draw_batches(config_.data.mask_documents ? std::min(document_tokens, T) : T);
}

void SyntheticRun::draw_batches(int64_t document_tokens) {
    const int64_t T = config_.model.context_length, N = plan_.model.max_tokens();
    batches_.reserve(kBatches);
    for (size_t b = 0; b < kBatches; ++b) {
        HostBatch& batch = batches_.emplace_back(plan_.device());
        batch.resize(N);
        const auto token = [&](int64_t i) {
            return static_cast<int32_t>(
                random_bits(static_cast<uint64_t>(config_.seed + ranks_.rank()), b, static_cast<uint64_t>(i)) %
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

void SyntheticRun::launch_step() {
    runner_.begin();
    for (int64_t micro_step = 0; micro_step < plan_.num_micro_steps(); ++micro_step)
        runner_.micro_step([&] { return &batches_[static_cast<size_t>(num_used_++) % kBatches]; });
    runner_.update();
}

void SyntheticRun::run_to(int64_t step, bool drains) {
    while (runner_.last_finished() < step) {
        const int64_t next = runner_.last_finished() + 1 + runner_.ahead();
        while (runner_.last_launched() < (drains ? std::min(step, next) : next)) launch_step();
        const StepRunner::Finished finished = runner_.finish();
        decision_ = finished.block.decision;
        num_skipped_ += decision_.apply == 0;
        seconds_ = finished.seconds;
    }
}

}  // namespace ingot
