// Blends: shares, the closed form against counting, and what a resumed run goes on with.
//
// Seen to catch: places counted through the slots instead of the rows (RowsOfADatasetComeInOrder); the origin's row
// left out of source() (ABlendThatChangesGoesOn).
#include "src/data/blend.h"

#include <cmath>
#include <numeric>
#include <tuple>

#include "kernels/core/rng.h"

#include "src/data/host_batch.h"
#include "tests/src/data/token_files.h"

namespace ingot {
namespace {

class BlendTest : public TokenFiles {
  protected:
    // A dataset of `tokens` tokens that are all `id`.
    BlendedRows::Dataset dataset(const std::string& name, int64_t id, int64_t tokens, int64_t share,
                                 Packing packing = Packing::stream) {
        const std::string file =
            write(name + std::to_string(tokens) + ".bin", llmc(std::vector<int64_t>(static_cast<size_t>(tokens), id)));
        corpora_.push_back(std::make_unique<Corpus>(std::vector<DataEntry>{entry(file)}, "data.train",
                                                    CorpusOptions{.vocab_size = 100}));
        DataConfig config;
        config.packing = packing;
        return {name, share, DatasetRows::make(*corpora_.back(), config, 4, 1)};
    }
    BlendedRows blend(const std::vector<std::tuple<std::string, int64_t, int64_t, int64_t>>& parts) {
        std::vector<BlendedRows::Dataset> datasets;
        for (const auto& [name, id, tokens, share] : parts) datasets.push_back(dataset(name, id, tokens, share));
        return BlendedRows(std::move(datasets), 7);
    }
    std::vector<std::unique_ptr<Corpus>> corpora_;
};

TEST_F(BlendTest, SharesByLargestRemainder) {
    EXPECT_EQ(blend_shares({1}), (std::vector<int64_t>{1024}));
    EXPECT_EQ(blend_shares({1, 1}), (std::vector<int64_t>{512, 512}));
    EXPECT_EQ(blend_shares({1, 1, 1}), (std::vector<int64_t>{342, 341, 341}));
    EXPECT_EQ(blend_shares({0.7, 0.2, 0.1}), (std::vector<int64_t>{717, 205, 102}));
    EXPECT_EQ(blend_shares({1e-9, 1e9}), (std::vector<int64_t>{0, 1024}));
    for (uint64_t seed = 0; seed < 200; ++seed) {
        std::vector<double> weights;
        for (uint64_t i = 0; i < 1 + seed % 40; ++i) weights.push_back(1e-3 + random_bits(seed, 1, i) * 1e-6);
        const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
        const std::vector<int64_t> shares = blend_shares(weights);
        EXPECT_EQ(std::accumulate(shares.begin(), shares.end(), int64_t{0}), kBlendRows);
        for (size_t d = 0; d < shares.size(); ++d)
            EXPECT_LT(std::abs(static_cast<double>(shares[d]) - weights[d] / sum * kBlendRows), 1.0);
    }
}

TEST_F(BlendTest, RowsOfADatasetComeInOrder) {
    const BlendedRows rows = blend({{"a", 1, 50, 700}, {"b", 2, 60, 300}, {"c", 3, 70, 24}});
    std::vector<uint64_t> next(3, 0);
    std::vector<std::vector<size_t>> blocks;
    for (uint64_t r = 0; r < 3 * kBlendRows; ++r) {
        if (r % kBlendRows == 0) blocks.emplace_back();
        const auto [d, row] = rows.source(r);
        EXPECT_EQ(row, next[d]++) << "row " << r;
        blocks.back().push_back(d);
        if (r % 500 == 3) {
            EXPECT_EQ(rows.counts(0, r + 1), next);
        }
    }
    EXPECT_EQ(next, (std::vector<uint64_t>{2100, 900, 72}));
    EXPECT_NE(blocks[0], blocks[1]) << "each block has an order of its own";
    // Well mixed: of 1,024 rows about 700 * 324 / 1024 * 2 neighbours differ if a is against the rest.
    int64_t changes = 0;
    for (size_t i = 0; i + 1 < blocks[0].size(); ++i) changes += (blocks[0][i] == 0) != (blocks[0][i + 1] == 0);
    EXPECT_NEAR(static_cast<double>(changes), 443, 5 * 18);
    // And the rows are those of the datasets.
    HostBatch batch;
    fill_batch(rows, 5, 8, 8, &batch);
    for (uint64_t b = 0; b < 8; ++b)
        EXPECT_EQ(batch.tokens[4 * b], static_cast<int32_t>(rows.source(5 + b).dataset) + 1);
}

TEST_F(BlendTest, TheSameBlendGoesOnAsIfItHadNotStopped) {
    const BlendedRows before = blend({{"a", 1, 50, 700}, {"b", 2, 60, 324}});
    for (const uint64_t consumed : {0, 1, 1000, 1024, 5000}) {
        BlendedRows after = blend({{"a", 1, 50, 700}, {"b", 2, 60, 324}});
        EXPECT_TRUE(after.resume(before.state(consumed), consumed).empty());
        for (uint64_t r = consumed; r < consumed + 50; ++r) {
            EXPECT_EQ(after.source(r).dataset, before.source(r).dataset);
            EXPECT_EQ(after.source(r).row, before.source(r).row);
        }
    }
}

TEST_F(BlendTest, ABlendThatChangesGoesOn) {
    const BlendedRows before = blend({{"a", 1, 50, 700}, {"b", 2, 60, 324}});
    const std::vector<uint64_t> counts = before.counts(0, 1500);
    BlendedRows after = blend({{"c", 3, 70, 24}, {"b", 2, 60, 500}, {"a", 1, 50, 500}});
    const std::vector<std::string> lines = after.resume(before.state(1500), 1500);
    EXPECT_EQ(lines.size(), 3u);
    EXPECT_EQ(lines[0], "c is new: it begins with its first row");
    EXPECT_EQ(lines[1], "b goes on with its row " + std::to_string(counts[1]));
    std::vector<uint64_t> next = {0, counts[1], counts[0]};
    for (uint64_t r = 1500; r < 1500 + 2 * kBlendRows; ++r) {
        const auto [d, row] = after.source(r);
        EXPECT_EQ(row, next[d]++);
    }
    EXPECT_EQ(next[0], 48u);
    EXPECT_THROW(after.source(1499), Error);
    // That blend is interrupted again: it goes on from its own origin.
    BlendedRows later = blend({{"c", 3, 70, 24}, {"b", 2, 60, 500}, {"a", 1, 50, 500}});
    EXPECT_TRUE(later.resume(after.state(1700), 1700).empty());
    for (uint64_t r = 1700; r < 1800; ++r) EXPECT_EQ(later.source(r).row, after.source(r).row);
}

TEST_F(BlendTest, FilesThatWereMovedAreTheSameDataset) {
    const BlendedRows before = blend({{"a", 1, 50, 1024}});
    BlendedRows moved = blend({{"elsewhere", 1, 50, 1024}});
    EXPECT_TRUE(moved.resume(before.state(33), 33).empty());
    EXPECT_EQ(moved.source(40).row, 40u);
    BlendedRows other = blend({{"other", 1, 51, 1024}});
    EXPECT_EQ(other.resume(before.state(33), 33),
              std::vector<std::string>{"other is new: it begins with its first row"});
    EXPECT_EQ(other.source(40).row, 7u);
    BlendedRows grown = blend({{"a", 1, 52, 1024}});
    EXPECT_EQ(grown.resume(before.state(33), 33).size(), 1u);
    EXPECT_EQ(grown.source(40).row, 40u);
    // A checkpoint of a version that wrote no state: one dataset goes on.
    BlendedRows old = blend({{"a", 1, 50, 1024}});
    EXPECT_TRUE(old.resume(BlendState{}, 33).empty());
    EXPECT_EQ(old.source(40).row, 40u);
}

nlohmann::json json_of(const BlendState& state) {
    const nlohmann::ordered_json json = state;
    return json;
}

TEST_F(BlendTest, StatesSurviveJson) {
    const BlendedRows rows = blend({{"a", 1, 50, 700}, {"b", 2, 60, 324}});
    const BlendState state = rows.state(1500);
    const nlohmann::json json = json_of(state);
    const BlendState again = blend_state_from_json(JsonFields(json, "manifest.json", "data", "check it"), 1500);
    EXPECT_EQ(json_of(again), json);
    EXPECT_EQ(again.datasets[1].next_row, state.datasets[1].next_row);
    EXPECT_EQ(again.datasets[1].fingerprint, state.datasets[1].fingerprint);
}

// Each of these was read without a look before: most made wrong rows, some read outside of memory.
TEST_F(BlendTest, StatesThatCannotBeAreRefused) {
    const BlendedRows rows = blend({{"a", 1, 50, 700}, {"b", 2, 60, 324}});
    const nlohmann::json good = json_of(rows.state(1500));
    const auto refused = [&](const char* pointer, const nlohmann::json& value) {
        nlohmann::json changed = good;
        changed[nlohmann::json::json_pointer(pointer)] = value;
        EXPECT_THROW(blend_state_from_json(JsonFields(changed, "manifest.json", "data", "check it"), 1500), UserError)
            << pointer << " " << value.dump();
    };
    for (const nlohmann::json& value :
         {nlohmann::json(-1), nlohmann::json(1501), nlohmann::json(uint64_t{1} << 63), nlohmann::json(1.5),
          nlohmann::json("1"), nlohmann::json(), nlohmann::json::array(), nlohmann::json(int64_t{1} << 60)})
        for (const char* const pointer :
             {"/first_row", "/datasets/0/first_row", "/datasets/1/next_row", "/datasets/0/share"})
            refused(pointer, value);
    refused("/first_row", 1);           // the rows of the datasets no longer sum to those of the run
    refused("/datasets/0/share", 701);  // nor the shares to all
    refused("/datasets/0/next_row", 1);
    refused("/datasets/0/name", 3);
    refused("/datasets/0/tokens", 0);
    refused("/datasets", 3);
    refused("/datasets/1", nullptr);
    refused("/datasets/0/bookmark", 3);
    refused("/datasets/0/bookmark", {{"group", -1}, {"first_row", 0}});
    refused("/datasets/0/bookmark", {{"group", 0}, {"first_row", int64_t{1} << 60}});
    refused("/datasets/0/bookmark", {{"group", 0}});
    refused("/datasets/0/fingerprint", {{"content", std::string(65, 'a')}});
    refused("/validation", {{"content", 1}});
}

TEST_F(BlendTest, OtherContentOfTheSameSizeIsSaid) {
    const BlendState then = blend({{"a", 1, 50, 1024}}).state(33);
    BlendedRows other = blend({{"a", 2, 50, 1024}});
    const std::vector<std::string> lines = other.resume(then, 33);
    ASSERT_EQ(lines.size(), 1u);
    EXPECT_NE(lines[0].find("a does not hold what it did"), std::string::npos) << lines[0];
    EXPECT_EQ(other.source(40).row, 40u) << "it goes on all the same";
}

TEST_F(BlendTest, SaysWhatWasRead) {
    const BlendedRows rows = blend({{"a", 1, 64, 512}, {"b", 2, 32, 512}});
    const std::vector<std::string> lines = rows.describe(2048);
    EXPECT_EQ(lines[0], "a: 50.00% of the rows (50.00% by its share), 64.000 epochs");
    EXPECT_EQ(lines[1], "b: 50.00% of the rows (50.00% by its share), 128.000 epochs");
}

}  // namespace
}  // namespace ingot
