// Tests rows of several groups of segments, and best-fit packing.
//
// Seen to catch: documents packed the shortest first (BestFitHasEveryDocumentOnceAndWhole).
#include <map>
#include <set>

#include "tests/src/data/rows_case.h"

namespace ingot {
namespace {

// 400 documents in 150 segments: three groups, and every token is another one.
class GroupsTest : public RowsTest {
  protected:
    void SetUp() override {
        for (int d = 0; d < 400; ++d) {
            for (int i = 0; i < d * 31 % 47; ++i) text_.push_back(10000 + static_cast<int32_t>(text_.size()));
            text_.push_back(kEot);
        }
        corpus_ = corpus_of({text_}, EotSide::end, kEot, false, 63);
    }
    // Returns where in the file a token stands that is no EOT.
    int64_t place_of(int32_t token) const { return token - 10000; }

    std::vector<int32_t> text_;
    std::unique_ptr<const Corpus> corpus_;
};

TEST_F(GroupsTest, EveryEpochConsumesEveryPositionOnce) {
    ASSERT_GT(corpus_->segments().size(), 2u * kGroupSegments);
    const int64_t total = corpus_->num_tokens();
    for (const bool shuffle : {false, true})
        for (const int64_t T : {1, 10, 100, 3001, 6000}) {
            const StreamRows rows(*corpus_, config(shuffle, true), T, 42);
            ASSERT_EQ(rows.num_groups(), 3);
            std::map<int32_t, int64_t> times;
            int64_t num_eots = 0;
            for (int64_t epoch = 0; epoch < 3; ++epoch)
                for (int64_t group = 0; group < 3; ++group)
                    for (uint64_t r = rows.first_row(epoch, group); r < rows.first_row(epoch, group + 1); ++r)
                        for (const int32_t token : row_of(rows, r).tokens) {
                            if (token == kEot)
                                num_eots += 1;
                            else
                                ++times[token];
                        }
            const int64_t more = static_cast<int64_t>(rows.first_row(3)) * T - 3 * total;
            ASSERT_TRUE(0 <= more && more < T);
            int64_t sum = num_eots;
            for (const auto& [token, count] : times) {
                EXPECT_TRUE(count == 3 || count == 4) << token;
                sum += count;
            }
            EXPECT_EQ(sum, 3 * total + more);
            EXPECT_EQ(static_cast<int64_t>(times.size()), total - 400);
        }
}

TEST_F(GroupsTest, GroupsAreRowsOfOtherSegmentsEachEpoch) {
    const StreamRows rows(*corpus_, config(true, true), 10, 42);
    std::set<std::set<int64_t>> groups;
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
        std::set<int64_t> seen;
        for (int64_t group = 0; group < 3; ++group) {
            std::set<int64_t> segments;
            const uint64_t first = rows.first_row(epoch, group), last = rows.first_row(epoch, group + 1);
            for (uint64_t r = first; r < last; ++r)
                for (const int32_t token : row_of(rows, r).tokens) {
                    if (token == kEot) continue;
                    int64_t s = 0;
                    while (corpus_->segments()[static_cast<size_t>(s)].end <= place_of(token)) ++s;
                    segments.insert(s);
                }
            // A row may reach into the next group.
            EXPECT_LE(segments.size(), kGroupSegments + 2u);
            EXPECT_GE(segments.size() + 2, std::min<size_t>(kGroupSegments, corpus_->segments().size() - 128));
            groups.insert(segments);
            seen.insert(segments.begin(), segments.end());
        }
        EXPECT_EQ(seen.size(), corpus_->segments().size());
    }
    EXPECT_EQ(groups.size(), 9u) << "epochs have the same groups";
}

TEST_F(GroupsTest, TheSameRowsWhetherTheCorpusWasReadBeforeOrNot) {
    const StreamRows rows(*corpus_, config(true, true), 17, 5);
    std::vector<Row> before;
    for (uint64_t r = 0; r < 700; ++r) before.push_back(row_of(rows, r));
    corpus_->read_shard(0, {});
    EXPECT_TRUE(corpus_->is_read());
    EXPECT_EQ(corpus_->num_documents(), 400);
    const StreamRows again(*corpus_, config(true, true), 17, 5);
    for (uint64_t r = 700; r-- > 0;) EXPECT_EQ(row_of(again, r), before[r]) << "row " << r;
}

TEST_F(GroupsTest, BestFitHasEveryDocumentOnceAndWhole) {
    for (const bool shuffle : {false, true})
        for (const int64_t T : {48, 20, 1000}) {
            const BestFitRows rows(*corpus_, config(shuffle, true), T, 42);
            uint64_t r = 0;
            for (int64_t epoch = 0; epoch < 2; ++epoch) {
                std::vector<int64_t> targets_of(text_.size(), 0), inputs_of(text_.size(), 0);
                int64_t num_eots = 0, num_padding = 0;
                for (bool is_done = false; !is_done; ++r) {
                    const Row row = row_of(rows, r);
                    is_done = rows.epochs(r + 1) > static_cast<double>(epoch) + 1 - 1e-9;
                    for (size_t d = 0; d < row.starts.size(); ++d) {
                        const int64_t begin = row.starts[d];
                        const int64_t end = d + 1 < row.starts.size() ? row.starts[d + 1] : T;
                        const size_t first = static_cast<size_t>(begin);
                        if (row.tokens[first] == 0) {  // padding: the last of the row
                            EXPECT_EQ(d + 1, row.starts.size());
                            for (int64_t i = begin; i < end; ++i) EXPECT_EQ(row.targets[static_cast<size_t>(i)], -1);
                            num_padding += end - begin;
                            continue;
                        }
                        for (int64_t i = begin; i < end; ++i) {
                            const size_t at = static_cast<size_t>(i);
                            EXPECT_EQ(row.positions[at], i - begin);
                            if (row.tokens[at] == kEot) {
                                EXPECT_EQ(i, end - 1) << "a document goes on behind its EOT";
                                EXPECT_EQ(row.targets[at], -1);
                                num_eots += 1;
                                continue;
                            }
                            const size_t place = static_cast<size_t>(place_of(row.tokens[at]));
                            inputs_of[place] += 1;
                            EXPECT_EQ(row.targets[at], text_[place + 1]);
                        }
                        // Whole: it begins where a document does, unless it is a piece of a longer one than T.
                        if (T >= 48 && row.tokens[first] != kEot) {
                            const int64_t place = place_of(row.tokens[first]);
                            EXPECT_TRUE(place == 0 || text_[static_cast<size_t>(place) - 1] == kEot);
                            EXPECT_EQ(row.tokens[static_cast<size_t>(end) - 1], kEot);
                        }
                    }
                }
                EXPECT_EQ(num_eots, 400);
                for (size_t i = 0; i < text_.size(); ++i)
                    EXPECT_EQ(inputs_of[i], text_[i] == kEot ? 0 : 1) << "token " << i << " of epoch " << epoch;
                EXPECT_LT(num_padding, 3 * T + corpus_->num_tokens() / 20);
            }
        }
}

TEST_F(GroupsTest, BestFitGoesOnFromABookmark) {
    const BestFitRows rows(*corpus_, config(true, true), 30, 3);
    std::vector<Row> all;
    std::vector<std::optional<Bookmark>> bookmarks;
    for (uint64_t r = 0; r < 900; ++r) {
        bookmarks.push_back(rows.bookmark(r));
        all.push_back(row_of(rows, r));
    }
    EXPECT_GT(rows.epochs(900), 1.5);
    for (const uint64_t r : {0, 1, 500, 899}) {
        BestFitRows later(*corpus_, config(true, true), 30, 3);
        if (bookmarks[r]) {
            EXPECT_TRUE(later.resume_at(*bookmarks[r], r));
        }
        for (uint64_t i = r; i < 900; i += 7) EXPECT_EQ(row_of(later, i), all[i]);
        EXPECT_EQ(row_of(later, 0), all[0]) << "rows before the bookmark are there too";
        EXPECT_EQ(row_of(BestFitRows(*corpus_, config(true, true), 30, 3), r), all[r]) << "without one";
    }
}

// A file may name any group: what cannot be is not used, and rows are counted from the first one.
TEST_F(GroupsTest, BestFitTakesNoBookmarkThatCannotBe) {
    const BestFitRows rows(*corpus_, config(true, true), 30, 3);
    const Row right = row_of(rows, 500);
    const int64_t far = int64_t{1} << 60;
    for (const auto& [bookmark, row] : std::vector<std::pair<Bookmark, uint64_t>>{
             {{.group = far, .first_row = 0}, 500},
             {{.group = 0, .first_row = static_cast<uint64_t>(far)}, 500},
             {{.group = 0, .first_row = 0}, static_cast<uint64_t>(far)},
             {{.group = far, .first_row = static_cast<uint64_t>(far)}, static_cast<uint64_t>(far)},
             {{.group = 0, .first_row = 400}, 399}}) {
        BestFitRows later(*corpus_, config(true, true), 30, 3);
        EXPECT_FALSE(later.resume_at(bookmark, row)) << bookmark.group << " " << bookmark.first_row;
        EXPECT_EQ(row_of(later, 500), right);
    }
}

// Targets at the end of a document that does not end its row.
TEST_F(RowsTest, BestFitBoundaries) {
    const std::vector<std::vector<int32_t>> texts = {{kEot, 1, 2, kEot, 3, 4}, {kEot, 5}};
    const auto opens = corpus_of(texts, EotSide::start);
    // The EOT that opens the file's next document is a target, wherever that document is; a shard's end is none.
    EXPECT_EQ(row_of(BestFitRows(*opens, config(false, true), 3, 1), 0),
              (Row{{kEot, 1, 2}, {1, 2, kEot}, {0, 1, 2}, {0}}));
    EXPECT_EQ(row_of(BestFitRows(*opens, config(false, true), 3, 1), 1),
              (Row{{kEot, 3, 4}, {3, 4, -1}, {0, 1, 2}, {0}}));
    EXPECT_EQ(row_of(BestFitRows(*opens, config(false, true), 3, 1), 2),
              (Row{{kEot, 5, 0}, {5, -1, -1}, {0, 1, 0}, {0, 2}}));
    // Without masking the row is one document, and its padding another.
    EXPECT_EQ(row_of(BestFitRows(*opens, config(false, false), 7, 1), 0),
              (Row{{kEot, 1, 2, kEot, 3, 4, 0}, {1, 2, kEot, 3, 4, -1, -1}, {0, 1, 2, 3, 4, 5, 0}, {0, 6}}));
    // A document longer than T: pieces of T, each token a target.
    const auto lengthy = corpus_of({{1, 2, 3, 4, 5, 6, 7, kEot, 8, kEot}}, EotSide::end);
    const BestFitRows rows(*lengthy, config(false, true), 3, 1);
    EXPECT_EQ(row_of(rows, 0), (Row{{1, 2, 3}, {2, 3, 4}, {0, 1, 2}, {0}}));
    EXPECT_EQ(row_of(rows, 1), (Row{{4, 5, 6}, {5, 6, 7}, {0, 1, 2}, {0}}));
    EXPECT_EQ(row_of(rows, 2), (Row{{7, kEot, 0}, {kEot, -1, -1}, {0, 1, 0}, {0, 2}}));
    EXPECT_EQ(row_of(rows, 3), (Row{{8, kEot, 0}, {kEot, -1, -1}, {0, 1, 0}, {0, 2}}));
}

}  // namespace
}  // namespace ingot
