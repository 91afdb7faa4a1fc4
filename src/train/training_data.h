// The data of a run: both splits, their files open and checked.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "src/config/config.h"
#include "src/data/blend.h"
#include "src/data/corpus.h"
#include "src/data/rows.h"

namespace ingot {

struct TrainingData {
    // Throws UserError naming the file or the key. A file in both splits is a warning on stderr. `run` has the
    // document indexes that cannot stand beside their shard (null: none), and outlives this.
    explicit TrainingData(const Config& config, const Folder* run = nullptr);
    TrainingData(const TrainingData&) = delete;
    TrainingData& operator=(const TrainingData&) = delete;

    // Throws UserError for a dataset of data.train from which nothing would be learnt, as far as Corpus::has_target()
    // looks. (data.val is looked at when it is opened.)
    void require_targets() const;
    // Tokens that training.epochs counts as one: those of all rows that an epoch takes.
    int64_t epoch_tokens() const;
    // "data: ..." and "validation: ...", one line for each dataset.
    std::string describe() const;
    // Returns the state that a checkpoint keeps after `rows_consumed` rows.
    BlendState state(int64_t rows_consumed) const;
    // Goes on where a checkpoint was. Returns a line for each thing that is not as it was: BlendedRows::resume(), and
    // what the validation losses are measured on.
    std::vector<std::string> resume(const BlendState& state, int64_t rows_consumed);
    // Remembers what all files hold, for state() and resume(), before anything is trained on. Throws UserError.
    void take_fingerprints() const;
    // Names of the data that are too large to be compared whole.
    std::vector<std::string> sampled() const;
    // "data: 50.00% of the rows ...", a line for each dataset of a blend.
    std::string describe_blend(int64_t rows_consumed) const;
    // Every corpus that has not been read whole yet.
    std::vector<const Corpus*> unread() const;

    std::vector<std::unique_ptr<Corpus>> corpora;  // of data.train: one, or with weights one for each entry
    std::unique_ptr<BlendedRows> train;
    std::unique_ptr<Corpus> val_corpus;  // null without data.val
    std::unique_ptr<ValidationRows> val;

  private:
    const bool mask_documents_;
};

// Returns the options that a corpus of this config is opened with.
CorpusOptions corpus_options(const Config& config, const Folder* run);

}  // namespace ingot
