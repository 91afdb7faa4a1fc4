// Seen to catch: sums in the order of arrival, a rank's own part added first, pieces of a rank that has several put in
// the wrong place, ranks that all send before they receive.
#include "src/parallel/tcp_ranks.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "src/parallel/partition.h"
#include "tests/src/parallel/ranks_in_threads.h"
#include "tests/src/parallel/small_model.h"

namespace ingot::test {
namespace {

using Texts = std::vector<std::string>;

// Each rank's elements: integers, whose sums are exact, or others, whose sums depend on the order.
template <typename T>
std::vector<T> elements_of(int64_t rank, int64_t count, bool is_integer) {
    std::mt19937 generator(static_cast<unsigned>(100 + rank));
    std::vector<T> values(static_cast<size_t>(count));
    for (T& value : values) {
        if (is_integer)
            value = static_cast<T>(static_cast<int>(generator() % 2001) - 1000);
        else
            value =
                static_cast<T>(std::normal_distribution<double>(0, 1)(generator) * (generator() % 2 == 0 ? 1 : 1e4));
    }
    return values;
}

template <typename T>
std::vector<T> serial_sum(int64_t size, int64_t count, bool is_integer) {
    std::vector<T> sum = elements_of<T>(0, count, is_integer);
    for (int64_t rank = 1; rank < size; ++rank) {
        const std::vector<T> part = elements_of<T>(rank, count, is_integer);
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
    }
    return sum;
}

template <typename T>
Tensor tensor_of(std::vector<T>* values) {
    return Tensor::contiguous(values->data(), kDTypeOf<T>, {static_cast<int64_t>(values->size())});
}

template <typename T>
bool same_bits(const T* a, const T* b, int64_t count) {
    return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(T)) == 0;
}

// Pieces of random size: of one rank several, of another none.
std::vector<OwnedRange> uneven_bucket(int64_t size, int64_t begin, int64_t end, unsigned seed) {
    std::mt19937 generator(seed);
    std::vector<OwnedRange> bucket;
    for (int64_t at = begin; at < end;) {
        const int64_t next = std::min<int64_t>(end, at + static_cast<int64_t>(generator() % 700));
        bucket.push_back({3, static_cast<int64_t>(generator() % static_cast<unsigned>(size)), at, next});
        at = next;
    }
    return bucket;
}

std::vector<OwnedRange> even_bucket(int64_t size, int64_t begin, int64_t each) {
    std::vector<OwnedRange> bucket;
    for (int64_t rank = 0; rank < size; ++rank)
        bucket.push_back({0, rank, begin + rank * each, begin + (rank + 1) * each});
    return bucket;
}

template <typename T>
void check_collectives(int64_t size, const std::vector<OwnedRange>& bucket, int64_t count, bool is_integer) {
    const std::vector<T> expected = serial_sum<T>(size, count, is_integer);
    with_ranks(size, [&](Ranks& ranks) {
        const Device device = Device::cpu();
        // What is outside the bucket stays.
        const std::vector<T> before = elements_of<T>(ranks.rank(), count, is_integer);
        std::vector<T> flat = before;
        ranks.start_reduce_scatter(device, bucket, tensor_of(&flat));
        ranks.finish_reduce(device);
        for (const OwnedRange& piece : bucket) {
            if (piece.rank != ranks.rank()) continue;
            const auto at = static_cast<size_t>(piece.begin);
            EXPECT_TRUE(same_bits(&flat[at], &expected[at], piece.numel()));
        }
        ranks.start_all_gather(device, bucket, tensor_of(&flat));
        ranks.finish_all_gather(device, bucket);
        const auto begin = static_cast<size_t>(bucket.front().begin), end = static_cast<size_t>(bucket.back().end);
        const auto check = [&] {
            EXPECT_TRUE(same_bits(&flat[begin], &expected[begin], static_cast<int64_t>(end - begin)));
            EXPECT_TRUE(same_bits(flat.data(), before.data(), bucket.front().begin));
            EXPECT_TRUE(same_bits(flat.data() + end, before.data() + end, count - bucket.back().end));
        };
        check();
        flat = before;
        ranks.start_all_reduce(device, bucket, tensor_of(&flat));
        ranks.finish_reduce(device);
        check();
    });
}

class TcpRanksOf : public testing::TestWithParam<int64_t> {};

TEST_P(TcpRanksOf, SumsOfIntegersAreExact) {
    const int64_t size = GetParam();
    check_collectives<float>(size, even_bucket(size, 5, 257), 5 + 257 * size + 3, true);
    check_collectives<float>(size, uneven_bucket(size, 7, 9000, 1), 9100, true);
}

TEST_P(TcpRanksOf, SumsAreTakenInTheOrderOfTheRanks) {
    const int64_t size = GetParam();
    check_collectives<float>(size, even_bucket(size, 0, 1000), 1000 * size + 1, false);
    check_collectives<float>(size, uneven_bucket(size, 11, 20000, 2), 20001, false);
    check_collectives<double>(size, uneven_bucket(size, 0, 5000, 3), 5001, false);
}

// More than the buffers of a socket hold.
TEST(TcpRanks, LargeBucketsDoNotDeadlock) {
    constexpr int64_t kEach = int64_t{5} << 20;
    check_collectives<float>(2, even_bucket(2, 0, kEach), 2 * kEach, true);
}

TEST_P(TcpRanksOf, ARankMayOwnNothing) {
    const int64_t size = GetParam();
    check_collectives<float>(size, {{0, size - 1, 10, 90}}, 100, false);
    check_collectives<float>(size, {{0, 0, 10, 10}, {0, size / 2, 10, 11}}, 100, false);
}

TEST_P(TcpRanksOf, SumsOfAStep) {
    const int64_t size = GetParam();
    const auto part = [](int64_t rank) {
        return StepSums{.loss = 1.1 + 1e9 * static_cast<double>(rank % 2),
                        .targets = 100 + rank,
                        .squared_norm = 0.3 / (1 + static_cast<double>(rank))};
    };
    StepSums expected;
    for (int64_t rank = 0; rank < size; ++rank) {
        expected.loss += part(rank).loss;
        expected.targets += part(rank).targets;
        expected.squared_norm += part(rank).squared_norm;
    }
    with_ranks(size, [&](Ranks& ranks) {
        StepSums sums = part(ranks.rank());
        ranks.all_reduce(Device::cpu(), &sums);
        EXPECT_EQ(std::memcmp(&sums, &expected, sizeof sums), 0);
        // A value that is not finite on one rank is seen by all.
        sums.squared_norm = ranks.rank() == size - 1 ? std::nan("") : 1;
        ranks.all_reduce(Device::cpu(), &sums);
        EXPECT_TRUE(std::isnan(sums.squared_norm));
    });
}

TEST_P(TcpRanksOf, TextsAndAgreement) {
    const int64_t size = GetParam();
    with_ranks(size, [&](Ranks& ranks) {
        EXPECT_EQ(ranks.agree(10 - ranks.rank()), 10);
        EXPECT_EQ(ranks.from_first(std::to_string(ranks.rank())), "0");
        EXPECT_EQ(ranks.exchange(std::to_string(ranks.rank()), Ranks::Channel::save).back(), std::to_string(size - 1));
    });
}

// The table of a small model, with whole tensors.
TEST_P(TcpRanksOf, BucketsOfAPartition) {
    const int64_t size = GetParam();
    const ParameterTable table(small_model(), size);
    const std::function<bool(const Parameter&)> none,
        matrices_of_layers = [](const Parameter&parameter) { return parameter.layer >= 0 && parameter.is_matrix; };
    for (const auto& is_whole : {none, matrices_of_layers}) {
        const Partition partition(table, size, is_whole);
        for (int64_t index = 0; index < partition.num_buckets(); ++index) {
            const std::span<const OwnedRange> bucket = partition.bucket(index);
            check_collectives<float>(size, {bucket.begin(), bucket.end()}, bucket.back().end + 5, false);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Ranks, TcpRanksOf, testing::Values(1, 2, 3, 4, 7),
                         [](const auto& info) { return "Of" + std::to_string(info.param); });

TEST(TcpRanks, ARankThatEndsInTheMiddleIsNamed) {
    const FreePort port;
    const auto errors = in_threads(3, [&](int64_t rank) {
        const World world = world_at(port, rank, 3);
        const auto control = std::make_shared<ControlPlane>(world, "config", 60);
        const std::unique_ptr<Ranks> ranks = cpu_ranks(world, control);
        std::vector<float> flat(3000, 1);
        const std::vector<OwnedRange> bucket = even_bucket(3, 0, 1000);
        ranks->start_all_reduce(Device::cpu(), bucket, tensor_of(&flat));
        if (rank == 1) return control->leave("out of memory");
        ranks->start_all_reduce(Device::cpu(), bucket, tensor_of(&flat));
    });
    for (const size_t rank : {0, 2}) {
        EXPECT_EQ(errors[rank].find("4 rank 1 (host "), 0u) << errors[rank];
        EXPECT_NE(errors[rank].find("ended: out of memory"), std::string::npos) << errors[rank];
    }
}

TEST(TcpRanks, RanksThatDoNotDoTheSameFindOut) {
    const FreePort port;
    const auto errors = in_threads(2, [&](int64_t rank) {
        const World world = world_at(port, rank, 2);
        const auto control = std::make_shared<ControlPlane>(world, "config", 60);
        const std::unique_ptr<Ranks> ranks = cpu_ranks(world, control);
        std::vector<float> flat(64, 1);
        ranks->start_all_reduce(Device::cpu(), even_bucket(2, 0, rank == 0 ? 16 : 32), tensor_of(&flat));
    });
    EXPECT_NE((errors[0] + errors[1]).find("1 rank "), std::string::npos) << errors[0] << "\n" << errors[1];
}

TEST(TcpRanks, APlanHasRanksThatComputeNothing) {
    const std::unique_ptr<Ranks> ranks = planned_ranks(8);
    EXPECT_EQ(ranks->size(), 8);
    EXPECT_TRUE(ranks->is_first());
    EXPECT_EQ(ranks->agree(7), 7);
    EXPECT_EQ(ranks->exchange("x"), Texts(8, "x"));
    StepSums sums;
    EXPECT_THROW(ranks->all_reduce(Device::cpu(), &sums), Error);
}

}  // namespace
}  // namespace ingot::test
