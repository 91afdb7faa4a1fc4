// Best-fit packing of documents into rows: a document that fits a row is kept whole, and a longer one is split into
// pieces of T tokens and a rest (Ding et al. 2024, "Fewer truncations improve language modeling").
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace ingot {

// Tokens [offset, offset + length) of a document, which are in one row.
struct Piece {
    int64_t document, offset;
    int64_t length;
};

// Rows with their pieces. Rows are in the order of their first documents, and so are the pieces in a row.
struct PackedRows {
    std::vector<Piece> pieces;
    std::vector<int64_t> row_begins;  // by row: the first of its pieces; then the number of pieces
    int64_t count() const { return static_cast<int64_t>(row_begins.size()) - 1; }
};

// Packs by best fit, the longest piece first (Johnson 1973): each piece goes into the fullest row that has room for
// it, and among equally full rows into the one that became so last. `positions` has the start of each document when
// they are concatenated, and the end of the last (GroupDocuments). The number of rows depends on the lengths alone,
// not on the order of the documents.
PackedRows pack_best_fit(std::span<const int64_t> positions, int64_t context_length);

}  // namespace ingot
