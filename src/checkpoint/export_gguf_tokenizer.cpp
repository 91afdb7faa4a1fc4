#include "src/checkpoint/export_gguf_tokenizer.h"

#include <algorithm>
#include <set>

#include "kernels/core/check.h"
#include "src/base/json_text.h"
#include "src/base/text.h"
#include "src/tokenizer/byte_level_bpe.h"

namespace ingot {

using nlohmann::json;

namespace {

// llama_token_type
enum TokenType : int32_t { kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5 };

constexpr const char* kInstead = ": export with --format hf, which keeps the tokenizer as it is";

// Other tools write GPT-2's pattern with the letters s, d, m and t in a class.
constexpr const char* kGpt2PatternInClasses =
    R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// llama.cpp knows pre-tokenizers only by name, and the name also decides whether a word in the vocabulary skips the
// merges. This table has those that split text as we do (llama-vocab.cpp, llm_tokenizer_bpe).
struct KnownPreTokenizer {
    std::vector<std::string> patterns;  // applied in turn
    bool ignore_merges;
    const char* name;
};
const std::vector<KnownPreTokenizer>& known_pre_tokenizers() {
    static const std::vector<KnownPreTokenizer> known = {
        {{kGpt2Pattern}, false, "gpt-2"},
        {{kGpt2PatternInClasses}, false, "gpt-2"},
        {{"\\p{N}", kGpt2Pattern}, false, "smollm"},
        {{kLlama3Pattern}, true, "llama-bpe"},
        {{kLlama3Pattern}, false, "smaug-bpe"},
        {{kQwen2Pattern}, false, "qwen2"},
    };
    return known;
}

bool is_true(const json& object, const char* key, bool otherwise) {
    return object.contains(key) && object.at(key).is_boolean() ? object.at(key).get<bool>() : otherwise;
}

// The vocabulary by id. No text repeats, since llama.cpp finds ids by text.
struct Vocabulary {
    std::vector<std::string> texts;  // empty: not set yet
    std::vector<int32_t> types;

    explicit Vocabulary(int64_t size) : texts(static_cast<size_t>(size)), types(static_cast<size_t>(size), kUnused) {}
    void set(int64_t id, const std::string& text, TokenType type) {
        texts.at(static_cast<size_t>(id)) = text;
        types.at(static_cast<size_t>(id)) = type;
    }
    // Fills the rows of the embedding that have no token.
    void fill_up() {
        const std::set<std::string> taken(texts.begin(), texts.end());
        for (size_t id = 0; id < texts.size(); ++id) {
            if (!texts[id].empty()) continue;
            texts[id] = join("[PAD", id, "]");
            while (taken.count(texts[id]) == 1) texts[id] += '_';
            types[id] = kUnused;
        }
    }
};

// Translates a tokenizer.json that parse_tokenizer() accepted, so that types and ids are valid.
class TokenizerTranslator {
  public:
    TokenizerTranslator(const json& root, std::string name) : root_(root), name_(std::move(name)) {}

    std::string pre_tokenizer() const {
        const json& whole = root_.at("pre_tokenizer");
        std::vector<std::string> patterns;
        for (const json& part : whole.at("type") == "Sequence" ? whole.at("pretokenizers") : json::array({whole})) {
            const std::string type = part.at("type");
            if (type == "Split") {
                // The known patterns match every character, so that keeping only the matches drops nothing.
                patterns.push_back(part.at("pattern").at("Regex"));
            } else if (type == "Digits") {
                patterns.emplace_back(is_true(part, "individual_digits", false) ? "\\p{N}" : "\\p{N}+");
            } else {
                REQUIRE(!is_true(part, "add_prefix_space", true), name_,
                        ": pre_tokenizer puts a space before the text (add_prefix_space), which llama.cpp does not",
                        kInstead);
                if (is_true(part, "use_regex", true)) patterns.emplace_back(kGpt2Pattern);
            }
        }
        const bool ignore_merges = is_true(root_.at("model"), "ignore_merges", false);
        bool has_pattern = false;
        for (const KnownPreTokenizer& known : known_pre_tokenizers()) {
            if (known.patterns != patterns) continue;
            has_pattern = true;
            if (known.ignore_merges == ignore_merges) return known.name;
        }
        std::string shown;
        for (const std::string& pattern : patterns) shown += (shown.empty() ? "" : ", then ") + excerpt(pattern, 80);
        REQUIRE(!has_pattern, name_, ": model.ignore_merges is ", ignore_merges ? "true" : "false",
                ", which llama.cpp does not have for the pattern ", shown, kInstead);
        throw UserError(join(name_, ": pre_tokenizer splits by ", shown.empty() ? "nothing" : shown,
                             "; llama.cpp knows the patterns of GPT-2, Llama-3, Qwen2 and SmolLM, and no others",
                             kInstead));
    }

    void fill(Vocabulary* vocabulary) const {
        for (const auto& entry : root_.at("model").at("vocab").items())
            // Merges never make a text that is not in byte letters, and llama.cpp could not write it.
            vocabulary->set(entry.value(), entry.key(), is_in_letters(entry.key()) ? kNormal : kUnused);
        std::set<std::string> added;
        for (const json& token : root_.value("added_tokens", json::array())) {
            const std::string content = token.at("content");
            constexpr size_t kLongest = 1024;
            REQUIRE(content.size() <= kLongest, name_, ": the added token ", excerpt(content, 60), " has ",
                    content.size(), " bytes, at most ", kLongest, " are exported", kInstead);
            added.insert(content);
            for (const char* flag : {"lstrip", "rstrip", "single_word"})
                REQUIRE(!is_true(token, flag, false), name_, ": the added token ", excerpt(content, 60), " has ", flag,
                        ", which llama.cpp does not follow", kInstead);
            vocabulary->set(token.at("id"), content, is_true(token, "special", false) ? kControl : kUserDefined);
        }
        refuse_overlaps(added);
        for (const std::string& text : vocabulary->texts)
            REQUIRE(text.find('\0') == std::string::npos, name_, ": the token ", excerpt(text, 60),
                    " holds a NUL character, at which llama.cpp ends its text", kInstead);
    }

    std::vector<std::string> merges() const {
        std::vector<std::string> result;
        std::set<std::string> seen;
        const json& all = root_.at("model").at("merges");
        // Goes backwards, because of two merges of one pair the later counts here, and the first in llama.cpp.
        for (size_t i = all.size(); i-- > 0;) {
            const json& merge = all[i];
            const std::string text =
                merge.is_string() ? merge.get<std::string>() : join(std::string(merge[0]), ' ', std::string(merge[1]));
            if (text.rfind("#version", 0) == 0 && merge.is_string()) continue;
            const size_t space = text.find(' ');
            const bool can_happen = is_in_letters(text.substr(0, space)) && is_in_letters(text.substr(space + 1));
            if (can_happen && seen.insert(text).second) result.push_back(text);
        }
        std::reverse(result.begin(), result.end());
        return result;
    }

    // parse_tokenizer() accepts no normalizer but NFC, alone or in a sequence.
    bool uses_nfc() const { return root_.value("normalizer", json()).dump().find("\"NFC\"") != std::string::npos; }

  private:
    // Where added tokens overlap in a text, we find the leftmost and llama.cpp the longest. Refuses a token whose end
    // is the start of another that is as long or longer, unless we find a still longer one there.
    void refuse_overlaps(const std::set<std::string>& added) const {
        constexpr int kMost = 100000;  // no sensible file has more
        int looked_at = 0;
        for (const std::string& left : added)
            for (size_t begin = 1; begin < left.size(); ++begin) {
                const std::string shared = left.substr(begin);
                for (auto right = added.lower_bound(shared); right != added.end(); ++right) {
                    if (right->compare(0, shared.size(), shared) != 0) break;
                    if (right->size() < left.size()) continue;
                    const std::string text = left + right->substr(shared.size());
                    size_t found = text.size();
                    while (added.count(text.substr(0, found)) == 0) --found;
                    const bool is_same = found > right->size() || text.compare(0, found, *right) == 0;
                    REQUIRE(is_same && ++looked_at < kMost, name_, ": the added tokens ", excerpt(left, 60), " and ",
                            excerpt(*right, 60), " overlap in ", excerpt(text, 60),
                            ", where llama.cpp finds the longer one, and not the first", kInstead);
                }
            }
    }

    bool is_in_letters(const std::string& text) const {
        for (size_t i = 0; i < text.size();) {
            const auto length = static_cast<size_t>(utf8_length(text.data() + i, text.size() - i));
            if (letters_.count(text.substr(i, length)) == 0) return false;
            i += length;
        }
        return true;
    }

    const json& root_;
    std::string name_;
    const std::set<std::string> letters_ = [] {
        const std::array<std::string, 256> all = byte_letters();
        return std::set<std::string>(all.begin(), all.end());
    }();
};

}  // namespace

std::vector<std::string> add_gguf_tokenizer(const Checkpoint& checkpoint, GgufFile* file) {
    const Config& config = checkpoint.manifest.config;
    const std::unique_ptr<Tokenizer> tokenizer =
        checkpoint_tokenizer(checkpoint);  // refuses a tokenizer that cannot be read
    if (tokenizer == nullptr) {
        file->add_string("tokenizer.ggml.model", "none");
        return {
            "the run has no tokenizer, and so has the file: llama.cpp loads it for programs that give token ids, "
            "and cannot read a prompt"};
    }
    const int64_t V = config.model.vocab_size;
    REQUIRE(tokenizer->vocab_size() <= V, checkpoint.folder, ": model.vocab_size is ", V, ", and the tokenizer has ",
            tokenizer->vocab_size(), " tokens: was the checkpoint put together from two?");
    std::vector<std::string> notes;
    Vocabulary vocabulary(V);
    std::vector<std::string> merges;
    std::string pre = "gpt-2";
    const std::array<std::string, 256> letters = byte_letters();
    int32_t unlikely = 0xff;  // a token that no text has, since UTF-8 has no byte 0xff
    if (config.data.tokenizer == kBytesTokenizer) {
        for (size_t byte = 0; byte < letters.size(); ++byte)
            vocabulary.set(static_cast<int64_t>(byte), letters[byte], kNormal);
    } else {
        const std::string name = checkpoint.folder + "/" + kTokenizerFile;
        const json root = json::parse(checkpoint.tokenizer_json);
        const TokenizerTranslator translator(root, name);
        pre = translator.pre_tokenizer();
        translator.fill(&vocabulary);
        merges = translator.merges();
        unlikely = root.at("model").at("vocab").at(letters[0xff]);
        if (translator.uses_nfc())
            notes.emplace_back(
                "the tokenizer normalizes text to NFC, which llama.cpp leaves out: decomposed accents get other "
                "tokens");
    }
    vocabulary.fill_up();
    int32_t end = static_cast<int32_t>(config.data.eot_token.value_or(-1));
    if (end < 0) {
        // Without an id llama.cpp takes 11, which may be a comma.
        end = tokenizer->vocab_size() < V ? static_cast<int32_t>(V - 1) : unlikely;
        notes.emplace_back("the run has no data.eot_token, so that llama.cpp never sees a text end: limit it (-n)");
    }
    file->add_string("tokenizer.ggml.model", "gpt2");
    file->add_string("tokenizer.ggml.pre", pre);
    file->add_strings("tokenizer.ggml.tokens", vocabulary.texts);
    file->add_int32s("tokenizer.ggml.token_type", vocabulary.types);
    file->add_strings("tokenizer.ggml.merges", merges);  // the key must exist, even if empty
    file->add_uint32("tokenizer.ggml.bos_token_id", end);
    file->add_uint32("tokenizer.ggml.eos_token_id", end);
    file->add_bool("tokenizer.ggml.add_bos_token", false);
    file->add_bool("tokenizer.ggml.add_eos_token", false);
    return notes;
}

}  // namespace ingot
