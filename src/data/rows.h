// Rows of T tokens cut from the documents of a split, and micro-batches made of them.
//
// Packing is `stream`: the documents one after another, epoch after epoch, cut into rows: nothing is wasted. Row r of
// the stream has its positions [r T, r T + T) as inputs, and what follows each as its target. With masked documents a
// row knows where documents begin; its own start counts as one, since nothing before it is visible. The target of a
// document's last token is then -1 (ignored), unless the next document opens with EOT (eot side `start`): that EOT is
// the right answer. Without masking a row is one document.
//
// Sources refer to the TokenShards that they were made from, and may be read from any number of threads.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "kernels/attention/attention.h"
#include "src/data/shards.h"

namespace ingot {

// Where a row goes: T of each, and the document starts in the row (cleared first; ascending from 0).
struct RowView {
    int32_t *tokens, *targets, *positions;
    std::vector<int64_t>* document_starts;
};

// One epoch's documents in the order in which the stream has them.
class DocumentOrder {
  public:
    explicit DocumentOrder(const TokenShards& shards);                       // the order of the files
    DocumentOrder(const TokenShards& shards, uint64_t seed, int64_t epoch);  // permuted

    int64_t document(int64_t place) const { return order_.empty() ? place : order_[place]; }
    // The place in [0, num_documents) whose document holds the epoch's token `position`, and where in that document.
    struct Location {
        int64_t place, offset;
    };
    Location find(int64_t position) const;

  private:
    const TokenShards& shards_;
    std::vector<uint32_t> order_;   // empty: as in the files
    std::vector<int64_t> samples_;  // tokens before place 0, 16, 32...: half a byte a document instead of eight
};

class Rows {
  public:
    virtual ~Rows() = default;
    virtual void fill(uint64_t row, const RowView& out) const = 0;
    int64_t context_length() const { return context_length_; }

  protected:
    // Throws UserError if the split has fewer than T + 1 tokens: one row and its last target.
    Rows(const TokenShards& shards, const DataConfig& config, int64_t context_length);
    virtual std::shared_ptr<const DocumentOrder> order(int64_t epoch) const = 0;
    // `count` inputs and targets of the stream from `position` of `epoch` on.
    void fill_stream(int64_t epoch, int64_t position, int64_t count, const RowView& out) const;

    const TokenShards& shards_;
    const bool mask_documents_;
    const int64_t context_length_;  // T
};

// The endless stream of training. A row is a pure function of (seed, row): ask for any, in any order.
//
// Epoch e is the whole split once, its documents permuted by (seed, e). A row belongs to the epoch in which its first
// stream position lies: rows first_row(e) to first_row(e + 1) - 1, with first_row(e) = ceil(e * tokens / T). They are
// permuted among themselves too, so that a long document does not fill consecutive rows. Without shuffling neither.
class RowSource : public Rows {
  public:
    RowSource(const TokenShards& shards, const DataConfig& config, int64_t context_length, uint64_t seed);
    void fill(uint64_t row, const RowView& out) const override;
    uint64_t first_row(int64_t epoch) const;
    int64_t epoch_of(uint64_t row) const;

  private:
    std::shared_ptr<const DocumentOrder> order(int64_t epoch) const override;

    const bool is_shuffled_;
    const uint64_t seed_;
    struct CachedOrder {
        int64_t epoch;
        std::shared_ptr<const DocumentOrder> order;
    };
    mutable std::mutex mutex_;
    mutable std::vector<CachedOrder> cache_;  // the latest used first
};

// The split once, in the order of the files: row v has the inputs [v T, min(v T + T, tokens - 1)), so that every token
// but the first is a target once (those at document ends ignored where documents are masked). The last row is filled up
// with a document of token 0 and ignored targets.
class ValidationRows : public Rows {
  public:
    // max_tokens caps the rows: ceil(max_tokens / T).
    ValidationRows(const TokenShards& shards, const DataConfig& config, int64_t context_length, int64_t max_tokens);
    void fill(uint64_t row, const RowView& out) const override;  // row < num_rows()
    int64_t num_rows() const { return num_rows_; }

  private:
    std::shared_ptr<const DocumentOrder> order(int64_t) const override { return order_; }

    std::shared_ptr<const DocumentOrder> order_;
    int64_t num_rows_;
};

// A keyed permutation of [0, count): the image of `index`. A pure function of its arguments on every platform.
uint64_t permuted_index(uint64_t index, uint64_t count, uint64_t seed, uint64_t stream);

// A micro-batch of B rows as one packed row of N = B * T tokens, in host memory: seven arrays of N, one after another,
// so that one copy takes all of them to a device.
class HostBatch {
  public:
    // Memory that `device` can copy from while the program goes on; it grows as needed.
    explicit HostBatch(const Device& device = Device::cpu()) : device_(device) {}

    // Sets N; what the arrays hold is lost.
    void resize(int64_t n);
    std::span<int32_t> tokens, targets, positions;
    std::span<int32_t> first_key, end_key, first_query, end_query;  // the causal mask, see AttentionMask
    std::vector<int64_t> document_starts;

    static constexpr int64_t kArrays = 7;
    Tensor all() const;          // (7, N) int32: the arrays in the order above
    AttentionMask mask() const;  // host tensors
    // Pairs of a token and a token that it sees, where a document of n tokens counts n^2 / 2: for counting FLOPs.
    double visible_pairs() const;

  private:
    Device device_;
    std::shared_ptr<void> memory_;
    int64_t capacity_ = 0;
};

// Rows [first_row, first_row + num_rows) of `rows`, then padding (token 0, ignored targets, a document a row) up to
// batch_rows. The batch's memory is used again.
void fill_batch(const Rows& rows, uint64_t first_row, int64_t num_rows, int64_t batch_rows, HostBatch* batch);

}  // namespace ingot
