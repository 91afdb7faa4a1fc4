// The order in which an epoch reads a corpus has two levels, so that an epoch begins at once and takes the same memory
// at any size: segments are permuted and taken in groups of kGroupSegments, and documents are permuted within a group.
// Without shuffling a group is a run of neighbouring segments, and all is in the order of the files.
//
// The order is a pure function of (corpus, seed, epoch) on every platform.
#pragma once

#include <cstdint>
#include <stop_token>
#include <vector>

#include "src/data/corpus.h"

namespace ingot {

// Returns the image of `index` under a keyed permutation of [0, count), the same on every platform.
uint64_t permuted_index(uint64_t index, uint64_t count, uint64_t seed, uint64_t stream);

// Returns the random stream of one group of one epoch. `name` separates streams for different purposes.
uint64_t group_stream(const char* name, int64_t epoch, int64_t group);

struct Shuffle {
    bool is_on = true;
    uint64_t seed = 0;
};

// Assigns segments to groups.
class EpochOrder {
  public:
    EpochOrder(const Corpus& corpus, const Shuffle& shuffle, int64_t epoch);

    int64_t epoch() const { return epoch_; }
    int64_t num_groups() const { return static_cast<int64_t>(group_starts_.size()) - 1; }
    static int64_t num_groups(const Corpus& corpus);  // the same in every epoch
    // Returns the number of tokens in the groups before this one; for num_groups(), of the epoch.
    int64_t first_token(int64_t group) const { return group_starts_[static_cast<size_t>(group)]; }
    int64_t group_of(int64_t token) const;
    // Returns the segments of the group in order.
    std::vector<int64_t> segments(int64_t group) const;

  private:
    int64_t epoch_;
    std::vector<int64_t> segments_, group_starts_;
};

// The documents of a group in order, with 16 bytes each.
struct GroupDocuments {
    // Throws as Corpus::append_documents() does.
    GroupDocuments(const Corpus& corpus, const Shuffle& shuffle, const EpochOrder& order, int64_t group,
                   const std::stop_token& stop);

    int64_t count() const { return static_cast<int64_t>(begins.size()); }
    int64_t length(int64_t d) const {
        return positions[static_cast<size_t>(d) + 1] - positions[static_cast<size_t>(d)];
    }
    // Returns the document that holds the group's token number `position`.
    int64_t find(int64_t position) const;

    std::vector<int64_t> begins;     // by document: its first token in the corpus
    std::vector<int64_t> positions;  // by document: the group's tokens before it; then the number of all
};

}  // namespace ingot
