// Added tokens are strings that are one token wherever they occur, such as <|endoftext|>. HF tokenizers cuts them out
// first: tokens with "normalized": false out of the original text, the others out of the normalized pieces between
// them.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace ingot {

struct AddedToken {
    int32_t id = -1;
    std::string content;       // not empty
    bool single_word = false;  // only matches without a word character beside it
    bool lstrip = false;       // takes the white space before it
    bool rstrip = false;       // takes the white space after it
    bool normalized = false;
    bool special = false;
};

// Finds added tokens in a text: the leftmost match, of several there the longest, without overlap.
class AddedTokens {
  public:
    // The content of `tokens` must be written as in the text that is searched: normalized if that is.
    explicit AddedTokens(std::vector<AddedToken> tokens);
    // Splits valid UTF-8 in order: calls `text` for each piece between tokens (never empty) and `token` for each
    // token.
    void split(std::string_view input, const std::function<void(std::string_view)>& text,
               const std::function<void(int32_t)>& token) const;

  private:
    // Returns the token with the longest content that matches at `offset`, or null.
    const AddedToken* match(std::string_view input, size_t offset) const;

    struct Node {
        std::unordered_map<uint8_t, size_t> next;
        int32_t token = -1;  // index into tokens_
    };
    std::vector<AddedToken> tokens_;
    std::vector<Node> trie_;
    std::array<bool, 256> begins_{};  // the first bytes of all tokens
};

}  // namespace ingot
