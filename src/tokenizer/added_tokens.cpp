#include "src/tokenizer/added_tokens.h"

#include "src/tokenizer/unicode.h"

namespace ingot {

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)), trie_(1) {
    for (size_t i = 0; i < tokens_.size(); ++i) {
        size_t node = 0;
        for (const char c : tokens_[i].content) {
            const auto [entry, is_new] = trie_[node].next.try_emplace(static_cast<uint8_t>(c), trie_.size());
            node = entry->second;
            if (is_new) trie_.emplace_back();
        }
        trie_[node].token = static_cast<int32_t>(i);
        begins_[static_cast<uint8_t>(tokens_[i].content[0])] = true;
    }
}

const AddedToken* AddedTokens::match(std::string_view input, size_t offset) const {
    const AddedToken* longest = nullptr;
    size_t node = 0;
    for (size_t i = offset; i < input.size(); ++i) {
        const auto entry = trie_[node].next.find(static_cast<uint8_t>(input[i]));
        if (entry == trie_[node].next.end()) break;
        node = entry->second;
        if (trie_[node].token >= 0) longest = &tokens_[static_cast<size_t>(trie_[node].token)];
    }
    return longest;
}

void AddedTokens::split(std::string_view input, const std::function<void(std::string_view)>& text,
                        const std::function<void(int32_t)>& token) const {
    size_t done = 0, at = 0;
    while (at < input.size()) {
        const AddedToken* const found = begins_[static_cast<uint8_t>(input[at])] ? match(input, at) : nullptr;
        if (found == nullptr) {
            ++at;
            continue;
        }
        size_t begin = at, end = at + found->content.size();
        at = end;
        // A single_word token with a letter beside it is ordinary text; the search goes on behind it, as in HF.
        if (found->single_word && (ends_with_word(input.substr(0, begin)) || begins_with_word(input.substr(end))))
            continue;
        if (found->lstrip) begin -= trailing_space(input.substr(0, begin));  // the space may be the previous token's
        if (found->rstrip) end += leading_space(input.substr(end));
        if (done < begin) text(input.substr(done, begin - done));
        token(found->id);
        done = end;
    }
    if (done < input.size()) text(input.substr(done));
}

}  // namespace ingot
