// Several datasets as one sequence of rows, each with its share.
//
// Of every 1,024 rows each dataset has a whole number, by largest remainder of its weight, and a keyed permutation says
// which: a closed form, so that a row is found without those before it. A weight is a share of the rows, and so of the
// tokens that are trained on.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "src/base/json_text.h"
#include "src/data/keyed_cache.h"
#include "src/data/rows.h"

namespace ingot {

constexpr int64_t kBlendRows = 1024;

// How many of kBlendRows rows each weight gets: the whole part of its share, and one more for the largest remainders
// (equal ones: the first). Sums to kBlendRows.
std::vector<int64_t> blend_shares(const std::vector<double>& weights);

// Where the datasets of a run stand, as a checkpoint keeps it.
struct BlendState {
    struct Dataset {
        std::string name;
        int64_t share = kBlendRows, tokens = 0;
        uint64_t first_row = 0, next_row = 0;  // at the blend's first row, and now
        std::optional<Bookmark> bookmark;
        Fingerprint fingerprint;
    };
    uint64_t first_row = 0;         // of the run, with which the blend begins
    std::vector<Dataset> datasets;  // none: one that has read all rows of the run
    Fingerprint validation;         // of data.val; empty if there is none
};
void to_json(nlohmann::ordered_json& json, const BlendState& state);
// From a checkpoint after `rows_consumed` rows. Throws UserError for a value that cannot be.
BlendState blend_state_from_json(const JsonFields& fields, int64_t rows_consumed);

// Where the blend begins: at row `first_row` of the run each dataset goes on at a row of its own. All 0, unless the
// blend of a run was changed.
struct BlendOrigin {
    uint64_t first_row = 0;
    std::vector<uint64_t> first_rows;  // of each dataset
};

class BlendedRows : public Rows {
  public:
    struct Dataset {
        std::string name;
        int64_t share = kBlendRows;
        std::unique_ptr<DatasetRows> rows;
    };
    // All rows have one T; the shares sum to kBlendRows.
    BlendedRows(std::vector<Dataset> datasets, uint64_t seed);

    void fill(uint64_t row, const RowView& out, const std::stop_token& stop = {}) const override;  // row >= origin
    void prepare_after(uint64_t row, const std::stop_token& stop) const override;

    const std::vector<Dataset>& datasets() const { return datasets_; }
    // Which dataset the run's row comes from, and which row of that it is.
    struct Source {
        size_t dataset;
        uint64_t row;
    };
    Source source(uint64_t row) const;
    // How many of the run's rows [begin, end) come from each dataset.
    std::vector<uint64_t> counts(uint64_t begin, uint64_t end) const;

    // Where the datasets stand after `rows_consumed` rows of the run: for the checkpoint.
    BlendState state(uint64_t rows_consumed) const;
    // Goes on from what state() said. With the same datasets and shares the rows are those that would have come. Else
    // the blend begins anew at `rows_consumed`: each dataset that was there before (of the same name, else of the same
    // size) goes on at its own next row, others begin. Returns a line for each thing that changed. Throws UserError for
    // a place that the datasets do not have.
    std::vector<std::string> resume(const BlendState& state, uint64_t rows_consumed);

    // "data/a: 2,048 rows, 50.0% of all, epoch 1.25", a line for each dataset, of the run's first rows.
    std::vector<std::string> describe(uint64_t rows_consumed) const;

  private:
    // For each row of a block: its dataset, and how many of the block's rows before it have the same.
    struct Block {
        std::vector<uint16_t> datasets, places;
    };
    std::shared_ptr<const Block> block(uint64_t number) const;
    // How many of the first `num_rows` rows since the origin come from a dataset. Allocates nothing.
    uint64_t count(size_t dataset, uint64_t num_rows) const;

    std::vector<Dataset> datasets_;
    const uint64_t seed_;
    BlendOrigin origin_;
    mutable KeyedCache<uint64_t, Block> blocks_{4};
};

}  // namespace ingot
