#include "src/data/order.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "kernels/core/check.h"
#include "kernels/core/rng.h"

namespace ingot {

namespace {

// Draws exactly uniform numbers below a bound (Lemire 2019, "Fast random integer generation in an interval"), from the
// blocks of four words that Philox makes.
class BoundedNumbers {
  public:
    BoundedNumbers(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}
    uint32_t below(uint32_t bound) {
        uint64_t product = static_cast<uint64_t>(next()) * bound;
        if (static_cast<uint32_t>(product) < bound) {
            const uint32_t threshold =
                -bound % bound;  // 2^32 mod bound: that many low words would occur once too often
            while (static_cast<uint32_t>(product) < threshold) product = static_cast<uint64_t>(next()) * bound;
        }
        return static_cast<uint32_t>(product >> 32);
    }

  private:
    uint32_t next() {
        if (index_ % 4 == 0) {
            const uint64_t block = index_ / 4;
            words_ = philox4x32_10({{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                                     static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)}},
                                   seed_);
        }
        return words_.x[index_++ % 4];
    }

    uint64_t seed_, stream_, index_ = 0;
    Philox4 words_ = {};
};

}  // namespace

uint64_t permuted_index(uint64_t index, uint64_t count, uint64_t seed, uint64_t stream) {
    CHECK(index < count, index, " is outside [0, ", count, ")");
    // A Feistel network permutes the smallest domain of 2^(2 half_bits) >= count numbers. A result outside [0, count)
    // is permuted again until it is inside (Black & Rogaway 2002, "Ciphers with arbitrary finite domains"), which
    // takes fewer than four steps on average. There are eight rounds, since tiny domains mix slowly.
    const int half_bits = (std::bit_width(count - 1) + 1) / 2;
    const uint64_t half_mask = (uint64_t{1} << half_bits) - 1;
    if (half_bits == 0) return index;
    do {
        uint64_t left = index >> half_bits, right = index & half_mask;
        for (uint32_t round = 0; round < 8; ++round) {
            const Philox4 counter = {{static_cast<uint32_t>(right), round, static_cast<uint32_t>(stream),
                                      static_cast<uint32_t>(stream >> 32)}};
            const uint64_t mixed = left ^ (philox4x32_10(counter, seed).x[0] & half_mask);
            left = right;
            right = mixed;
        }
        index = left << half_bits | right;
    } while (index >= count);
    return index;
}

uint64_t group_stream(const char* name, int64_t epoch, int64_t group) {
    return stream_of(name) + (static_cast<uint64_t>(epoch) << 32) + static_cast<uint64_t>(group);
}

EpochOrder::EpochOrder(const Corpus& corpus, const Shuffle& shuffle, int64_t epoch) : epoch_(epoch) {
    const std::vector<Segment>& all = corpus.segments();
    const uint64_t stream = group_stream("data.segments", epoch, 0);
    int64_t tokens = 0;
    for (uint64_t place = 0; place < all.size(); ++place) {
        if (place % kGroupSegments == 0) group_starts_.push_back(tokens);
        const uint64_t s = shuffle.is_on ? permuted_index(place, all.size(), shuffle.seed, stream) : place;
        segments_.push_back(static_cast<int64_t>(s));
        tokens += all[s].end - all[s].begin;
    }
    group_starts_.push_back(tokens);
}

int64_t EpochOrder::num_groups(const Corpus& corpus) {
    return (static_cast<int64_t>(corpus.segments().size()) + kGroupSegments - 1) / kGroupSegments;
}

int64_t EpochOrder::group_of(int64_t token) const {
    return std::upper_bound(group_starts_.begin(), group_starts_.end(), token) - group_starts_.begin() - 1;
}

std::vector<int64_t> EpochOrder::segments(int64_t group) const {
    const auto begin = segments_.begin() + group * kGroupSegments;
    return {begin, begin + std::min<int64_t>(kGroupSegments, segments_.end() - begin)};
}

GroupDocuments::GroupDocuments(const Corpus& corpus, const Shuffle& shuffle, const EpochOrder& order, int64_t group,
                               const std::stop_token& stop) {
    for (const int64_t s : order.segments(group)) {
        if (stop.stop_requested()) throw Stopped{};
        const size_t first = begins.size();
        corpus.append_documents(s, &begins, stop);
        for (size_t d = first; d < begins.size(); ++d)  // lengths at first
            positions.push_back(
                (d + 1 < begins.size() ? begins[d + 1] : corpus.segments()[static_cast<size_t>(s)].end) - begins[d]);
    }
    REQUIRE(begins.size() <= UINT32_MAX, corpus.key(), " has ", begins.size(),
            " documents in one group of segments, and at most 2^32 can be shuffled: set data.shuffle to false");
    if (shuffle.is_on) {
        BoundedNumbers numbers(shuffle.seed, group_stream("data.documents", order.epoch(), group));
        for (size_t last = begins.size() - 1; last > 0; --last) {  // Fisher & Yates
            const size_t other = numbers.below(static_cast<uint32_t>(last + 1));
            std::swap(begins[last], begins[other]);
            std::swap(positions[last], positions[other]);
        }
    }
    positions.push_back(0);
    std::exclusive_scan(positions.begin(), positions.end(), positions.begin(), int64_t{0});
}

int64_t GroupDocuments::find(int64_t position) const {
    return std::upper_bound(positions.begin(), positions.end(), position) - positions.begin() - 1;
}

}  // namespace ingot
