// The ranks that other tests run on: sums in the order of the ranks, over the pieces that each owns.
//
// Seen to catch: sums in another order.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/src/model/small_model.h"
#include "tests/src/parallel/thread_ranks.h"

namespace ingot::test {
namespace {

// 2^24 + 1 is no fp32 number: sums in another order differ.
float gradient_of(int64_t rank, int64_t at) {
    return rank == 0 ? 16777216.0f : rank == 1 ? 1.0f + static_cast<float>(at % 3) : -16777216.0f;
}

float sum_of(int64_t at) {
    return gradient_of(0, at) + gradient_of(1, at) + gradient_of(2, at);
}

TEST(ThreadRanks, CollectivesOverThePiecesOfABucket) {
    ThreadRanks group(3);
    const ParameterTable table(tiny_config(), 3);
    const Partition partition(table, 3);
    const Device cpu = Device::cpu();
    group.run_all([&](Ranks* ranks) {
        std::vector<float> values(static_cast<size_t>(table.flat_size()));
        const Tensor flat = Tensor::contiguous(values.data(), DType::f32, {table.flat_size()});
        const auto fill = [&] {
            for (size_t i = 0; i < values.size(); ++i) values[i] = gradient_of(ranks->rank(), static_cast<int64_t>(i));
        };
        const auto for_each_piece = [&](const std::function<void(const OwnedRange&)>& visit) {
            for (int64_t bucket = 0; bucket < partition.num_buckets(); ++bucket)
                for (const OwnedRange& piece : partition.bucket(bucket)) visit(piece);
        };
        fill();
        for (int64_t bucket = 0; bucket < partition.num_buckets(); ++bucket)
            ranks->start_all_reduce(cpu, partition.bucket(bucket), flat);
        ranks->finish_reduce(cpu);
        for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], sum_of(static_cast<int64_t>(i)));
        fill();
        for (int64_t bucket = 0; bucket < partition.num_buckets(); ++bucket)
            ranks->start_reduce_scatter(cpu, partition.bucket(bucket), flat);
        ranks->finish_reduce(cpu);
        for_each_piece([&](const OwnedRange& piece) {
            for (int64_t i = piece.begin; i < piece.end; ++i) {
                const float value = values[static_cast<size_t>(i)];
                if (piece.rank == ranks->rank())
                    ASSERT_EQ(value, sum_of(i));
                else
                    ASSERT_TRUE(std::isnan(value));
            }
        });
        for (int64_t bucket = 0; bucket < partition.num_buckets(); ++bucket) {
            ranks->start_all_gather(cpu, partition.bucket(bucket), flat);
            ranks->finish_all_gather(cpu, partition.bucket(bucket));
        }
        for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], sum_of(static_cast<int64_t>(i)));
        StepSums sums{.loss = 0.5, .targets = ranks->rank(), .squared_norm = 2};
        ranks->all_reduce(cpu, &sums);
        EXPECT_EQ(sums.loss, 1.5);
        EXPECT_EQ(sums.targets, 3);
        EXPECT_EQ(sums.squared_norm, 6);
    });
}

TEST(ThreadRanks, WhoeverWaitsForARankThatLeftHearsOfIt) {
    ThreadRanks group(3);
    EXPECT_THROW(group.run_all([](Ranks* ranks) {
        EXPECT_EQ(ranks->exchange(std::to_string(ranks->rank())), (std::vector<std::string>{"0", "1", "2"}));
        EXPECT_EQ(ranks->agree(ranks->rank()), 2);
        EXPECT_EQ(ranks->from_first(ranks->is_first() ? "a" : "b"), "a");
        if (ranks->rank() == 1) return;
        ranks->exchange("");
    }),
                 PeerError);
    EXPECT_THROW(group.run_all([](Ranks* ranks) {
        if (ranks->rank() == 2) throw std::logic_error("its own");
        StepSums sums;
        ranks->all_reduce(Device::cpu(), &sums);
    }),
                 std::logic_error);
    group.run_all([](Ranks* ranks) { EXPECT_EQ(ranks->agree(1), 1); });
}

}  // namespace
}  // namespace ingot::test
