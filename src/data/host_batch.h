// Micro-batches in host memory.
#pragma once

#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"
#include "src/data/micro_batch.h"
#include "src/data/rows.h"

namespace ingot {

// A micro-batch of B rows as one packed row of N = B * T tokens, in host memory: the arrays of MicroBatch, one
// after another, so that one copy takes all of them to a device.
class HostBatch {
  public:
    // Uses memory that `device` can copy from asynchronously; it grows as needed.
    explicit HostBatch(const Device& device = Device::cpu()) : device_(device) {}

    // Takes the memory of the arrays from a plan instead, for up to `max_tokens`. The batch then never moves.
    void plan(const std::string& name, int64_t max_tokens, MemoryPlan* plan);
    // Sets N. The arrays lose their content.
    void resize(int64_t n);
    // Reserves room for n documents, so that filling N tokens never allocates. Most of it is never touched.
    void reserve_documents(int64_t n);
    std::span<int32_t> tokens, targets, positions;
    std::span<int32_t> first_key, end_key, first_query, end_query;  // the causal mask, see AttentionMask
    std::vector<int64_t> document_starts;

    Tensor all() const;                                                // (MicroBatch::kArrays, N) int32
    AttentionMask mask() const { return MicroBatch::of(all()).mask; }  // host tensors
    // Pairs of a token and a token that it sees, where a document of n tokens counts n^2 / 2: for counting FLOPs.
    double visible_pairs() const;

  private:
    friend void fill_batch(const Rows& rows, uint64_t first_row, int64_t num_rows, int64_t batch_rows, HostBatch* batch,
                           const std::stop_token& stop);
    Device device_;
    Tensor planned_;                // (7, max_tokens); empty without a plan
    std::shared_ptr<void> memory_;  // used without a plan
    int64_t capacity_ = 0;
    std::vector<int64_t> row_starts_;  // reused, so that filling allocates nothing
};

// Fills the batch with rows [first_row, first_row + num_rows) of `rows`, then up to batch_rows with padding (token 0,
// ignored targets, one document per row). Reuses the batch's memory.
void fill_batch(const Rows& rows, uint64_t first_row, int64_t num_rows, int64_t batch_rows, HostBatch* batch,
                const std::stop_token& stop = {});

}  // namespace ingot
