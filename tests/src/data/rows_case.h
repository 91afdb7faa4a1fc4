// Tests of rows share this: a row as a value, and datasets small enough to count their tokens.
#pragma once

#include <numeric>

#include "src/data/rows.h"
#include "tests/src/data/token_files.h"

namespace ingot {

constexpr int64_t kVocab = 50000, kEot = 9999;

struct Row {
    std::vector<int32_t> tokens, targets, positions;
    std::vector<int64_t> starts;
    bool operator==(const Row&) const = default;
};

inline Row row_of(const Rows& rows, uint64_t index) {
    const size_t T = static_cast<size_t>(rows.context_length());
    Row row{std::vector<int32_t>(T, -7), std::vector<int32_t>(T, -7), std::vector<int32_t>(T, -7), {-7}};
    rows.fill(index, {row.tokens.data(), row.targets.data(), row.positions.data(), &row.starts});
    return row;
}

class RowsTest : public TokenFiles {
  protected:
    // Writes the shards of a split, one file each, and opens them.
    std::unique_ptr<const Corpus> corpus_of(const std::vector<std::vector<int32_t>>& texts,
                                            EotSide side = EotSide::automatic, int64_t eot = kEot, bool is_wide = false,
                                            int64_t segment_tokens = CorpusOptions{}.segment_tokens) {
        const std::string name = join("split", num_splits_++, "-");
        std::vector<DataEntry> entries;
        for (const std::vector<int32_t>& text : texts) {
            const std::vector<int64_t> ids(text.begin(), text.end());
            entries.push_back(entry(write(join(name, entries.size(), ".bin"), is_wide ? wide_llmc(ids) : llmc(ids))));
        }
        return std::make_unique<Corpus>(
            entries, "data.train",
            CorpusOptions{.vocab_size = kVocab, .eot_token = eot, .eot_side = side, .segment_tokens = segment_tokens});
    }
    // Returns documents of the given lengths without an EOT, one document a shard. No token occurs twice: 10000, 10001,
    // ...
    static std::vector<std::vector<int32_t>> numbered(const std::vector<int>& lengths) {
        std::vector<std::vector<int32_t>> texts;
        int32_t next = 10000;
        for (const int length : lengths) {
            texts.emplace_back(static_cast<size_t>(length));
            std::iota(texts.back().begin(), texts.back().end(), next);
            next += length;
        }
        return texts;
    }

    static DataConfig config(bool shuffle, bool mask) {
        DataConfig c;
        c.shuffle = shuffle;
        c.mask_documents = mask;
        return c;
    }

  private:
    int num_splits_ = 0;
};

}  // namespace ingot
