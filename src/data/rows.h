// Rows of T tokens, cut from the documents of a corpus. data/README.md shows what a row is.
//
// With masked documents a row knows where documents begin. Its own start counts as one, since nothing before it is
// visible. The target of a document's last token is then -1 (ignored), unless the next token is the EOT that opens the
// next document (eot side `start`), which is the right answer. Without masking a row is one document. A target whose
// mask byte is 0 is ignored.
//
// Rows refer to their Corpus, and are thread-safe. Every id in a row is below the vocabulary's size: a larger one
// throws UserError naming its place.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <vector>

#include "src/config/config.h"
#include "src/data/corpus.h"
#include "src/data/keyed_cache.h"
#include "src/data/order.h"
#include "src/data/packing.h"

namespace ingot {

// The destination of a row: T of each, and the document starts in the row (cleared first; ascending from 0).
struct RowView {
    int32_t *tokens, *targets, *positions;
    std::vector<int64_t>* document_starts;
};

class Rows {
  public:
    explicit Rows(int64_t context_length) : context_length_(context_length) {}
    virtual ~Rows() = default;
    // Throws Stopped if it has to read much and `stop` asks to end.
    virtual void fill(uint64_t row, const RowView& out, const std::stop_token& stop = {}) const = 0;
    // Prepares data that rows soon after this one need, so that they do not wait for it.
    virtual void prepare_after(uint64_t, const std::stop_token&) const {}
    int64_t context_length() const { return context_length_; }  // T

  protected:
    const int64_t context_length_;
};

// Makes tokens [begin, end) of a row padding: token 0, no target, a document of its own.
void fill_padding(int64_t begin, int64_t end, const RowView& out);

// The start of a group of documents, from which rows can be counted instead of from the first. Groups are numbered
// through all epochs.
struct Bookmark {
    int64_t group = 0;
    uint64_t first_row = 0;
    bool operator==(const Bookmark&) const = default;
};

// An endless dataset: each epoch has all of the corpus once, in its own order. A row is a pure function of (corpus,
// seed, row), and rows can be read in any order.
class DatasetRows : public Rows {
  public:
    // Throws UserError if the corpus has fewer than T + 1 tokens: one row and its last target.
    DatasetRows(const Corpus& corpus, const DataConfig& config, int64_t context_length, uint64_t seed);
    static std::unique_ptr<DatasetRows> make(const Corpus& corpus, const DataConfig& config, int64_t context_length,
                                             uint64_t seed);

    const Corpus& corpus() const { return corpus_; }
    int64_t num_groups() const { return EpochOrder::num_groups(corpus_); }
    // Returns how many epochs the first `num_rows` rows are.
    virtual double epochs(uint64_t num_rows) const = 0;
    // Returns about how many tokens the rows of an epoch have, including padding, for planning.
    virtual int64_t epoch_tokens() const = 0;
    // Returns a bookmark for resume_at(), with which another process finds `row` quickly.
    virtual std::optional<Bookmark> bookmark(uint64_t) const { return std::nullopt; }
    // Returns false, and ignores the bookmark, if it cannot belong to this corpus before `row`; rows are then counted
    // from the first.
    virtual bool resume_at(const Bookmark&, uint64_t) { return true; }

  protected:
    std::shared_ptr<const EpochOrder> order(int64_t epoch) const;

    const Corpus& corpus_;
    const bool mask_documents_;
    const Shuffle shuffle_;

  private:
    mutable KeyedCache<int64_t, EpochOrder> orders_{3};
};

// Packing `stream` concatenates the documents, epoch after epoch, and cuts them into rows without waste. A row belongs
// to the group of its first token. The rows of a group are permuted, so that a long document does not fill consecutive
// rows; without shuffling they are not.
class StreamRows : public DatasetRows {
  public:
    using DatasetRows::DatasetRows;
    void fill(uint64_t row, const RowView& out, const std::stop_token& stop = {}) const override;
    void prepare_after(uint64_t row, const std::stop_token& stop) const override;
    double epochs(uint64_t num_rows) const override;
    int64_t epoch_tokens() const override;

    // Returns the first row of a group of an epoch; for group num_groups(), the first of the next epoch.
    uint64_t first_row(int64_t epoch, int64_t group = 0) const;
    // Writes `count` inputs and targets of the stream from `position` of `epoch` on.
    void fill_stream(int64_t epoch, int64_t position, int64_t count, const RowView& out,
                     const std::stop_token& stop) const;

  private:
    struct Place {
        int64_t epoch, group;
    };
    Place place_of(uint64_t row) const;
    std::shared_ptr<const GroupDocuments> documents(int64_t epoch, int64_t group, const std::stop_token& stop) const;

    // The rows of a group reach into the next one, and one more is prepared ahead.
    mutable KeyedCache<std::pair<int64_t, int64_t>, GroupDocuments> groups_{3};
};

// Packing `best_fit` packs the documents of a group into rows, whole if they fit (packing.h), and fills the rest of a
// row with padding. The number of rows of a group is known only when it is packed, so row r is found by counting
// through the groups before it, once, or from a bookmark.
class BestFitRows : public DatasetRows {
  public:
    using DatasetRows::DatasetRows;
    void fill(uint64_t row, const RowView& out, const std::stop_token& stop = {}) const override;
    void prepare_after(uint64_t row, const std::stop_token& stop) const override;
    double epochs(uint64_t num_rows) const override;
    int64_t epoch_tokens() const override;
    std::optional<Bookmark> bookmark(uint64_t row) const override;
    bool resume_at(const Bookmark& bookmark, uint64_t row) override;

  private:
    // Groups are numbered through all epochs.
    struct PackedGroup {
        GroupDocuments documents;
        PackedRows rows;
    };
    std::shared_ptr<const PackedGroup> group(int64_t number, const std::stop_token& stop) const;
    struct Place {
        int64_t group;
        uint64_t first_row, num_rows;
    };
    Place place_of(uint64_t row, const std::stop_token& stop) const;
    void fill_piece(const PackedGroup& group, const Piece& piece, const Piece* next, int64_t begin,
                    const RowView& out) const;

    mutable KeyedCache<int64_t, PackedGroup> groups_{3};
    mutable std::mutex mutex_;  // guards the members below
    mutable int64_t first_group_ = 0;
    mutable std::vector<uint64_t> first_rows_ = {0};  // of group first_group_ and the groups after it
};

// The corpus once, in the order of the files. Row v has the inputs [v T, min(v T + T, tokens - 1)), so that every
// token but the first is a target once (at document ends an ignored one, where documents are masked). The last row is
// filled up with padding.
class ValidationRows : public Rows {
  public:
    // max_tokens limits the number of rows to ceil(max_tokens / T).
    ValidationRows(const Corpus& corpus, const DataConfig& config, int64_t context_length, int64_t max_tokens);
    void fill(uint64_t row, const RowView& out, const std::stop_token& stop = {}) const override;  // row < num_rows()
    int64_t num_rows() const { return num_rows_; }

  private:
    StreamRows stream_;
    int64_t num_tokens_, num_rows_;
};

}  // namespace ingot
