// Byte-level BPE (Sennrich 2016; over bytes: Radford 2019, section 2.2): words are cut out of the text by patterns, and
// in each word the pair of neighbours with the lowest rank is merged, the leftmost first, until no pair has one.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "src/tokenizer/added_tokens.h"
#include "src/tokenizer/pattern.h"
#include "src/tokenizer/tokenizer.h"

namespace ingot {

// GPT-2's pattern, which ByteLevel applies unless "use_regex" is false.
constexpr const char* kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// The letters that stand for bytes in a tokenizer.json: printable Latin-1 for itself, the rest in order from U+0100 on
// (Radford 2019, encoder.py, bytes_to_unicode).
std::array<std::string, 256> byte_letters();

// One step of pre-tokenization; each works on the pieces that the one before has left.
struct PreTokenizerStep {
    enum class Kind {
        isolate,       // matches are pieces, and so is what stands between them
        keep_matches,  // matches alone; the rest of the text is dropped
        prefix_space   // a space before a piece that does not begin with one
    };
    Kind kind;
    std::vector<Pattern> pattern;  // one, or none for prefix_space
};

// What a tokenizer.json says, checked. Texts are bytes, no longer the letters that the file writes them in.
struct BpeDescription {
    std::vector<std::pair<std::string, int32_t>> vocab;  // no text and no id twice
    struct Merge {
        int32_t left, right, result;
    };
    std::vector<Merge> merges;  // by rank; of two with the same pair the later holds, as in HF
    std::array<int32_t, 256> byte_ids{};
    std::vector<AddedToken> added;
    bool uses_nfc = false;
    bool ignore_merges = false;  // a word that is in the vocabulary is one token, whatever the merges say
    std::vector<PreTokenizerStep> steps;
    std::string source;
};

class ByteLevelBpe : public Tokenizer {
  public:
    explicit ByteLevelBpe(BpeDescription description);

    std::vector<int32_t> encode(std::string_view text) override;
    std::string_view bytes_of(int32_t token) const override;
    bool is_special(int32_t token) const override;
    int64_t vocab_size() const override { return static_cast<int64_t>(bytes_.size()); }
    const std::string& source() const override { return source_; }
    std::string describe() const override;

  private:
    struct Merge {
        int32_t rank, result;
    };
    // A word whose letters are merged: a list linked both ways through indexes.
    struct Symbol {
        int32_t id, previous, next;
    };
    struct Candidate {
        int32_t rank, position, left, right, result;
    };
    struct CachedWord {
        uint8_t num_bytes = 0, num_ids = 0;  // a word has a byte at least: 0 is an empty place
        char text[42];
        int32_t ids[21];
    };
    struct StringHash {
        using is_transparent = void;
        size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
    };
    // 64-bit keys are two ids side by side; the standard's identity hash would put them into few buckets.
    struct PairHash {
        size_t operator()(uint64_t pair) const {
            pair *= 0x9e3779b97f4a7c15u;
            return static_cast<size_t>(pair ^ (pair >> 32));
        }
    };
    template <typename Value>
    using ByText = std::unordered_map<std::string, Value, StringHash, std::equal_to<>>;

    void pieces(std::string_view piece, size_t step, std::vector<int32_t>* out);
    void word(std::string_view text, std::vector<int32_t>* out);
    void merge(std::string_view text, std::vector<int32_t>* out);
    void push_candidate(int32_t position);

    std::string source_;
    bool uses_nfc_, ignore_merges_;
    std::vector<PreTokenizerStep> steps_;
    std::array<int32_t, 256> byte_ids_;
    std::unordered_map<uint64_t, Merge, PairHash> merges_;
    ByText<int32_t> vocab_;           // filled if ignore_merges
    std::vector<std::string> bytes_;  // of each id
    std::vector<bool> is_special_;
    AddedTokens raw_, normalized_;
    std::vector<CachedWord> cache_;
    std::vector<Symbol> symbols_;
    std::vector<Candidate> heap_;
};

}  // namespace ingot
