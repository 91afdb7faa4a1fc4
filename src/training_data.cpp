#include "src/training_data.h"

#include <cstdio>

namespace ingot {

TrainingData::TrainingData(const Config& config)
    : train_shards(config.data.train, "data.train", config.model.vocab_size, config.data.eot_token, config.data.eot),
      train(train_shards, config.data, config.model.context_length, static_cast<uint64_t>(config.seed)) {
    if (config.data.val.empty()) return;
    val_shards = std::make_unique<TokenShards>(config.data.val, "data.val", config.model.vocab_size,
                                               config.data.eot_token, config.data.eot);
    val = std::make_unique<ValidationRows>(*val_shards, config.data, config.model.context_length, config.eval.tokens);
    for (const std::string& file : shared_files(train_shards, *val_shards))
        std::fprintf(stderr, "WARNING: %s is in data.train and in data.val: the validation loss will be too good\n",
                     file.c_str());
}

}  // namespace ingot
