// Who owns what. Seen to catch: a bucket's rest that nobody owns, a whole tensor that is split, and sizes that are not
// multiples of a decay block.
#include "src/parallel/partition.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/src/parallel/small_model.h"

namespace ingot::test {
namespace {

// Every element is in one range, in order; ranges lie in their bucket and begin at whole blocks.
void expect_cover(const ParameterTable& table, const Partition& partition, int64_t num_ranks) {
    ASSERT_EQ(partition.num_buckets(), table.num_buckets());
    int64_t at = 0;
    for (int64_t bucket = 0; bucket < table.num_buckets(); ++bucket) {
        EXPECT_EQ(at, table.bucket_begin(bucket));
        for (const OwnedRange& range : partition.bucket(bucket)) {
            EXPECT_EQ(range.bucket, bucket);
            EXPECT_EQ(range.begin, at);
            EXPECT_GT(range.end, range.begin);
            EXPECT_EQ(range.begin % ParameterTable::kAlignment, 0);
            EXPECT_TRUE(range.rank >= 0 && range.rank < num_ranks);
            at = range.end;
        }
        EXPECT_EQ(at, table.bucket_begin(bucket + 1));
    }
    EXPECT_EQ(at, table.flat_size());
}

TEST(Partition, EveryBucketIsSplitEvenlyForAnyNumberOfRanks) {
    for (const bool ties : {true, false})
        for (const int64_t num_ranks : {1, 2, 3, 4, 7, 8, 13, 64}) {
            const ParameterTable table(small_model(ties), num_ranks);
            const Partition partition(table, num_ranks);
            expect_cover(table, partition, num_ranks);
            int64_t owned = 0;
            for (int64_t bucket = 0; bucket < table.num_buckets(); ++bucket)
                EXPECT_TRUE(is_split_evenly(partition.bucket(bucket), num_ranks)) << bucket << " of " << num_ranks;
            for (int64_t rank = 0; rank < num_ranks; ++rank)
                for (const FlatRange& range : partition.ranges_of(rank)) owned += range.numel();
            EXPECT_EQ(owned, table.flat_size());
        }
}

TEST(Partition, OneRankOwnsOneRange) {
    const ParameterTable table(small_model(true));
    const std::vector<FlatRange> ranges = Partition(table, 1).ranges_of(0);
    ASSERT_EQ(ranges.size(), 1u);
    EXPECT_EQ(ranges[0].begin, 0);
    EXPECT_EQ(ranges[0].end, table.flat_size());
}

TEST(Partition, BucketsHoldTheirLayer) {
    const ParameterTable table(small_model(false), 3);
    for (const Parameter& parameter : table.parameters()) {
        const int64_t bucket = parameter.name == "embedding" ? ParameterTable::kEmbeddingBucket
                               : parameter.layer < 0         ? table.head_bucket()
                                                             : ParameterTable::bucket_of_layer(parameter.layer);
        EXPECT_GE(parameter.offset, table.bucket_begin(bucket)) << parameter.name;
        EXPECT_LE(parameter.offset + parameter.numel(), table.bucket_begin(bucket + 1)) << parameter.name;
    }
}

TEST(Partition, WholeMatricesGoToOneRankAndAreBalanced) {
    const auto is_whole = [](const Parameter& parameter) { return parameter.is_matrix && parameter.layer >= 0; };
    for (const int64_t num_ranks : {1, 2, 3, 4, 7}) {
        const ParameterTable table(small_model(true), num_ranks);
        const Partition partition(table, num_ranks, is_whole);
        expect_cover(table, partition, num_ranks);
        std::vector<int64_t> whole(static_cast<size_t>(num_ranks), 0);
        int64_t largest = 0;
        for (const Parameter& parameter : table.parameters()) {
            if (!is_whole(parameter)) continue;
            const auto owner =
                std::find_if(partition.ranges().begin(), partition.ranges().end(), [&](const auto& range) {
                    return range.begin == parameter.offset && range.end >= parameter.offset + parameter.numel();
                });
            ASSERT_NE(owner, partition.ranges().end()) << parameter.name << " is split";
            whole[static_cast<size_t>(owner->rank)] += parameter.numel();
            largest = std::max(largest, parameter.numel());
        }
        // Each goes to the rank that has the least, so that no two ranks differ by more than one tensor.
        const auto [least, most] = std::minmax_element(whole.begin(), whole.end());
        EXPECT_LE(*most - *least, largest) << num_ranks;
    }
}

}  // namespace
}  // namespace ingot::test
