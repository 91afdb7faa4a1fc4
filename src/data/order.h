// In which order an epoch reads a corpus. Two levels, so that it begins at once and takes the same memory at any size:
// segments are permuted and taken in groups of kGroupSegments, and documents are permuted within a group. Without
// shuffling groups are neighbouring segments, and all is in the order of the files.
//
// A pure function of (corpus, seed, epoch) on every platform.
#pragma once

#include <cstdint>
#include <stop_token>
#include <vector>

#include "src/data/corpus.h"

namespace ingot {

// A keyed permutation of [0, count): the image of `index`. A pure function of its arguments on every platform.
uint64_t permuted_index(uint64_t index, uint64_t count, uint64_t seed, uint64_t stream);

// The random stream of one group of one epoch, for what `name` says.
uint64_t group_stream(const char* name, int64_t epoch, int64_t group);

struct Shuffle {
    bool is_on = true;
    uint64_t seed = 0;
};

// Which segments make up which group.
class EpochOrder {
  public:
    EpochOrder(const Corpus& corpus, const Shuffle& shuffle, int64_t epoch);

    int64_t epoch() const { return epoch_; }
    int64_t num_groups() const { return static_cast<int64_t>(group_starts_.size()) - 1; }
    static int64_t num_groups(const Corpus& corpus);  // the same in every epoch
    // Tokens of the epoch before the group; of group num_groups(), all of them.
    int64_t first_token(int64_t group) const { return group_starts_[static_cast<size_t>(group)]; }
    int64_t group_of(int64_t token) const;
    // The corpus's segments that make up the group, in their order.
    std::vector<int64_t> segments(int64_t group) const;

  private:
    int64_t epoch_;
    std::vector<int64_t> segments_, group_starts_;
};

// The documents of a group in their order: 16 bytes each.
struct GroupDocuments {
    // Throws what Corpus::append_documents() throws.
    GroupDocuments(const Corpus& corpus, const Shuffle& shuffle, const EpochOrder& order, int64_t group,
                   const std::stop_token& stop);

    int64_t count() const { return static_cast<int64_t>(begins.size()); }
    int64_t length(int64_t d) const {
        return positions[static_cast<size_t>(d) + 1] - positions[static_cast<size_t>(d)];
    }
    // The document that holds the group's token number `position`.
    int64_t find(int64_t position) const;

    std::vector<int64_t> begins;     // the token of the corpus with which each begins
    std::vector<int64_t> positions;  // tokens of the group before each, and all of them
};

}  // namespace ingot
