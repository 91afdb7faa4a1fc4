// Added tokens: texts that are one token wherever they stand, such as <|endoftext|>. HF tokenizers cuts them out before
// anything else is done: those with "normalized": false out of the text as it is, the others out of what the
// normalizer makes of the pieces between them.
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
    bool single_word = false;  // only where no character of a word stands beside it
    bool lstrip = false;       // white space before it belongs to it
    bool rstrip = false;       // and after it
    bool normalized = false;
    bool special = false;
};

// Finds added tokens in a text: leftmost first, of those the longest, without overlap.
class AddedTokens {
  public:
    // `tokens` with their content as it stands in the text that is searched.
    explicit AddedTokens(std::vector<AddedToken> tokens);
    // Cuts valid UTF-8: calls `text` for what stands between tokens (never empty), `token` for the tokens, in order.
    void split(std::string_view input, const std::function<void(std::string_view)>& text,
               const std::function<void(int32_t)>& token) const;

  private:
    // The token whose content is the longest that stands at `offset`; null if there is none.
    const AddedToken* match(std::string_view input, size_t offset) const;

    struct Node {
        std::unordered_map<uint8_t, size_t> next;
        int32_t token = -1;  // index into tokens_
    };
    std::vector<AddedToken> tokens_;
    std::vector<Node> trie_;
    std::array<bool, 256> begins_{};  // first bytes
};

}  // namespace ingot
