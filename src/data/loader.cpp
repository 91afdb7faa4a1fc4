#include "src/data/loader.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "kernels/core/check.h"

namespace ingot {

LoaderPlan::Batch LoaderPlan::batch(int64_t index) const {
    const int64_t step = index / micro_steps(), micro_step = index % micro_steps();
    const int64_t first = (micro_step * ranks + rank) * batch_rows;
    return {first_row + static_cast<uint64_t>(step * rows_per_step + std::min(first, rows_per_step)),
            std::clamp<int64_t>(rows_per_step - first, 0, batch_rows)};
}

Loader::Loader(const Rows& rows, const LoaderPlan& plan, std::span<HostBatch> ring, std::vector<const Corpus*> unread)
    : rows_(rows), plan_(plan), unread_(std::move(unread)), ring_(ring) {
    CHECK(plan.rows_per_step > 0 && plan.batch_rows > 0 && plan.rank >= 0 && plan.rank < plan.ranks, "rank ", plan.rank,
          " of ", plan.ranks, ", ", plan.rows_per_step, " rows by ", plan.batch_rows);
    CHECK(ring.size() == kBatches, ring.size(), " batches in the ring");
    for (HostBatch& batch : ring_) {
        batch.resize(plan.batch_rows * rows.context_length());
        batch.reserve_documents(plan.batch_rows * rows.context_length());
    }
    threads_.emplace_back([this](const std::stop_token& stop) { fill(stop); });
    threads_.emplace_back([this](const std::stop_token& stop) { prepare(stop); });
    if (!unread_.empty()) threads_.emplace_back([this](const std::stop_token& stop) { read(stop); });
}

Loader::~Loader() {
    for (std::jthread& thread : threads_) thread.request_stop();
}

void Loader::fill(const std::stop_token& stop) {
    try {
        for (int64_t index = 0;; ++index) {
            {
                std::unique_lock<std::mutex> lock(mutex_);
                const auto has_room = [&] {
                    return num_filled_ - std::max<int64_t>(0, num_taken_ - kInUse) < kBatches;
                };
                if (!changed_.wait(lock, stop, has_room)) return;
            }
            const LoaderPlan::Batch batch = plan_.batch(index);
            fill_batch(rows_, batch.first_row, batch.num_rows, plan_.batch_rows,
                       &ring_[static_cast<size_t>(index) % ring_.size()], stop);
            const std::lock_guard<std::mutex> lock(mutex_);
            num_filled_ = index + 1;
            changed_.notify_all();
        }
    } catch (const Stopped&) {
    } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex_);
        filling_error_ = std::current_exception();
        changed_.notify_all();
    }
}

// Prepares the next group of documents while this one is read. fill() meets the same errors and reports them.
void Loader::prepare(const std::stop_token& stop) {
    int64_t prepared = 0;
    try {
        for (;;) {
            {
                std::unique_lock<std::mutex> lock(mutex_);
                if (!changed_.wait(lock, stop, [&] { return num_filled_ > prepared; })) return;
                prepared = num_filled_;
            }
            rows_.prepare_after(plan_.batch(prepared - 1).first_row, stop);
        }
    } catch (...) {}
}

void Loader::read(const std::stop_token& stop) {
    // Training has priority: on Linux each thread has its own niceness.
    setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), 10);
    try {
        for (const Corpus* const corpus : unread_)
            for (int64_t shard = 0; shard < corpus->num_shards(); ++shard) corpus->read_shard(shard, stop);
    } catch (const Stopped&) {
    } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex_);
        reading_error_ = std::current_exception();
        changed_.notify_all();
    }
}

const HostBatch* Loader::next(const std::function<bool()>& should_stop) {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto is_there = [&] { return num_filled_ > num_taken_ || filling_error_ || reading_error_; };
    // Signals and time limits do not notify the condition variable, so it wakes a few times a second.
    while (!changed_.wait_for(lock, std::chrono::milliseconds(50), is_there))
        if (should_stop()) return nullptr;
    if (reading_error_) std::rethrow_exception(reading_error_);
    if (num_filled_ == num_taken_) std::rethrow_exception(filling_error_);
    const HostBatch* const batch = &ring_[static_cast<size_t>(num_taken_) % ring_.size()];
    num_taken_ += 1;
    changed_.notify_all();
    return batch;
}

}  // namespace ingot
