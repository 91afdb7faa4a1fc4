// Where the documents of a shard begin, and its largest id: what one reading of all its tokens finds, kept in a file
// beside the shard (else in the run's folder), so that it is read once.
//
//   8 bytes "INGOTIDX"
//   for each segment: the starts of its documents in the shard, int64 each, ascending (none for a Megatron shard)
//   the footer: FooterHead, then a SegmentEntry for each segment
//   64 bytes: SHA-256 of the footer in hexadecimal digits; each entry has that of its starts
//   8 bytes: the footer's size
//
// A file that belongs to another state of the shard, or is damaged, is no error: it is made again.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "src/base/folder.h"
#include "src/data/shard.h"

namespace ingot {

// All that the index depends on: it is good as long as this is the same.
struct IndexKey {
    Shard::Stamp stamp;
    int64_t num_tokens = 0, eot_token = -1, eot_side = 0, has_mask = 0;
    bool operator==(const IndexKey&) const = default;
};
IndexKey index_key(const Shard& shard, const TokenRules& rules);

class DocumentIndex {
  public:
    // Parses and verifies the footer; the starts are verified when they are read. nullopt: damaged, or of another key
    // or other cuts (`why` says which). Reads nothing outside `bytes`, which `owner` keeps alive.
    static std::optional<DocumentIndex> parse(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                                              const IndexKey& key, const std::vector<int64_t>& cuts, std::string* why);

    // Reads the whole shard and hands the index to `write`, piece by piece, in order. Throws what Shard::scan() throws.
    // `progress` is told how many tokens were read.
    static void build(const Shard& shard, const TokenRules& rules, const std::vector<int64_t>& cuts,
                      const std::stop_token& stop, const std::function<void(int64_t)>& progress,
                      const std::function<void(const void*, size_t)>& write);

    // Appends the starts of the segment's documents. False: they are damaged, and nothing was appended.
    bool append_starts(int64_t segment, std::vector<int64_t>* starts) const;
    std::string place;              // the file; empty: it is in memory alone
    int64_t num_documents() const;  // 0 for a Megatron shard: its own index says it
    int64_t num_eots() const;
    int64_t largest_id() const;

  private:
    struct FooterHead;
    struct SegmentEntry {
        int64_t begin = 0, end = 0, largest_id = 0, num_starts = 0;
        char sha256[64] = {};
    };

    std::span<const std::byte> bytes_;
    std::shared_ptr<const void> owner_;
    // Copies of what was verified: the file may change later.
    int64_t num_eots_ = 0;
    std::vector<SegmentEntry> entries_;
    std::vector<int64_t> block_offsets_;  // of each segment's starts
};

// The index of a shard from SHARD.index, or from the folder `index` in `run` (null: none); null if neither has a good
// one. What was wrong with a damaged one goes to stderr.
std::shared_ptr<const DocumentIndex> read_index(const Shard& shard, const IndexKey& key,
                                                const std::vector<int64_t>& cuts, const Folder* run);

// Reads the whole shard and writes its index beside it, else into the folder `index` in `run`, whole or not at all;
// then maps it. A file that has its name and is no index stays. If neither can be written, the index stays in memory if
// `keeps_in_memory`, else this returns null. A shard of fewer than `smallest` tokens is not worth a file: its index
// stays in memory.
std::shared_ptr<const DocumentIndex> make_index(const Shard& shard, const TokenRules& rules,
                                                const std::vector<int64_t>& cuts, const Folder* run, int64_t smallest,
                                                bool keeps_in_memory, const std::stop_token& stop,
                                                const std::function<void(int64_t)>& progress);

}  // namespace ingot
