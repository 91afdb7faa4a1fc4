// Which tiles attention visits, where it compares indices, and in which order gradients are added. A mask is two
// non-decreasing arrays per side (attention.h), so that what a tile of rows sees lies between the first row's begin and
// the last row's end; the same functions serve queries that look for keys and keys that look for queries.
#pragma once

#include <cstdint>

#include "kernels/core/hd.h"

namespace ingot {

struct TileRange {
    int32_t begin, end;  // tokens; begin is a multiple of the tile, end need not be one; empty if begin >= end

    INGOT_HD int32_t num_tiles(int32_t tile) const { return end > begin ? (end - begin + tile - 1) / tile : 0; }
};

// Row r sees columns [first[r], end[r]) of N; the tiles of `tile` columns that rows [row_begin, row_end) reach. An
// array that points outside the row makes the result wrong, but never leave it.
INGOT_HD inline TileRange reached_tiles(const int32_t* first, const int32_t* end, int32_t row_begin, int32_t row_end,
                                        int32_t N, int32_t tile) {
    const int32_t lowest = first[row_begin] > 0 ? first[row_begin] : 0;
    const int32_t highest = end[row_end - 1] < N ? end[row_end - 1] : N;
    return {lowest / tile * tile, highest};
}

// What some rows see together, as four scalars.
struct SeenByRows {
    int32_t lowest_first, highest_first, lowest_end, highest_end;

    // None of them sees any of the columns [begin, end): the tile can be passed over.
    INGOT_HD bool is_nothing_of(int32_t begin, int32_t end) const {
        return end <= lowest_first || begin >= highest_end;
    }
    // All of them see all of the columns [begin, end): no index needs to be compared.
    INGOT_HD bool is_all_of(int32_t begin, int32_t end) const { return highest_first <= begin && end <= lowest_end; }
};

// Of the rows [row_begin, row_end), at least one.
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

// Key tiles are taken from the row's end to its begin (by a ticket, key_tile_of()), and add to a query tile in that
// order: the next one may add when its predecessor says so. A key tile waits only for tiles that were taken before it,
// so that some tile can always go on, however few run at a time. Under a causal mask each starts at its diagonal, and
// the tile after it, one query tile ahead, has just left the tile that it wants: contributions are staggered by
// themselves, and short tiles go first.
//
// With first_query and end_query non-decreasing, the key tiles that reach a query tile lie side by side: the first of
// them in the order is the last whose first_query does not lie beyond the query tile. Where none reaches it, any answer
// will do.
INGOT_HD inline int32_t first_adding_key_tile(const int32_t* first_query, const int32_t* end_key, int32_t q0, int32_t N,
                                              int32_t query_tile, int32_t key_tile) {
    const int32_t num_key_tiles = (N + key_tile - 1) / key_tile, query_number = q0 / query_tile;
    const auto begins_by_here = [&](int32_t tile) {
        const int32_t lowest = first_query[tile * key_tile] > 0 ? first_query[tile * key_tile] : 0;
        return lowest / query_tile <= query_number;
    };
    // The last key that the last query sees leads there at once; only keys that nobody sees, whose first_query is
    // anyone's, make it a walk.
    const int32_t last_query = (q0 + query_tile < N ? q0 + query_tile : N) - 1;
    int32_t guess = (end_key[last_query] - 1) / key_tile;
    guess = guess < 0 ? 0 : guess < num_key_tiles ? guess : num_key_tiles - 1;
    while (guess + 1 < num_key_tiles && begins_by_here(guess + 1)) ++guess;
    return guess;
}

// Which key tile and key/value head a ticket stands for. Heads are taken in sections: within one, all heads' last key
// tiles come first, then those before them; the queries and gradients that a section's heads stream through stay in the
// L2 cache together.
struct KeyTile {
    int32_t tile, head;
};
INGOT_HD inline KeyTile key_tile_of(int32_t ticket, int32_t num_tiles, int32_t num_heads, int32_t heads_per_section) {
    const int32_t section = ticket / (num_tiles * heads_per_section), first_head = section * heads_per_section;
    const int32_t rest = num_heads - first_head, heads = rest < heads_per_section ? rest : heads_per_section;
    const int32_t within = ticket - section * num_tiles * heads_per_section;
    return {num_tiles - 1 - within / heads, first_head + within % heads};
}

}  // namespace ingot
