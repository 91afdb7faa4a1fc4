// The policy of attention: which tiles it visits, where it compares indices, and in which order gradients are added. A
// mask is two non-decreasing arrays per side (attention.h), so that a tile of rows sees columns between the first row's
// begin and the last row's end. The same functions serve queries that look for keys and keys that look for queries.
#pragma once

#include <cstdint>

#include "kernels/core/hd.h"

namespace ingot {

struct TileRange {
    int32_t begin, end;  // tokens; begin is a multiple of the tile, end need not be one; empty if begin >= end

    INGOT_HD int32_t num_tiles(int32_t tile) const { return end > begin ? (end - begin + tile - 1) / tile : 0; }
};

// Returns the tiles of `tile` columns that rows [row_begin, row_end) reach, where row r sees columns [first[r], end[r])
// of N. An invalid array makes the result wrong, but it stays within [0, N).
INGOT_HD inline TileRange reached_tiles(const int32_t* first, const int32_t* end, int32_t row_begin, int32_t row_end,
                                        int32_t N, int32_t tile) {
    const int32_t lowest = first[row_begin] > 0 ? first[row_begin] : 0;
    const int32_t highest = end[row_end - 1] < N ? end[row_end - 1] : N;
    return {lowest / tile * tile, highest};
}

// The columns that a range of rows sees, as four scalars.
struct SeenByRows {
    int32_t lowest_first, highest_first, lowest_end, highest_end;

    // Returns whether none of the rows sees any of the columns [begin, end), so that the tile can be skipped.
    INGOT_HD bool is_nothing_of(int32_t begin, int32_t end) const {
        return end <= lowest_first || begin >= highest_end;
    }
    // Returns whether all rows see all of the columns [begin, end), so that no index needs to be compared.
    INGOT_HD bool is_all_of(int32_t begin, int32_t end) const { return highest_first <= begin && end <= lowest_end; }
};

// Returns what rows [row_begin, row_end) see; there is at least one.
INGOT_HD inline SeenByRows seen_by_rows(const int32_t* first, const int32_t* end, int32_t row_begin, int32_t row_end) {
    return {first[row_begin], first[row_end - 1], end[row_begin], end[row_end - 1]};
}

// ALiBi's -slope |i - j| is linear in i and j on either side of the diagonal: this is the sign of j in it for queries
// [q0, q1) and keys [k0, k1), 1 below the diagonal (all j <= i), -1 above; on the diagonal it is 1, and keys j > i need
// 2 (j - i) taken off, `crosses_diagonal`.
struct AlibiSide {
    int32_t sign;
    bool crosses_diagonal;
};
INGOT_HD inline AlibiSide alibi_side(int32_t q0, int32_t q1, int32_t k0, int32_t k1) {
    const bool is_above = q1 - 1 <= k0, is_below = k1 - 1 <= q0;
    return {is_above && !is_below ? -1 : 1, !is_above && !is_below};
}

// ---- The order in which tiles of keys add to the dQ of a tile of queries ----

// Blocks take key tiles by ticket in the order of their rank: the tile that the most query tiles see comes first, and
// of equals the first in the row. So the blocks that run last are short, however few there are. Key tiles add to a
// query tile in that order too: each waits only for tiles that were taken before it, so that some tile can always
// proceed, however few run at a time.
//
// A key tile goes through its query tiles from the last to the first (QueryWalk), and through all heads of its group at
// each. Key tiles of a document that start together wait once, each a step longer than the one before it, and from then
// on follow each other without a wait.

// Returns the query tiles that see a key tile.
INGOT_HD inline TileRange queries_of_key_tile(const int32_t* first_query, const int32_t* end_query, int32_t tile,
                                              int32_t N, int32_t query_tile, int32_t key_tile) {
    const int32_t begin = tile * key_tile, end = begin + key_tile < N ? begin + key_tile : N;
    return reached_tiles(first_query, end_query, begin, end, N, query_tile);
}

// A key tile goes through its query tiles from the last to the first. But those of a document that ends within the key
// tile come before those of the next document: otherwise that document's other key tiles, which may be shorter and come
// later, would wait at their first step for this one's last.
struct QueryWalk {
    int32_t begin, split, end;  // [begin, split), then [split, end); multiples of query_tile

    INGOT_HD int32_t first(int32_t query_tile) const { return (split > begin ? split : end) - query_tile; }
    // Returns -1 if q0 is the last one.
    INGOT_HD int32_t after(int32_t q0, int32_t query_tile) const {
        if (q0 == split) return -1;
        return (q0 == begin ? end : q0) - query_tile;
    }
};
// Without query tiles begin >= end.
INGOT_HD inline QueryWalk query_walk(const int32_t* first_query, const int32_t* end_query, int32_t tile, int32_t N,
                                     int32_t query_tile, int32_t key_tile) {
    const TileRange queries = queries_of_key_tile(first_query, end_query, tile, N, query_tile, key_tile);
    const int32_t end = queries.begin + queries.num_tiles(query_tile) * query_tile;
    const int32_t first_end = end_query[tile * key_tile] < N ? end_query[tile * key_tile] : N;
    const int32_t split = (first_end + query_tile - 1) / query_tile * query_tile;
    return {queries.begin, split > queries.begin && split < end ? split : queries.begin, end};
}

// Counts those of the tiles `begin`, begin + step, ... that go before `tile`. The counts over all of them add up to its
// rank.
INGOT_HD inline int32_t tiles_before(const int32_t* first_query, const int32_t* end_query, int32_t tile, int32_t N,
                                     int32_t query_tile, int32_t key_tile, int32_t begin, int32_t step) {
    const auto length = [&](int32_t t) {
        return queries_of_key_tile(first_query, end_query, t, N, query_tile, key_tile).num_tiles(query_tile);
    };
    const int32_t num_tiles = (N + key_tile - 1) / key_tile, mine = length(tile);
    int32_t count = 0;
    for (int32_t t = begin; t < num_tiles; t += step) {
        const int32_t other = length(t);
        count += other > mine || (other == mine && t < tile);
    }
    return count;
}

// The key tiles that add to a query tile: first to last, none if first > last. Since the mask's arrays do not decrease,
// they lie side by side.
struct Adders {
    int32_t first, last;
    bool is_in_row_order;  // their ranks ascend
};
INGOT_HD inline Adders adders_of(const int32_t* first_query, const int32_t* end_query, int32_t q0, int32_t N,
                                 int32_t query_tile, int32_t key_tile) {
    const auto queries = [&](int32_t t) {
        return queries_of_key_tile(first_query, end_query, t, N, query_tile, key_tile);
    };
    // The first of [0, num_tiles) for which `is_beyond` holds; it holds for all that follow.
    const auto first_where = [&](auto is_beyond) {
        int32_t low = 0, high = (N + key_tile - 1) / key_tile;
        while (low < high) {
            const int32_t middle = low + (high - low) / 2;
            if (is_beyond(middle))
                high = middle;
            else
                low = middle + 1;
        }
        return low;
    };
    Adders adders = {first_where([&](int32_t t) { return queries(t).end > q0; }),
                     first_where([&](int32_t t) { return queries(t).begin > q0; }) - 1, true};
    // Up to a common end, those that begin later are shorter.
    if (adders.first < adders.last) adders.is_in_row_order = queries(adders.first).end == queries(adders.last).end;
    return adders;
}

// Counts those of the adders first + begin, first + begin + step, ... that add before `tile`. The counts over all of
// them add up to its turn.
INGOT_HD inline int32_t adders_before(const Adders& adders, const int32_t* ranks, int32_t tile, int32_t begin,
                                      int32_t step) {
    int32_t count = 0;
    for (int32_t t = adders.first + begin; t <= adders.last; t += step) count += ranks[t] < ranks[tile];
    return count;
}

// The rank and key/value head of a ticket. Heads are taken in sections, so that what a section's heads read stays in
// the L2 cache.
struct KeyTicket {
    int32_t rank, head;
};
INGOT_HD inline KeyTicket key_ticket(int32_t ticket, int32_t num_tiles, int32_t num_heads, int32_t heads_per_section) {
    const int32_t section = ticket / (num_tiles * heads_per_section), first_head = section * heads_per_section;
    const int32_t rest = num_heads - first_head, heads = rest < heads_per_section ? rest : heads_per_section;
    const int32_t within = ticket - section * num_tiles * heads_per_section;
    return {within / heads, first_head + within % heads};
}

}  // namespace ingot
