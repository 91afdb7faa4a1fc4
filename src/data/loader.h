// Fills micro-batches of training ahead of use in a thread.
#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "src/data/corpus.h"
#include "src/data/host_batch.h"
#include "src/data/rows.h"

namespace ingot {

// Says which rows a process reads. A step is `rows_per_step` rows, and its micro-step m gives rank r the rows from (m
// ranks + r) batch_rows on. If they do not divide, the last batches of a step are filled up with padding.
struct LoaderPlan {
    uint64_t first_row = 0;
    int64_t rows_per_step = 0, batch_rows = 0;
    int64_t ranks = 1, rank = 0;

    int64_t micro_steps() const { return (rows_per_step + ranks * batch_rows - 1) / (ranks * batch_rows); }
    struct Batch {
        uint64_t first_row;
        int64_t num_rows;  // the rest is padding
    };
    // Returns batch `index` of this rank, counted through all steps.
    Batch batch(int64_t index) const;
};

class Loader {
  public:
    static constexpr int64_t kAhead = 4, kInUse = 2, kBatches = kAhead + kInUse;
    // `rows`, the corpora and `ring` must outlive the loader. It fills the kBatches batches of `ring` in turn. Once
    // they have the size of a micro-batch, rows and batches allocate nothing, except for a new group of documents
    // (order.h) and every kBlendRows rows of a blend. A second thread reads the `unread` corpora whole
    // (Corpus::read_shard), to check ids that are not yet known to be in range.
    Loader(const Rows& rows, const LoaderPlan& plan, std::span<HostBatch> ring, std::vector<const Corpus*> unread);
    // Stops the threads at once.
    ~Loader();
    Loader(const Loader&) = delete;
    Loader& operator=(const Loader&) = delete;

    // The next batch; waits for it while `should_stop()` is false, else returns null. What it returned stays as it is
    // until next() was called twice more, since a copy of it may still be in flight. Throws what the threads threw.
    const HostBatch* next(const std::function<bool()>& should_stop);

  private:
    void fill(const std::stop_token& stop);
    void prepare(const std::stop_token& stop);
    void read(const std::stop_token& stop);

    const Rows& rows_;
    const LoaderPlan plan_;
    const std::vector<const Corpus*> unread_;
    const std::span<HostBatch> ring_;  // batch i is in i % kBatches

    std::mutex mutex_;  // guards the members below
    std::condition_variable_any changed_;
    int64_t num_filled_ = 0, num_taken_ = 0;
    std::exception_ptr filling_error_, reading_error_;

    std::vector<std::jthread> threads_;  // the last member, so that the threads end before anything else is destroyed
};

}  // namespace ingot
