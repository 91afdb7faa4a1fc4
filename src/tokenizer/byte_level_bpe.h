// Byte-level BPE (Sennrich 2016; over bytes: Radford 2019, section 2.2). Patterns split the text into words. In each
// word the adjacent pair with the lowest rank is merged, the leftmost first, until no pair has a rank.
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

// Returns the letters that stand for bytes in a tokenizer.json: printable Latin-1 stands for itself, the others are
// numbered from U+0100 on (Radford 2019, encoder.py, bytes_to_unicode).
std::array<std::string, 256> byte_letters();

// A step of pre-tokenization splits the pieces that the step before it made.
struct PreTokenizerStep {
    enum class Kind {
        isolate,       // the matches and the text between them become pieces
        keep_matches,  // only the matches become pieces; the rest of the text is dropped
        prefix_space   // a space before a piece that does not begin with one
    };
    Kind kind;
    std::vector<Pattern> pattern;  // empty for prefix_space
};

// The checked content of a tokenizer.json. Strings are bytes here, no longer the letters that the file writes for
// them.
struct BpeDescription {
    std::vector<std::pair<std::string, int32_t>> vocab;  // neither strings nor ids repeat
    struct Merge {
        int32_t left, right, result;
    };
    std::vector<Merge> merges;  // by rank; the later of two merges of the same pair counts, as in HF
    std::array<int32_t, 256> byte_ids{};
    std::vector<AddedToken> added;
    bool uses_nfc = false;
    bool ignore_merges = false;  // a word in the vocabulary is one token, whatever the merges are
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
    // A symbol of the word that is being merged, linked to its neighbours by index.
    struct Symbol {
        int32_t id, previous, next;
    };
    struct Candidate {
        int32_t rank, position, left, right, result;
    };
    struct CachedWord {
        uint8_t num_bytes = 0, num_ids = 0;  // every word has a byte: 0 marks an empty slot
        char text[42];
        int32_t ids[21];
    };
    struct StringHash {
        using is_transparent = void;
        size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
    };
    // A 64-bit key is two ids side by side, which the standard's identity hash would put into few buckets.
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
    ByText<int32_t> vocab_;           // only filled if ignore_merges
    std::vector<std::string> bytes_;  // by id
    std::vector<bool> is_special_;
    AddedTokens raw_, normalized_;
    std::vector<CachedWord> cache_;
    std::vector<Symbol> symbols_;
    std::vector<Candidate> heap_;
};

}  // namespace ingot
