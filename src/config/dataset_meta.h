// Reads meta.json, which scripts/prepare.py writes beside the shards and which says what their tokens mean. A config
// need not repeat it, and must not contradict it.
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
    EotSide eot = EotSide::automatic;  // automatic: the file does not say
    bool has_mask = false;             // each shard.bin has a shard.mask beside it
};

// Reads the meta.json in a folder; returns nothing if there is none. Throws UserError if prepare.py cannot have
// written it.
std::optional<DatasetMeta> read_dataset_meta(const std::string& folder);

// Returns the meta.json files beside the files of the entries, each once, in order.
std::vector<DatasetMeta> dataset_metas(const std::vector<DataEntry>& entries);

// Throws UserError naming both sides where `meta` contradicts the config: a smaller vocabulary than meta's (a larger
// one is padded), another EOT, or another tokenizer (by the SHA-256 of its file; empty for bytes or where it is
// unknown). A field that the config leaves open contradicts nothing.
void check_dataset_meta(const DatasetMeta& meta, const Config& config, const std::string& tokenizer_sha256);

// Fills model.vocab_size, data.eot_token, data.eot and data.tokenizer, where the config leaves them open, from the
// meta.json beside data.train and data.val; without one it changes nothing. Throws UserError if these files contradict
// each other or the config, if the tokenizer.json beside them is no longer the one that made the shards, or if the
// shards of an entry have masks and the entry names none: a forgotten mask would train on text that must not be
// learnt. A tokenizer.json that parse_tokenizer() refuses is left out with a note on stderr, since training only needs
// ids; if sample.every asks for text, it is an error.
void fill_from_datasets(Config* config);

}  // namespace ingot
