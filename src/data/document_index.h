// A document index has the starts of a shard's documents and its largest id. One reading of all tokens finds them, and
// they are kept in a file beside the shard (or in the run's folder), so that the shard is read only once.
//
//   8 bytes "INGOTIDX"
//   for each segment: the starts of its documents in the shard, int64 each, ascending (none for a Megatron shard)
//   the footer: FooterHead, then a SegmentEntry for each segment
//   64 bytes: SHA-256 of the footer in hexadecimal digits; each entry has that of its starts
//   8 bytes: the footer's size
//
// A file that is damaged, or belongs to another state of the shard, is no error: a new one is made.
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

// Everything that the index depends on: it is valid as long as this is the same.
struct IndexKey {
    Shard::Stamp stamp;
    int64_t num_tokens = 0, eot_token = -1, eot_side = 0, has_mask = 0;
    bool operator==(const IndexKey&) const = default;
};
IndexKey index_key(const Shard& shard, const TokenRules& rules);

class DocumentIndex {
  public:
    // Parses and verifies the footer; the starts are verified when they are read. Returns nullopt if it is damaged, or
    // of another key or other cuts (`why` says which). Reads nothing outside `bytes`, which `owner` keeps alive.
    static std::optional<DocumentIndex> parse(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                                              const IndexKey& key, const std::vector<int64_t>& cuts, std::string* why);

    // Reads the whole shard and passes the index to `write`, piece by piece, in order. Calls `progress` with the
    // number of tokens that were read. Throws as Shard::scan() does.
    static void build(const Shard& shard, const TokenRules& rules, const std::vector<int64_t>& cuts,
                      const std::stop_token& stop, const std::function<void(int64_t)>& progress,
                      const std::function<void(const void*, size_t)>& write);

    // Appends the starts of the segment's documents. Returns false, and appends nothing, if they are damaged.
    bool append_starts(int64_t segment, std::vector<int64_t>* starts) const;
    std::string place;              // path of the file; empty if the index is only in memory
    int64_t num_documents() const;  // 0 for a Megatron shard, whose own index has the number
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
    // Copies of verified values, since the file may change later.
    int64_t num_eots_ = 0;
    std::vector<SegmentEntry> entries_;
    std::vector<int64_t> block_offsets_;  // of each segment's starts
};

// Returns the index of a shard from SHARD.index, or from the folder `index` in `run` (which may be null); null if
// neither is valid. The fault of a damaged one is printed on stderr.
std::shared_ptr<const DocumentIndex> read_index(const Shard& shard, const IndexKey& key,
                                                const std::vector<int64_t>& cuts, const Folder* run);

// Reads the whole shard, writes its index beside it, or else into the folder `index` in `run`, and maps it. It is
// written in full or not at all, and never over a file that is not an index. If no place is writable, the index stays
// in memory if `keeps_in_memory` is set, else this returns null. The index of a shard with fewer than `smallest`
// tokens is not worth a file and stays in memory.
std::shared_ptr<const DocumentIndex> make_index(const Shard& shard, const TokenRules& rules,
                                                const std::vector<int64_t>& cuts, const Folder* run, int64_t smallest,
                                                bool keeps_in_memory, const std::stop_token& stop,
                                                const std::function<void(int64_t)>& progress);

}  // namespace ingot
