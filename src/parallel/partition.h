// Who owns what of the parameters (ZeRO stage 1: Rajbhandari et al. 2020, section 5.1). Every element of the flat space
// belongs to one rank, which keeps its fp32 master and moments, and updates it.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "src/model/parameters.h"

namespace ingot {

// Elements [begin, end) of the flat space, within one bucket, belong to a rank.
struct OwnedRange {
    int64_t bucket, rank, begin, end;
    int64_t numel() const { return end - begin; }
};

// A range of the flat space.
struct FlatRange {
    int64_t begin, end;
    int64_t numel() const { return end - begin; }
};

class Partition {
  public:
    // Each bucket of the table is split into one range of the same size for each rank, in the order of the ranks; the
    // table was made for so many ranks. A tensor for which `is_whole` returns true goes to one rank whole (an
    // optimizer that works on matrices): such tensors are dealt out over all buckets so that the ranks have about the
    // same number of elements, and what lies between them in their bucket is split.
    Partition(const ParameterTable& table, int64_t num_ranks,
              const std::function<bool(const Parameter&)>& is_whole = nullptr);

    int64_t num_buckets() const { return static_cast<int64_t>(starts_.size()) - 1; }
    // the ranges of a bucket, ascending; they cover it. A rank may have several or none.
    std::span<const OwnedRange> bucket(int64_t index) const {
        return std::span(ranges_).subspan(starts_[static_cast<size_t>(index)], starts_[static_cast<size_t>(index) + 1] -
                                                                                   starts_[static_cast<size_t>(index)]);
    }
    const std::vector<OwnedRange>& ranges() const { return ranges_; }
    // Returns what a rank owns, ascending, neighbours merged.
    std::vector<FlatRange> ranges_of(int64_t rank) const;

  private:
    std::vector<OwnedRange> ranges_;
    std::vector<size_t> starts_;  // of each bucket in ranges_, and the end
};

// Returns whether rank r has the r-th of the ranges of a bucket, all of one size: what NCCL's collectives ask for.
bool is_split_evenly(std::span<const OwnedRange> bucket, int64_t num_ranks);

}  // namespace ingot
