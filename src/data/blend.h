// Mixes several datasets into one sequence of rows, each with its share.
//
// Each dataset has a whole number of every 1,024 rows, by largest remainder of its weight, and a keyed permutation
// says which ones. This is a closed form: a row is found without those before it. A weight is a share of the rows, and
// so of the tokens that are trained on.
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

// Returns how many of kBlendRows rows each weight gets: the whole part of its share, and one more for the largest
// remainders (of equal ones, the first). The result sums to kBlendRows.
std::vector<int64_t> blend_shares(const std::vector<double>& weights);

// The position of a run in its datasets, as a checkpoint stores it.
struct BlendState {
    struct Dataset {
        std::string name;
        int64_t share = kBlendRows, tokens = 0;
        uint64_t first_row = 0, next_row = 0;  // at the blend's first row, and now
        std::optional<Bookmark> bookmark;
        Fingerprint fingerprint;
    };
    uint64_t first_row = 0;         // the run's row with which the blend begins
    std::vector<Dataset> datasets;  // empty for a dataset that has read all rows of the run
    Fingerprint validation;         // of data.val; empty if there is none
};
void to_json(nlohmann::ordered_json& json, const BlendState& state);
// Reads the state from a checkpoint after `rows_consumed` rows. Throws UserError for an impossible value.
BlendState blend_state_from_json(const JsonFields& fields, int64_t rows_consumed);

// Where the blend begins: at row `first_row` of the run, with a row of each dataset. All are 0 unless the blend of a
// run was changed.
struct BlendOrigin {
    uint64_t first_row = 0;
    std::vector<uint64_t> first_rows;  // by dataset
};

class BlendedRows : public Rows {
  public:
    struct Dataset {
        std::string name;
        int64_t share = kBlendRows;
        std::unique_ptr<DatasetRows> rows;
    };
    // All datasets must have the same T, and the shares must sum to kBlendRows.
    BlendedRows(std::vector<Dataset> datasets, uint64_t seed);

    void fill(uint64_t row, const RowView& out, const std::stop_token& stop = {}) const override;  // row >= origin
    void prepare_after(uint64_t row, const std::stop_token& stop) const override;

    const std::vector<Dataset>& datasets() const { return datasets_; }
    // The dataset that a row of the run comes from, and its row there.
    struct Source {
        size_t dataset;
        uint64_t row;
    };
    Source source(uint64_t row) const;
    // Returns how many of the run's rows [begin, end) come from each dataset.
    std::vector<uint64_t> counts(uint64_t begin, uint64_t end) const;

    // Returns the position after `rows_consumed` rows of the run, for the checkpoint.
    BlendState state(uint64_t rows_consumed) const;
    // Continues from a state() of an earlier process. With the same datasets and shares the rows are those that would
    // have come. Otherwise a new blend begins at `rows_consumed`: each dataset that was there before (of the same
    // name, else of the same size) continues at its own next row, and others begin. Returns a line for each change.
    // Throws UserError for a position that the datasets do not have.
    std::vector<std::string> resume(const BlendState& state, uint64_t rows_consumed);

    // Returns a line for each dataset about the run's first rows: "data/a: 2,048 rows, 50.0% of all, epoch 1.25".
    std::vector<std::string> describe(uint64_t rows_consumed) const;

  private:
    // Maps each row of a block to its dataset, and to the number of rows of that dataset before it in the block.
    struct Block {
        std::vector<uint16_t> datasets, places;
    };
    std::shared_ptr<const Block> block(uint64_t number) const;
    // Returns how many of the first `num_rows` rows since the origin come from a dataset. Allocates nothing.
    uint64_t count(size_t dataset, uint64_t num_rows) const;

    std::vector<Dataset> datasets_;
    const uint64_t seed_;
    BlendOrigin origin_;
    mutable KeyedCache<uint64_t, Block> blocks_{4};
};

}  // namespace ingot
