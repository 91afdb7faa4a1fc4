#include "src/tokenizer/byte_level_bpe.h"

#include <algorithm>

#include "kernels/core/check.h"
#include "src/tokenizer/unicode.h"

namespace ingot {

namespace {

// Number of words in the cache, which has 8 MB. A word's hash gives it one slot, and the latest word takes it, so that
// words which never repeat, as in binary data, cost little beyond their merges.
constexpr size_t kCachedWords = size_t{1} << 16;

uint64_t pair_key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

std::vector<AddedToken> select(const std::vector<AddedToken>& tokens, bool normalized, bool uses_nfc) {
    std::vector<AddedToken> result;
    for (AddedToken token : tokens) {
        if (token.normalized != normalized) continue;
        // The token is searched for in normalized text, so it is normalized too.
        if (normalized && uses_nfc) token.content = to_nfc(token.content);
        result.push_back(std::move(token));
    }
    return result;
}

}  // namespace

ByteLevelBpe::ByteLevelBpe(BpeDescription description)
    : source_(std::move(description.source)),
      uses_nfc_(description.uses_nfc),
      ignore_merges_(description.ignore_merges),
      steps_(std::move(description.steps)),
      byte_ids_(description.byte_ids),
      raw_(select(description.added, false, uses_nfc_)),
      normalized_(select(description.added, true, uses_nfc_)),
      cache_(kCachedWords) {
    int32_t last = -1;
    for (const auto& [text, id] : description.vocab) last = std::max(last, id);
    for (const AddedToken& token : description.added) last = std::max(last, token.id);
    bytes_.resize(static_cast<size_t>(last) + 1);
    is_special_.resize(bytes_.size());
    for (auto& [text, id] : description.vocab) {
        bytes_[static_cast<size_t>(id)] = text;
        if (ignore_merges_) vocab_.emplace(text, id);
    }
    for (const AddedToken& token : description.added) {
        bytes_[static_cast<size_t>(token.id)] = token.content;
        is_special_[static_cast<size_t>(token.id)] = token.special;
    }
    merges_.reserve(description.merges.size());
    for (size_t rank = 0; rank < description.merges.size(); ++rank) {
        const BpeDescription::Merge& merge = description.merges[rank];
        merges_[pair_key(merge.left, merge.right)] = {static_cast<int32_t>(rank), merge.result};
    }
}

std::string_view ByteLevelBpe::bytes_of(int32_t token) const {
    if (token < 0 || static_cast<size_t>(token) >= bytes_.size()) return {};
    return bytes_[static_cast<size_t>(token)];
}

bool ByteLevelBpe::is_special(int32_t token) const {
    return token >= 0 && static_cast<size_t>(token) < is_special_.size() && is_special_[static_cast<size_t>(token)];
}

std::string ByteLevelBpe::describe() const {
    return join("byte-level BPE, ", vocab_size(), " tokens");
}

// ---- Text to words ----

std::vector<int32_t> ByteLevelBpe::encode(std::string_view text) {
    std::string replaced;
    if (!is_valid_utf8(text)) {
        replaced = replace_invalid_utf8(text);
        text = replaced;
    }
    std::vector<int32_t> ids;
    const auto push = [&](int32_t id) { ids.push_back(id); };
    const auto words = [&](std::string_view piece) { pieces(piece, 0, &ids); };
    const auto outer = [&](std::string_view piece) {
        if (uses_nfc_)
            normalized_.split(to_nfc(piece), words, push);
        else
            normalized_.split(piece, words, push);
    };
    raw_.split(text, outer, push);
    return ids;
}

void ByteLevelBpe::pieces(std::string_view piece, size_t step, std::vector<int32_t>* out) {
    if (step == steps_.size()) {
        word(piece, out);
        return;
    }
    PreTokenizerStep& now = steps_[step];
    if (now.kind == PreTokenizerStep::Kind::prefix_space) {
        if (piece[0] == ' ') {
            pieces(piece, step + 1, out);
            return;
        }
        std::string prefixed(1, ' ');
        prefixed += piece;
        pieces(prefixed, step + 1, out);
        return;
    }
    size_t done = 0, begin = 0, end = 0;
    while (done < piece.size()) {
        if (!now.pattern[0].find(piece, done, &begin, &end)) begin = end = piece.size();
        if (begin > done && now.kind == PreTokenizerStep::Kind::isolate)
            pieces(piece.substr(done, begin - done), step + 1, out);
        if (end > begin) pieces(piece.substr(begin, end - begin), step + 1, out);
        done = end;
    }
}

// ---- Words to tokens ----

void ByteLevelBpe::word(std::string_view text, std::vector<int32_t>* out) {
    CachedWord& cached = cache_[std::hash<std::string_view>()(text) % kCachedWords];
    if (text == std::string_view(cached.text, cached.num_bytes)) {
        out->insert(out->end(), cached.ids, cached.ids + cached.num_ids);
        return;
    }
    const size_t begin = out->size();
    if (const auto known = ignore_merges_ ? vocab_.find(text) : vocab_.end(); known != vocab_.end())
        out->push_back(known->second);
    else
        merge(text, out);
    const size_t num_ids = out->size() - begin;
    if (text.size() > std::size(cached.text) || num_ids > std::size(cached.ids)) return;
    cached.num_bytes = static_cast<uint8_t>(text.size());
    cached.num_ids = static_cast<uint8_t>(num_ids);
    std::copy(text.begin(), text.end(), cached.text);
    std::copy(out->end() - static_cast<int64_t>(num_ids), out->end(), cached.ids);
}

namespace {

// The heap's front is the candidate with the lowest rank, and among equals the leftmost.
constexpr auto is_later = [](const auto& a, const auto& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
};

}  // namespace

void ByteLevelBpe::push_candidate(int32_t position) {
    const Symbol& left = symbols_[static_cast<size_t>(position)];
    if (left.next < 0) return;
    const int32_t right = symbols_[static_cast<size_t>(left.next)].id;
    const auto merge = merges_.find(pair_key(left.id, right));
    if (merge == merges_.end()) return;
    heap_.push_back({merge->second.rank, position, left.id, right, merge->second.result});
    std::push_heap(heap_.begin(), heap_.end(), is_later);
}

// Takes O(n log n) for n bytes: every merge removes one symbol and adds at most two candidates. A candidate is skipped
// if one of its symbols has been merged meanwhile.
void ByteLevelBpe::merge(std::string_view text, std::vector<int32_t>* out) {
    REQUIRE(text.size() < (size_t{1} << 31), "a word of ", text.size(), " bytes: split the text");
    const auto n = static_cast<int32_t>(text.size());
    symbols_.resize(text.size());
    heap_.clear();
    for (int32_t i = 0; i < n; ++i) {
        const auto byte = static_cast<uint8_t>(text[static_cast<size_t>(i)]);
        symbols_[static_cast<size_t>(i)] = {byte_ids_[byte], i - 1, i + 1 < n ? i + 1 : -1};
    }
    for (int32_t i = 0; i + 1 < n; ++i) push_candidate(i);
    while (!heap_.empty()) {
        std::pop_heap(heap_.begin(), heap_.end(), is_later);
        const Candidate best = heap_.back();
        heap_.pop_back();
        Symbol& left = symbols_[static_cast<size_t>(best.position)];
        if (left.id != best.left || left.next < 0) continue;
        Symbol& right = symbols_[static_cast<size_t>(left.next)];
        if (right.id != best.right) continue;
        left.id = best.result;
        left.next = right.next;
        right.id = -1;  // no pair has this id, which invalidates the candidates that begin here
        if (left.next >= 0) symbols_[static_cast<size_t>(left.next)].previous = best.position;
        if (left.previous >= 0) push_candidate(left.previous);
        push_candidate(best.position);
    }
    for (int32_t i = 0; i >= 0 && i < n; i = symbols_[static_cast<size_t>(i)].next)
        out->push_back(symbols_[static_cast<size_t>(i)].id);
}

}  // namespace ingot
