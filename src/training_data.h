// The data of a run: both splits, their shards open and checked.
#pragma once

#include <memory>

#include "src/config.h"
#include "src/data/rows.h"
#include "src/data/shards.h"

namespace ingot {

struct TrainingData {
    // Throws UserError naming the file or the key. A file in both splits is a warning on stderr.
    explicit TrainingData(const Config& config);
    TrainingData(const TrainingData&) = delete;
    TrainingData& operator=(const TrainingData&) = delete;

    TokenShards train_shards;
    RowSource train;
    std::unique_ptr<TokenShards> val_shards;  // null without data.val
    std::unique_ptr<ValidationRows> val;
};

}  // namespace ingot
