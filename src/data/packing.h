// Best-fit packing of documents into rows: whole documents where they fit, longer ones split into pieces of T tokens
// and a rest (Ding et al. 2024, "Fewer truncations improve language modeling").
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace ingot {

// Tokens [offset, offset + length) of a document that lie in one row.
struct Piece {
    int64_t document, offset;
    int64_t length;
};

// Rows with the pieces that they hold. Rows are in the order of their first documents, pieces in that of theirs.
struct PackedRows {
    std::vector<Piece> pieces;
    std::vector<int64_t> row_begins;  // of each row, the first of its pieces; then their number
    int64_t count() const { return static_cast<int64_t>(row_begins.size()) - 1; }
};

// Best fit, the longest first (Johnson 1973): each piece goes into the fullest row that still has room for it; of
// several equally full ones, the one that became so last. `positions`: where each document begins when they stand one
// after another, and where the last ends (GroupDocuments). How many rows it takes depends on the lengths alone, not on
// the order of the documents.
PackedRows pack_best_fit(std::span<const int64_t> positions, int64_t context_length);

}  // namespace ingot
