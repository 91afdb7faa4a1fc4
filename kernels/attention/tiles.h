// Which tiles attention visits. A mask is two non-decreasing arrays (attention.h), so that what a tile of rows sees
// lies between the first row's begin and the last row's end; the same function serves queries that look for keys and
// keys that look for queries.
#pragma once

#include <cstdint>

#include "kernels/core/hd.h"

namespace ingot {

struct TileRange {
    int32_t begin, end;  // tokens; begin is a multiple of the tile, end need not be one; empty if begin >= end
};

// Row r sees columns [first[r], end[r]) of N; the tiles of `tile` columns that rows [row_begin, row_end) reach. An
// array that points outside the row makes the result wrong, but never leave it.
INGOT_HD inline TileRange reached_tiles(const int32_t* first, const int32_t* end, int32_t row_begin, int32_t row_end,
                                        int32_t N, int32_t tile) {
    const int32_t lowest = first[row_begin] > 0 ? first[row_begin] : 0;
    const int32_t highest = end[row_end - 1] < N ? end[row_end - 1] : N;
    return {lowest / tile * tile, highest};
}

}  // namespace ingot
