#include "src/parallel/partition.h"

#include <algorithm>

namespace ingot {

namespace {

constexpr int64_t kBlock = ParameterTable::kAlignment;

// Splits [begin, end) into a range for each rank, of whole blocks; the last ones may be shorter, or none.
void split(int64_t bucket, int64_t begin, int64_t end, int64_t num_ranks, std::vector<OwnedRange>* ranges) {
    const int64_t blocks = (end - begin + kBlock - 1) / kBlock;
    const int64_t size = (blocks + num_ranks - 1) / num_ranks * kBlock;
    for (int64_t rank = 0; rank < num_ranks && begin + rank * size < end; ++rank)
        ranges->push_back({.bucket = bucket,
                           .rank = rank,
                           .begin = begin + rank * size,
                           .end = std::min(begin + (rank + 1) * size, end)});
}

}  // namespace

Partition::Partition(const ParameterTable& table, int64_t num_ranks,
                     const std::function<bool(const Parameter&)>& is_whole) {
    // The largest first, each to the rank that has the least so far.
    std::vector<const Parameter*> whole;
    for (const Parameter& parameter : table.parameters())
        if (is_whole && is_whole(parameter)) whole.push_back(&parameter);
    std::stable_sort(whole.begin(), whole.end(),
                     [](const Parameter* a, const Parameter* b) { return a->numel() > b->numel(); });
    std::vector<int64_t> load(static_cast<size_t>(num_ranks), 0);
    std::vector<OwnedRange> whole_ranges;
    for (const Parameter* const parameter : whole) {
        const auto least = std::min_element(load.begin(), load.end());
        *least += parameter->numel();
        const int64_t blocks = (parameter->numel() + kBlock - 1) / kBlock;
        whole_ranges.push_back({.bucket = 0,
                                .rank = least - load.begin(),
                                .begin = parameter->offset,
                                .end = parameter->offset + blocks * kBlock});
    }
    std::sort(whole_ranges.begin(), whole_ranges.end(),
              [](const OwnedRange& a, const OwnedRange& b) { return a.begin < b.begin; });

    auto next = whole_ranges.begin();
    for (int64_t bucket = 0; bucket < table.num_buckets(); ++bucket) {
        starts_.push_back(ranges_.size());
        int64_t at = table.bucket_begin(bucket);
        const int64_t end = table.bucket_begin(bucket + 1);
        for (; next != whole_ranges.end() && next->begin < end; ++next) {
            split(bucket, at, next->begin, num_ranks, &ranges_);
            next->bucket = bucket;
            ranges_.push_back(*next);
            at = next->end;
        }
        split(bucket, at, end, num_ranks, &ranges_);
    }
    starts_.push_back(ranges_.size());
}

std::vector<FlatRange> Partition::ranges_of(int64_t rank) const {
    std::vector<FlatRange> ranges;
    for (const OwnedRange& range : ranges_) {
        if (range.rank != rank) continue;
        if (!ranges.empty() && ranges.back().end == range.begin)
            ranges.back().end = range.end;
        else
            ranges.push_back({range.begin, range.end});
    }
    return ranges;
}

bool is_split_evenly(std::span<const OwnedRange> bucket, int64_t num_ranks) {
    if (static_cast<int64_t>(bucket.size()) != num_ranks) return false;
    for (int64_t rank = 0; rank < num_ranks; ++rank) {
        const OwnedRange& range = bucket[static_cast<size_t>(rank)];
        if (range.rank != rank || range.numel() != bucket[0].numel()) return false;
    }
    return true;
}

}  // namespace ingot
