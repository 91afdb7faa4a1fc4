// meta.json, which stands beside the shards that scripts/prepare.py wrote: what their tokens mean. A config need not
// repeat it, and must not contradict it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "src/config/config.h"

namespace ingot {

struct DatasetMeta {
    std::string path;              // of the meta.json
    std::string tokenizer;         // "bytes", or the path of the tokenizer.json beside it
    std::string tokenizer_sha256;  // of that file's bytes when the shards were made; empty for bytes
    int64_t vocab_size = 0;
    int64_t eot_token = -1;
    EotSide eot = EotSide::automatic;  // automatic: it does not say
    bool has_mask = false;             // beside each shard.bin lies a shard.mask
};

// The meta.json in a folder; nothing if there is none. Throws UserError if it is not what prepare.py writes.
std::optional<DatasetMeta> read_dataset_meta(const std::string& folder);

// Those beside the files of the entries, each once, in their order.
std::vector<DatasetMeta> dataset_metas(const std::vector<DataEntry>& entries);

// Throws UserError naming both sides where `meta` and the config contradict each other: a vocabulary that is smaller
// than meta's (a larger one is padded), another EOT, another tokenizer (by the SHA-256 of its file; empty for bytes or
// where it is unknown). What the config leaves open contradicts nothing.
void check_dataset_meta(const DatasetMeta& meta, const Config& config, const std::string& tokenizer_sha256);

// Fills model.vocab_size, data.eot_token, data.eot and data.tokenizer where the config leaves them open, from the
// meta.json beside data.train and data.val. Throws UserError if these contradict each other or the config, if the
// tokenizer.json beside them is no longer the one that the shards were made with, or if the shards of an entry have
// masks and it names none: what is not to be learnt must not be learnt by oversight. A tokenizer.json of the shards
// that parse_tokenizer() refuses is left out with a note on stderr, since training needs ids alone; where sample.every
// asks for text it throws. Reads files; without any meta.json it changes nothing.
void fill_from_datasets(Config* config);

}  // namespace ingot
