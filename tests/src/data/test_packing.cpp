// Best-fit packing against a plain search through all rows, and what it promises.
//
// Seen to catch: NumberSet::next() that looks one word too far (AgreesWithAPlainSearch); pieces sorted the shortest
// first (FillsRows).
#include "src/data/packing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/core/rng.h"

namespace ingot {
namespace {

std::vector<int64_t> positions_of(const std::vector<int64_t>& lengths) {
    std::vector<int64_t> positions = {0};
    for (const int64_t length : lengths) positions.push_back(positions.back() + length);
    return positions;
}

// Lengths of web pages, roughly: log-normal with a median of 400 tokens.
std::vector<int64_t> log_normal_lengths(int64_t count, uint64_t seed, double median = 400) {
    std::vector<int64_t> lengths;
    for (int64_t i = 0; i < count; ++i)
        lengths.push_back(1 +
                          static_cast<int64_t>(median * std::exp(random_normal(seed, 1, static_cast<uint64_t>(i)))));
    return lengths;
}

// The same in the plainest words: for each piece all rows are looked through.
std::vector<std::vector<Piece>> packed_plainly(const std::vector<int64_t>& lengths, int64_t T) {
    struct Open {
        int64_t room, touched;
        std::vector<size_t> pieces;
    };
    std::vector<Piece> pieces;
    for (size_t d = 0; d < lengths.size(); ++d)
        for (int64_t offset = 0; offset < lengths[d]; offset += T)
            pieces.push_back({static_cast<int64_t>(d), offset, std::min(T, lengths[d] - offset)});
    std::vector<size_t> order(pieces.size());
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return pieces[a].length > pieces[b].length; });
    std::vector<Open> rows;
    int64_t clock = 0;
    for (const size_t p : order) {
        Open* best = nullptr;
        for (Open& row : rows)
            if (row.room >= pieces[p].length &&
                (best == nullptr || row.room < best->room || (row.room == best->room && row.touched > best->touched)))
                best = &row;
        if (best == nullptr) best = &rows.emplace_back(Open{T, 0, {}});
        best->room -= pieces[p].length;
        best->touched = ++clock;
        best->pieces.push_back(p);
    }
    for (Open& row : rows) std::sort(row.pieces.begin(), row.pieces.end());
    std::sort(rows.begin(), rows.end(), [](const Open& a, const Open& b) { return a.pieces[0] < b.pieces[0]; });
    std::vector<std::vector<Piece>> result;
    for (const Open& row : rows) {
        result.emplace_back();
        for (const size_t p : row.pieces) result.back().push_back(pieces[p]);
    }
    return result;
}

TEST(Packing, AgreesWithAPlainSearch) {
    for (const int64_t T : {1, 2, 7, 63, 64, 65, 500, 5000})
        for (uint64_t seed = 0; seed < 4; ++seed) {
            const std::vector<int64_t> lengths = log_normal_lengths(300, seed, static_cast<double>(T) / 4);
            const PackedRows packed = pack_best_fit(positions_of(lengths), T);
            const auto expected = packed_plainly(lengths, T);
            ASSERT_EQ(packed.count(), static_cast<int64_t>(expected.size())) << "T " << T;
            for (size_t r = 0; r < expected.size(); ++r) {
                const int64_t begin = packed.row_begins[r];
                ASSERT_EQ(packed.row_begins[r + 1] - begin, static_cast<int64_t>(expected[r].size()));
                for (size_t i = 0; i < expected[r].size(); ++i) {
                    const Piece& piece = packed.pieces[static_cast<size_t>(begin) + i];
                    EXPECT_EQ(piece.document, expected[r][i].document);
                    EXPECT_EQ(piece.offset, expected[r][i].offset);
                    EXPECT_EQ(piece.length, expected[r][i].length);
                }
            }
        }
}

TEST(Packing, FillsRows) {
    for (const int64_t T : {1024, 2048, 8192}) {
        const std::vector<int64_t> lengths = log_normal_lengths(20000, 5);
        const std::vector<int64_t> positions = positions_of(lengths);
        const PackedRows packed = pack_best_fit(positions, T);
        EXPECT_GT(static_cast<double>(positions.back()), 0.99 * static_cast<double>(packed.count() * T)) << "T " << T;
    }
}

TEST(Packing, SplitsNoDocumentThatFits) {
    const int64_t T = 512;
    const std::vector<int64_t> lengths = log_normal_lengths(5000, 9);
    const PackedRows packed = pack_best_fit(positions_of(lengths), T);
    std::vector<int64_t> covered(lengths.size(), 0);
    std::vector<int64_t> num_pieces(lengths.size(), 0);
    for (int64_t r = 0; r < packed.count(); ++r) {
        int64_t filled = 0;
        for (int64_t p = packed.row_begins[static_cast<size_t>(r)]; p < packed.row_begins[static_cast<size_t>(r) + 1];
             ++p) {
            const Piece& piece = packed.pieces[static_cast<size_t>(p)];
            const size_t d = static_cast<size_t>(piece.document);
            EXPECT_EQ(piece.offset % T, 0);
            EXPECT_EQ(piece.length, std::min(T, lengths[d] - piece.offset));
            covered[d] += piece.length;
            num_pieces[d] += 1;
            filled += piece.length;
        }
        EXPECT_GT(filled, 0);
        EXPECT_LE(filled, T);
    }
    EXPECT_EQ(covered, lengths);
    for (size_t d = 0; d < lengths.size(); ++d) EXPECT_EQ(num_pieces[d], (lengths[d] + T - 1) / T);
}

TEST(Packing, HowManyRowsDependsOnTheLengthsAlone) {
    std::vector<int64_t> lengths = log_normal_lengths(3000, 2);
    const int64_t count = pack_best_fit(positions_of(lengths), 1000).count();
    std::reverse(lengths.begin(), lengths.end());
    EXPECT_EQ(pack_best_fit(positions_of(lengths), 1000).count(), count);
    EXPECT_EQ(pack_best_fit(positions_of({}), 1000).count(), 0);
}

}  // namespace
}  // namespace ingot
