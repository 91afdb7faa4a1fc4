// Tests rows, validation rows and micro-batches against plain concatenation.
//
// Seen to catch (among others): the row permutation left out of StreamRows::fill (LongDocumentsAreScattered, and the
// pinned checksum); the epoch not counted on where a row reaches into the next (StreamGoesOnAcrossEpochs,
// EveryEpochConsumesEveryPositionOnce); `counts` without the look at is_eot (BoundaryRules).
#include <algorithm>
#include <map>
#include <set>
#include <thread>

#include "src/data/host_batch.h"
#include "tests/src/data/rows_case.h"

namespace ingot {
namespace {

const std::vector<int> kLengths = {7, 1, 30, 2, 2, 1, 1, 11, 5, 64, 3, 1, 9, 17};  // 154 tokens

// A second way to say what a row is: from the whole stream of (token, opens a document) of several epochs.
struct StreamToken {
    int32_t id;
    bool opens;
};
Row expected_row(const std::vector<StreamToken>& stream, size_t begin, size_t T, bool mask, bool eot_opens) {
    Row row;
    for (size_t i = 0; i < T; ++i) {
        const StreamToken here = stream[begin + i], next = stream[begin + i + 1];
        if (i == 0 || (mask && here.opens)) row.starts.push_back(static_cast<int64_t>(i));
        row.tokens.push_back(here.id);
        row.positions.push_back(static_cast<int32_t>(static_cast<int64_t>(i) - row.starts.back()));
        const bool ignored = mask && next.opens && !(eot_opens && next.id == kEot);
        row.targets.push_back(ignored ? -1 : next.id);
    }
    return row;
}

// Cuts shards into documents token by token, in file order, `epochs` times.
std::vector<StreamToken> stream_of_files(const std::vector<std::vector<int32_t>>& texts, EotSide side, int epochs) {
    std::vector<StreamToken> stream;
    for (int epoch = 0; epoch < epochs; ++epoch)
        for (const std::vector<int32_t>& text : texts)
            for (size_t i = 0; i < text.size(); ++i)
                stream.push_back({text[i], i == 0 || (side == EotSide::start && text[i] == kEot) ||
                                               (side == EotSide::end && text[i - 1] == kEot)});
    return stream;
}

const std::vector<std::vector<int32_t>> kEotTexts = {
    {5, 6, kEot, 7, kEot, kEot, 8, 9, 10, 11, 12, 13, 14, 15, 16, kEot, 17},  // ends without EOT
    {kEot, 20, 21, kEot, kEot, 22},
    {30},
    {31, 32, 33, kEot},
    {kEot}};

TEST_F(RowsTest, FileOrderAgreesWithConcatenation) {
    for (const EotSide side : {EotSide::start, EotSide::end}) {
        const auto narrow = corpus_of(kEotTexts, side), wide = corpus_of(kEotTexts, side, kEot, true);
        const std::vector<StreamToken> stream = stream_of_files(kEotTexts, side, 5);
        for (const bool mask : {false, true})
            for (const size_t T : {1, 2, 3, 5, 8, 28}) {
                const StreamRows rows(*narrow, config(false, mask), static_cast<int64_t>(T), 1);
                const StreamRows wide_rows(*wide, config(false, mask), static_cast<int64_t>(T), 1);
                for (size_t r = 0; r * T + T < stream.size(); ++r) {
                    EXPECT_EQ(row_of(rows, r), expected_row(stream, r * T, T, mask, side == EotSide::start))
                        << "row " << r << " of T " << T << (mask ? ", masked" : "");
                    EXPECT_EQ(row_of(wide_rows, r), row_of(rows, r));
                }
            }
    }
}

TEST_F(RowsTest, BoundaryRules) {
    // The EOT that closes a document and the last token of a shard have no target, whatever comes next.
    const auto closes = corpus_of({{1, kEot, 2, 3}, {4, kEot}}, EotSide::end);
    EXPECT_EQ(row_of(StreamRows(*closes, config(false, true), 5, 1), 0),
              (Row{{1, kEot, 2, 3, 4}, {kEot, -1, 3, -1, kEot}, {0, 1, 0, 1, 0}, {0, 2, 4}}));
    // The EOT that opens the next document is a target; a next document without one is not.
    const auto opens = corpus_of({{kEot, 1, kEot, 2}, {3, kEot, 4}}, EotSide::start);
    EXPECT_EQ(row_of(StreamRows(*opens, config(false, true), 6, 1), 0),
              (Row{{kEot, 1, kEot, 2, 3, kEot}, {1, kEot, 2, -1, kEot, 4}, {0, 1, 0, 1, 0, 0}, {0, 2, 4, 5}}));
    // Without EOT a shard is a document.
    const auto none = corpus_of({{1, kEot, 2}, {3, 4}}, EotSide::automatic, -1);
    EXPECT_EQ(row_of(StreamRows(*none, config(false, true), 4, 1), 0),
              (Row{{1, kEot, 2, 3}, {kEot, 2, -1, 4}, {0, 1, 2, 0}, {0, 3}}));
    // A document that goes on from an earlier row counts from the row's start.
    EXPECT_EQ(row_of(StreamRows(*none, config(false, true), 2, 1), 1), (Row{{2, 3}, {-1, 4}, {0, 0}, {0, 1}}));
    EXPECT_EQ(row_of(StreamRows(*none, config(false, false), 2, 1), 1), (Row{{2, 3}, {3, 4}, {0, 1}, {0}}));
}

TEST_F(RowsTest, EveryEpochConsumesEveryPositionOnce) {
    const auto shards = corpus_of(numbered(kLengths), EotSide::end, -1);
    const int64_t total = shards->num_tokens();
    for (const bool mask : {false, true})
        for (const int64_t T : {1, 3, 7, 11, 64, 77, 100, 153}) {
            const StreamRows rows(*shards, config(true, mask), T, 42);
            std::map<int32_t, int64_t> times;
            for (int64_t epoch = 0; epoch < 4; ++epoch) {
                EXPECT_GE(rows.epochs(rows.first_row(epoch)), static_cast<double>(epoch));
                EXPECT_LT(rows.epochs(rows.first_row(epoch + 1) - 1), static_cast<double>(epoch + 1));
                for (uint64_t r = rows.first_row(epoch); r < rows.first_row(epoch + 1); ++r)
                    for (const int32_t token : row_of(rows, r).tokens) ++times[token];
                // The rows hold all of the epochs so far, and what the last row takes of the next one.
                const int64_t more = static_cast<int64_t>(rows.first_row(epoch + 1)) * T - (epoch + 1) * total;
                ASSERT_TRUE(0 <= more && more < T);
                ASSERT_EQ(static_cast<int64_t>(times.size()), total);
                EXPECT_EQ(std::count_if(times.begin(), times.end(), [&](auto& t) { return t.second == epoch + 1; }),
                          total - more);
                EXPECT_EQ(std::count_if(times.begin(), times.end(), [&](auto& t) { return t.second == epoch + 2; }),
                          more);
            }
        }
}

// Puts the shuffled rows of epoch 0 back into the order of the stream: each row's last target begins another row.
std::vector<Row> stitched(const StreamRows& rows) {
    std::map<int32_t, Row> by_first_token;
    std::set<int32_t> followers;
    for (uint64_t r = 0; r < rows.first_row(1); ++r) {
        const Row row = row_of(rows, r);
        followers.insert(row.targets.back());
        EXPECT_TRUE(by_first_token.emplace(row.tokens[0], row).second);
    }
    std::vector<Row> stream;
    for (const auto& [token, row] : by_first_token)
        if (followers.count(token) == 0) stream = {row};
    if (stream.empty()) return stream;  // the row that reaches into epoch 1 closed a circle: take another seed
    for (auto next = by_first_token.find(stream[0].targets.back());
         next != by_first_token.end() && stream.size() < by_first_token.size();
         next = by_first_token.find(stream.back().targets.back()))
        stream.push_back(next->second);
    return stream;
}

TEST_F(RowsTest, ShuffledStreamIsWholeDocumentsInAnotherOrder) {
    const std::vector<std::vector<int32_t>> texts = numbered(kLengths);
    const auto shards = corpus_of(texts, EotSide::end, -1);
    std::map<int32_t, size_t> document_of_first;  // by its first token
    for (size_t d = 0; d < texts.size(); ++d) document_of_first[texts[d][0]] = d;
    const size_t T = 11;  // divides 154: the rows of epoch 0 are all of it
    std::set<std::vector<size_t>> orders;
    for (uint64_t seed = 1; seed <= 12; ++seed) {
        const StreamRows rows(*shards, config(true, false), static_cast<int64_t>(T), seed);
        const StreamRows masked(*shards, config(true, true), static_cast<int64_t>(T), seed);
        const std::vector<Row> stream = stitched(rows);
        if (stream.empty()) continue;
        ASSERT_EQ(stream.size(), 14u);
        std::vector<int32_t> flat;
        for (const Row& row : stream) flat.insert(flat.end(), row.tokens.begin(), row.tokens.end());
        std::vector<size_t> order;
        std::vector<StreamToken> marked;
        for (size_t at = 0; at < flat.size();) {  // the stream is one whole document after another
            ASSERT_EQ(document_of_first.count(flat[at]), 1u) << "token " << at << " opens no document";
            order.push_back(document_of_first[flat[at]]);
            const std::vector<int32_t>& text = texts[order.back()];
            ASSERT_LE(at + text.size(), flat.size());
            EXPECT_TRUE(std::equal(text.begin(), text.end(), flat.begin() + static_cast<int64_t>(at)));
            for (const int32_t id : text) marked.push_back({id, id == text[0]});
            at += text.size();
        }
        orders.insert(order);
        std::sort(order.begin(), order.end());
        for (size_t d = 0; d < order.size(); ++d) EXPECT_EQ(order[d], d);
        // The stream goes on with another epoch: its first document follows.
        marked.push_back({stream.back().targets.back(), true});
        EXPECT_EQ(document_of_first.count(marked.back().id), 1u);
        for (uint64_t r = 0; r < rows.first_row(1); ++r) {
            const Row row = row_of(rows, r);
            const auto begin = std::find(flat.begin(), flat.end(), row.tokens[0]) - flat.begin();
            EXPECT_EQ(row, expected_row(marked, static_cast<size_t>(begin), T, false, false));
            EXPECT_EQ(row_of(masked, r), expected_row(marked, static_cast<size_t>(begin), T, true, false));
        }
    }
    EXPECT_GE(orders.size(), 6u) << "seeds give the same order";
}

TEST_F(RowsTest, StreamGoesOnAcrossEpochs) {
    // T is one less than the split: rows 2 to 13 are alone in epochs 1 to 12, each begins in one and ends in the next.
    const auto shards = corpus_of(numbered({3, 4, 2, 5}), EotSide::end, -1);
    const int64_t T = 13, total = 14;
    const StreamRows rows(*shards, config(true, false), T, 5);
    std::vector<int32_t> stream;
    for (uint64_t r = 2; r < 14; ++r) {
        ASSERT_EQ(rows.first_row(static_cast<int64_t>(r) - 1), r);
        const Row row = row_of(rows, r);
        if (!stream.empty()) {
            EXPECT_EQ(stream.back(), row.tokens[0]) << "row " << r;
            stream.pop_back();
        }
        stream.insert(stream.end(), row.tokens.begin(), row.tokens.end());
        stream.push_back(row.targets.back());
    }
    stream.erase(stream.begin(), stream.begin() + 2);  // of epoch 1; then come all of 2 to 12 and a token of 13
    ASSERT_EQ(stream.size(), static_cast<size_t>(11 * total + 1));
    std::set<std::vector<int32_t>> epochs;
    for (auto begin = stream.begin(); begin + total <= stream.end(); begin += total) {
        std::vector<int32_t> epoch(begin, begin + total);
        epochs.insert(epoch);
        std::sort(epoch.begin(), epoch.end());
        for (int64_t i = 0; i < total; ++i) EXPECT_EQ(epoch[static_cast<size_t>(i)], 10000 + i);
    }
    EXPECT_GE(epochs.size(), 5u) << "epochs have the same order";
}

TEST_F(RowsTest, LongDocumentsAreScattered) {
    const auto shards = corpus_of(numbered({20000}), EotSide::end, -1);
    const StreamRows rows(*shards, config(true, true), 10, 3);
    int neighbours = 0;
    for (uint64_t r = 0; r + 1 < 2000; ++r)
        neighbours += row_of(rows, r + 1).tokens[0] == row_of(rows, r).tokens[0] + 10;
    EXPECT_LT(neighbours, 12);  // 1 expected
}

TEST_F(RowsTest, AnyOrderAnyThreadTheSameRows) {
    const auto shards = corpus_of(numbered(kLengths), EotSide::end, -1);
    const StreamRows rows(*shards, config(true, true), 10, 8), again(*shards, config(true, true), 10, 8);
    const uint64_t count = 200;  // 12 epochs
    std::vector<Row> forward(count), odd(count);
    for (uint64_t r = 0; r < count; ++r) forward[r] = row_of(rows, r);
    for (uint64_t r = count; r-- > 0;) EXPECT_EQ(row_of(again, r), forward[r]) << "backwards, row " << r;
    const StreamRows shared(*shards, config(true, true), 10, 8);
    std::thread other([&] {
        for (uint64_t r = 1; r < count; r += 2) odd[r] = row_of(shared, r);
    });
    for (uint64_t r = 0; r < count; r += 2) odd[r] = row_of(shared, (r * 7) % count);
    other.join();
    for (uint64_t r = 0; r < count; ++r) EXPECT_EQ(odd[r], forward[r % 2 == 1 ? r : (r * 7) % count]);
}

TEST_F(RowsTest, TheSameRowsOnEveryPlatformAndVersion) {
    // A resumed run reads on where it stopped, so rows may never change for a seed: this number is pinned.
    const auto shards = corpus_of(numbered(kLengths), EotSide::end, -1);
    uint64_t hash = 0xcbf29ce484222325ull;
    for (const uint64_t seed : {1ull, 1337ull, 1ull << 40}) {
        const StreamRows rows(*shards, config(true, true), 10, seed);
        for (uint64_t r = 0; r < 100; ++r)
            for (const int32_t token : row_of(rows, r).tokens)
                hash = (hash ^ static_cast<uint64_t>(token)) * 0x100000001b3ull;
    }
    EXPECT_EQ(hash, 1150804722689525576ull);
}

TEST_F(RowsTest, PermutedIndexIsABijection) {
    for (uint64_t count = 1; count < 300; ++count) {
        std::vector<bool> seen(count);
        for (uint64_t i = 0; i < count; ++i) {
            const uint64_t image = permuted_index(i, count, 9, count);
            ASSERT_LT(image, count);
            EXPECT_FALSE(seen[image]);
            seen[image] = true;
        }
    }
    // Of 5 numbers each has every image about as often: 2000 keys, 400 expected, standard deviation 18.
    std::vector<std::vector<int>> times(5, std::vector<int>(5));
    for (uint64_t seed = 0; seed < 2000; ++seed)
        for (uint64_t i = 0; i < 5; ++i) ++times[i][permuted_index(i, 5, seed, 1)];
    for (const std::vector<int>& images : times)
        for (const int image : images) EXPECT_NEAR(image, 400, 5 * 18);
    EXPECT_LT(permuted_index((uint64_t{1} << 40) - 1, (uint64_t{1} << 40) + 1, 1, 1), (uint64_t{1} << 40) + 1);
    EXPECT_THROW(permuted_index(5, 5, 1, 1), Error);
}

TEST_F(RowsTest, RefusesASplitThatHoldsNoRow) {
    const auto shards = corpus_of(numbered({6, 4}), EotSide::end, -1);
    EXPECT_NO_THROW(StreamRows(*shards, config(true, true), 9, 1));
    for (const int64_t T : {10, 1000}) {
        const std::string text = test::user_error_of([&] { StreamRows(*shards, config(true, true), T, 1); });
        const std::string needed = "need " + std::to_string(T + 1);
        for (const char* part : {"data.train holds 10 tokens", needed.c_str(), "smaller model.context_length"})
            EXPECT_NE(text.find(part), std::string::npos) << text;
    }
    EXPECT_THROW(ValidationRows(*shards, config(true, true), 10, 100), UserError);
}

TEST_F(RowsTest, ValidationHasEveryTargetOnce) {
    for (const EotSide side : {EotSide::start, EotSide::end})
        for (const bool mask : {false, true}) {
            const auto shards = corpus_of(kEotTexts, side);
            std::vector<StreamToken> stream = stream_of_files(kEotTexts, side, 1);
            const size_t num_inputs = stream.size() - 1;
            for (const size_t T : {1, 2, 5, 7, 14, 27, 28}) {  // 28 inputs
                const ValidationRows rows(*shards, config(true, mask), static_cast<int64_t>(T), 1 << 20);
                ASSERT_EQ(rows.num_rows(), static_cast<int64_t>((num_inputs + T - 1) / T));
                for (size_t v = 0; v * T < num_inputs; ++v) {
                    const size_t count = std::min(T, num_inputs - v * T);
                    Row expected = expected_row(stream, v * T, count, mask, side == EotSide::start);
                    if (count < T) expected.starts.push_back(static_cast<int64_t>(count));
                    for (size_t i = count; i < T; ++i) {
                        expected.tokens.push_back(0);
                        expected.targets.push_back(-1);
                        expected.positions.push_back(static_cast<int32_t>(i - count));
                    }
                    EXPECT_EQ(row_of(rows, v), expected) << "row " << v << " of T " << T;
                }
                EXPECT_THROW(row_of(rows, static_cast<uint64_t>(rows.num_rows())), Error);
            }
        }
}

TEST_F(RowsTest, ValidationIsCappedInWholeRows) {
    const auto shards = corpus_of(numbered({101}), EotSide::end, -1);  // 100 inputs
    const auto num_rows = [&](int64_t max_tokens) {
        return ValidationRows(*shards, config(true, true), 10, max_tokens).num_rows();
    };
    EXPECT_EQ(num_rows(1), 1);
    EXPECT_EQ(num_rows(10), 1);
    EXPECT_EQ(num_rows(11), 2);
    EXPECT_EQ(num_rows(100), 10);
    EXPECT_EQ(num_rows(int64_t{1} << 40), 10);
}

TEST_F(RowsTest, BatchesAndTheirMasksAgreeWithBruteForce) {
    const auto shards = corpus_of(kEotTexts, EotSide::end);
    const int64_t T = 9, B = 4, N = B * T;
    HostBatch batch;
    for (const bool mask : {false, true})
        for (const int64_t num_rows : {4, 3, 0}) {
            const StreamRows rows(*shards, config(true, mask), T, 4);
            fill_batch(rows, 5, num_rows, B, &batch);
            std::vector<int64_t> document(static_cast<size_t>(N));  // of each token, numbered through the batch
            int64_t current = -1;
            for (int64_t b = 0; b < B; ++b) {
                const Row row = b < num_rows ? row_of(rows, static_cast<uint64_t>(5 + b)) : Row{};
                for (int64_t i = 0; i < T; ++i) {
                    const size_t at = static_cast<size_t>(b * T + i), j = static_cast<size_t>(i);
                    EXPECT_EQ(batch.tokens[at], b < num_rows ? row.tokens[j] : 0);
                    EXPECT_EQ(batch.targets[at], b < num_rows ? row.targets[j] : -1);
                    EXPECT_EQ(batch.positions[at], b < num_rows ? row.positions[j] : i);
                    const bool opens = b < num_rows ? std::count(row.starts.begin(), row.starts.end(), i) == 1 : i == 0;
                    current += opens;
                    document[at] = current;
                    if (!opens) continue;
                    EXPECT_EQ(batch.document_starts[static_cast<size_t>(current)], b * T + i);
                }
            }
            EXPECT_EQ(static_cast<int64_t>(batch.document_starts.size()), current + 1);
            for (int64_t i = 0; i < N; ++i)
                for (int64_t j = 0; j < N; ++j) {
                    const size_t q = static_cast<size_t>(i), k = static_cast<size_t>(j);
                    const bool sees = i / T == j / T && document[q] == document[k] && j <= i;
                    EXPECT_EQ(batch.first_key[q] <= j && j < batch.end_key[q], sees) << i << ", " << j;
                    EXPECT_EQ(batch.first_query[k] <= i && i < batch.end_query[k], sees) << i << ", " << j;
                }
        }
    // The last batch of a validation: its rows, then padding.
    const ValidationRows validation(*shards, config(true, true), T, 1 << 20);
    ASSERT_EQ(validation.num_rows(), 4);
    fill_batch(validation, 2, 2, 3, &batch);
    EXPECT_EQ(batch.tokens.size(), 27u);
    EXPECT_EQ(batch.targets[17], -1);
    EXPECT_EQ(batch.document_starts.back(), 18);
    EXPECT_THROW(fill_batch(validation, 3, 2, 3, &batch), Error);
}

TEST_F(RowsTest, MasksTakeTargetsAway) {
    const std::string file = write("a.bin", llmc({1, 2, 3, kEot, 4, 5, kEot, 6})),
                      mask = write("mask", std::string("\1\0\1\1\1\1\0\1", 8));
    const Corpus corpus({entry(file, DataFormat::automatic, RawType::automatic, mask)}, "data.train",
                        {.vocab_size = kVocab, .eot_token = kEot, .eot_side = EotSide::end});
    EXPECT_EQ(row_of(StreamRows(corpus, config(false, true), 7, 1), 0).targets,
              (std::vector<int32_t>{-1, 3, kEot, -1, 5, -1, -1}));
    EXPECT_EQ(row_of(StreamRows(corpus, config(false, false), 7, 1), 0).targets,
              (std::vector<int32_t>{-1, 3, kEot, 4, 5, -1, 6}));
    EXPECT_EQ(row_of(StreamRows(corpus, config(false, false), 1, 1), 0).targets, (std::vector<int32_t>{-1}));
    EXPECT_EQ(row_of(BestFitRows(corpus, config(false, true), 4, 1), 0).targets,
              (std::vector<int32_t>{-1, 3, kEot, -1}));
    EXPECT_EQ(row_of(BestFitRows(corpus, config(false, true), 2, 1), 0).targets, (std::vector<int32_t>{-1, 3}));
}

// A file that changes under the run: no id outside the vocabulary ever leaves.
TEST_F(RowsTest, IdsAreCheckedWhenTheyAreUsed) {
    const auto corpus = corpus_of({std::vector<int32_t>(100, 7)}, EotSide::end, -1);
    std::fstream file(folder_ / "split0-0.bin", std::ios::in | std::ios::out | std::ios::binary);
    const uint16_t bad = 60000;
    file.seekp(1024 + 2 * 44).write(reinterpret_cast<const char*>(&bad), 2);
    file.close();
    const StreamRows rows(*corpus, config(false, true), 4, 1);
    EXPECT_NO_THROW(row_of(rows, 9));
    for (const uint64_t r : {10, 11})  // as the last target, and as a token
        EXPECT_NE(test::user_error_of([&] { row_of(rows, r); }).find("token 44 is 60000"), std::string::npos) << r;
    const BestFitRows packed(*corpus, config(false, true), 4, 1);
    EXPECT_THROW(row_of(packed, 10), UserError);
    EXPECT_THROW(row_of(packed, 11), UserError);
}

}  // namespace
}  // namespace ingot
