// Which tiles are visited, where indices are compared, and in which order gradients are added, by brute force.
//
// Seen to catch: an interval's end off by one in is_all_of(), highest and lowest exchanged in is_nothing_of(), ties of
// ranks turned round, short tiles first, all adders taken to be in the row's order, one too few of them, a turn that
// counts its own tile, a walk that ends at its first document, heads beyond a short section, the diagonal's tile taken
// for one below it.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "tests/kernels/attention/attention_case.h"

#include "kernels/attention/policy.h"

namespace ingot::test {
namespace {

struct Mask {
    std::vector<int32_t> first_key, end_key, first_query, end_query;
    int32_t N() const { return static_cast<int32_t>(first_key.size()); }
    bool is_visible(int32_t i, int32_t j) const {
        return j >= first_key[static_cast<size_t>(i)] && j < end_key[static_cast<size_t>(i)];
    }
};

Mask documents(int32_t N, const std::vector<int64_t>& starts, bool is_causal) {
    Mask mask;
    for (std::vector<int32_t>* array : {&mask.first_key, &mask.end_key, &mask.first_query, &mask.end_query})
        array->resize(static_cast<size_t>(N));
    const auto tensor = [&](std::vector<int32_t>& array) { return Tensor::contiguous(array.data(), DType::i32, {N}); };
    fill_document_mask({tensor(mask.first_key), tensor(mask.end_key), tensor(mask.first_query), tensor(mask.end_query)},
                       starts, is_causal);
    return mask;
}

// Any non-decreasing intervals of the queries, many of them empty, and the keys' side of the same pairs. Keys that
// nobody sees get any empty interval.
Mask any_mask(std::mt19937& random, int32_t N) {
    Mask mask;
    const auto below = [&](int32_t limit) { return static_cast<int32_t>(random() % static_cast<uint32_t>(limit)); };
    int32_t first = 0, end = 0;
    for (int32_t i = 0; i < N; ++i) {
        if (below(4) == 0) first = std::min(N, first + below(20));
        if (below(4) == 0) end = std::min(N, end + below(24));
        mask.first_key.push_back(std::min(first, N));
        mask.end_key.push_back(end);
    }
    for (int32_t j = 0; j < N; ++j) {
        int32_t begin = 0;  // queries before it have passed no key beyond j
        while (begin < N && mask.end_key[static_cast<size_t>(begin)] <= j) ++begin;
        int32_t after = 0;
        while (after < N && mask.first_key[static_cast<size_t>(after)] <= j) ++after;
        if (begin >= after) {
            // Nobody sees it: any empty interval that keeps both arrays in order.
            const int32_t least = j > 0 ? std::max(mask.first_query.back(), mask.end_query.back()) : 0;
            begin = after = least + below(begin - std::min(least, begin) + 1);
        }
        mask.first_query.push_back(begin);
        mask.end_query.push_back(after);
    }
    return mask;
}

std::vector<Mask> masks() {
    std::mt19937 random(7);
    std::vector<Mask> result;
    for (int turn = 0; turn < 60; ++turn) {
        const int32_t N = 1 + static_cast<int32_t>(random() % 300);
        std::vector<int64_t> starts = {0};
        const int count = static_cast<int>(random() % 8);
        for (int d = 0; d < count; ++d) starts.push_back(static_cast<int64_t>(random() % static_cast<uint32_t>(N + 1)));
        std::sort(starts.begin(), starts.end());
        result.push_back(documents(N, starts, turn % 3 != 0));
        result.push_back(any_mask(random, N));
    }
    return result;
}

constexpr std::pair<int32_t, int32_t> kTiles[] = {{64, 128}, {128, 64}, {16, 32}, {8, 8}};

TEST(AttentionPolicy, TheSidesOfAMaskAreTheSamePairs) {
    for (const Mask& mask : masks())
        for (int32_t i = 0; i < mask.N(); ++i)
            for (int32_t j = 0; j < mask.N(); ++j)
                ASSERT_EQ(mask.is_visible(i, j),
                          i >= mask.first_query[static_cast<size_t>(j)] && i < mask.end_query[static_cast<size_t>(j)]);
}

TEST(AttentionPolicy, TilesAreVisitedAndComparedWhereTheyMustBe) {
    int64_t num_whole = 0, num_nothing = 0;
    for (const Mask& mask : masks())
        for (const auto& [query_tile, key_tile] : kTiles) {
            const int32_t N = mask.N();
            for (int32_t q0 = 0; q0 < N; q0 += query_tile) {
                const int32_t q1 = std::min(q0 + query_tile, N);
                const TileRange keys = reached_tiles(mask.first_key.data(), mask.end_key.data(), q0, q1, N, key_tile);
                const SeenByRows seen = seen_by_rows(mask.first_key.data(), mask.end_key.data(), q0, q1);
                for (int32_t k0 = 0; k0 < N; k0 += key_tile) {
                    bool has_any = false, has_all = k0 + key_tile <= N;
                    for (int32_t i = q0; i < q1; ++i)
                        for (int32_t j = k0; j < std::min(k0 + key_tile, N); ++j)
                            (mask.is_visible(i, j) ? has_any : has_all) = mask.is_visible(i, j);
                    const bool is_visited = k0 >= keys.begin && k0 < keys.begin + keys.num_tiles(key_tile) * key_tile;
                    if (has_any) {
                        ASSERT_TRUE(is_visited);
                        ASSERT_FALSE(seen.is_nothing_of(k0, k0 + key_tile));
                    }
                    ASSERT_EQ(seen.is_all_of(k0, k0 + key_tile), has_all);
                    num_whole += has_all;
                    num_nothing += is_visited && seen.is_nothing_of(k0, k0 + key_tile);
                }
            }
        }
    EXPECT_GT(num_whole, 1000);
    EXPECT_EQ(num_nothing, 0);  // the rows of a tile pass nothing over that the tile reaches; a part of them may
}

// Every key tile that visits a query tile has a turn of its own there, and those before it were taken before it.
TEST(AttentionPolicy, TurnsAreThoseOfTheTilesThatVisit) {
    int64_t num_out_of_order = 0;
    for (const Mask& mask : masks())
        for (const auto& [query_tile, key_tile] : kTiles) {
            const int32_t N = mask.N(), num_key_tiles = (N + key_tile - 1) / key_tile;
            const int32_t *first = mask.first_query.data(), *end = mask.end_query.data();
            std::vector<int32_t> ranks;
            for (int32_t tile = 0; tile < num_key_tiles; ++tile) {
                int32_t rank = 0;  // in parts, as lanes count it
                for (int32_t begin = 0; begin < 3; ++begin)
                    rank += tiles_before(first, end, tile, N, query_tile, key_tile, begin, 3);
                ranks.push_back(rank);
            }
            EXPECT_EQ(std::set<int32_t>(ranks.begin(), ranks.end()).size(), ranks.size());
            EXPECT_EQ(*std::max_element(ranks.begin(), ranks.end()), num_key_tiles - 1);
            for (int32_t q0 = 0; q0 < N; q0 += query_tile) {
                std::vector<std::pair<int32_t, int32_t>> visiting;  // rank, tile
                for (int32_t tile = 0; tile < num_key_tiles; ++tile) {
                    const TileRange queries = queries_of_key_tile(first, end, tile, N, query_tile, key_tile);
                    if (q0 >= queries.begin && q0 < queries.begin + queries.num_tiles(query_tile) * query_tile)
                        visiting.emplace_back(ranks[static_cast<size_t>(tile)], tile);
                }
                const Adders adders = adders_of(first, end, q0, N, query_tile, key_tile);
                ASSERT_EQ(static_cast<size_t>(std::max(adders.last - adders.first + 1, 0)), visiting.size());
                num_out_of_order += !adders.is_in_row_order;
                std::sort(visiting.begin(), visiting.end());
                for (size_t turn = 0; turn < visiting.size(); ++turn) {
                    const int32_t tile = visiting[turn].second;
                    ASSERT_TRUE(tile >= adders.first && tile <= adders.last);
                    if (adders.is_in_row_order) {
                        ASSERT_EQ(tile - adders.first, static_cast<int32_t>(turn));
                    }
                    ASSERT_EQ(adders_before(adders, ranks.data(), tile, 0, 2) +
                                  adders_before(adders, ranks.data(), tile, 1, 2),
                              static_cast<int32_t>(turn));
                }
            }
        }
    EXPECT_GT(num_out_of_order, 100);
}

TEST(AttentionPolicy, AWalkMeetsEachQueryTileOnceThoseOfTheFirstDocumentFirst) {
    int64_t num_split = 0;
    for (const Mask& mask : masks())
        for (const auto& [query_tile, key_tile] : kTiles) {
            const int32_t N = mask.N();
            const int32_t *first = mask.first_query.data(), *end = mask.end_query.data();
            for (int32_t tile = 0; tile < (N + key_tile - 1) / key_tile; ++tile) {
                const TileRange queries = queries_of_key_tile(first, end, tile, N, query_tile, key_tile);
                const QueryWalk walk = query_walk(first, end, tile, N, query_tile, key_tile);
                ASSERT_EQ(walk.begin < walk.end, queries.begin < queries.end);
                if (walk.begin >= walk.end) continue;
                std::vector<int32_t> met;
                for (int32_t q0 = walk.first(query_tile); q0 >= 0; q0 = walk.after(q0, query_tile)) met.push_back(q0);
                ASSERT_EQ(static_cast<int32_t>(met.size()), queries.num_tiles(query_tile));
                // Down to begin, then from the end down to where it began: one jump at most.
                int jumps = 0;
                for (size_t n = 0; n + 1 < met.size(); ++n) {
                    if (met[n + 1] == met[n] - query_tile) continue;
                    ++jumps;
                    ASSERT_EQ(met[n], queries.begin);
                    ASSERT_LT(met[n + 1], queries.end);
                    ASSERT_GE(met[n + 1] + query_tile, queries.end);
                    ASSERT_LT(met[0], end[tile * key_tile]);
                    ASSERT_GE(met[0] + query_tile, end[tile * key_tile]);
                }
                ASSERT_LE(jumps, 1);
                ASSERT_EQ(std::set<int32_t>(met.begin(), met.end()).size(), met.size());
                num_split += jumps;
            }
        }
    EXPECT_GT(num_split, 100);
}

TEST(AttentionPolicy, TicketsTakeEachTileOnceAndInTheOrderOfRank) {
    for (const int32_t num_tiles : {1, 3, 7})
        for (const int32_t heads : {1, 2, 5})
            for (const int32_t section : {1, 2, 4, 5}) {
                std::set<std::pair<int32_t, int32_t>> taken;
                for (int32_t ticket = 0; ticket < num_tiles * heads; ++ticket) {
                    const KeyTicket mine = key_ticket(ticket, num_tiles, heads, section);
                    ASSERT_TRUE(mine.rank >= 0 && mine.rank < num_tiles && mine.head >= 0 && mine.head < heads);
                    ASSERT_TRUE(taken.insert({mine.head, mine.rank}).second);
                    if (mine.rank > 0) {
                        ASSERT_TRUE(taken.count({mine.head, mine.rank - 1}));
                    }
                    ASSERT_EQ(mine.head / section, ticket / (num_tiles * section));
                }
            }
}

// So that the last blocks to run are short ones.
TEST(AttentionPolicy, LongTilesAreTakenFirst) {
    const Mask mask = documents(400, {0, 40, 44, 300}, true);
    const int32_t *first = mask.first_query.data(), *end = mask.end_query.data();
    std::vector<int32_t> order(25);
    for (int32_t tile = 0; tile < 25; ++tile)
        order[static_cast<size_t>(tiles_before(first, end, tile, 400, 8, 16, 0, 1))] = tile;
    for (size_t rank = 0; rank + 1 < order.size(); ++rank) {
        const auto length = [&](int32_t tile) {
            return queries_of_key_tile(first, end, tile, 400, 8, 16).num_tiles(8);
        };
        EXPECT_GE(length(order[rank]), length(order[rank + 1]));
        if (length(order[rank]) == length(order[rank + 1])) {
            EXPECT_LT(order[rank], order[rank + 1]);
        }
    }
}

TEST(AttentionPolicy, AlibiIsLinearOnEitherSide) {
    for (const auto& [queries, keys] : {std::pair<int32_t, int32_t>{16, 8}, {8, 16}, {1, 5}})
        for (int32_t q0 = 0; q0 < 50; ++q0)
            for (int32_t k0 = 0; k0 < 50; ++k0) {
                const AlibiSide side = alibi_side(q0, q0 + queries, k0, k0 + keys);
                for (int32_t i = q0; i < q0 + queries; ++i)
                    for (int32_t j = k0; j < k0 + keys; ++j) {
                        const int32_t fix = side.crosses_diagonal ? 2 * std::max(j - i, 0) : 0;
                        ASSERT_EQ(side.sign * (j - i) - fix, -std::abs(i - j));
                    }
            }
}

}  // namespace
}  // namespace ingot::test
