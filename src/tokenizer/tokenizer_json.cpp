// Reads a tokenizer.json strictly: a feature that would give other tokens than this implementation is refused by name.
#include <map>
#include <set>

#include "kernels/core/check.h"
#include "src/base/json_text.h"
#include "src/base/text.h"
#include "src/tokenizer/byte_level_bpe.h"
#include "src/tokenizer/unicode.h"

namespace ingot {

using nlohmann::json;

std::array<std::string, 256> byte_letters() {
    std::array<std::string, 256> letters;
    int next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
        const bool is_itself = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xff && byte != 0xad);
        const int code = is_itself ? byte : next++;
        std::string& letter = letters[static_cast<size_t>(byte)];
        if (code < 0x80) {
            letter = static_cast<char>(code);
        } else {
            letter += static_cast<char>(0xc0 | code >> 6);
            letter += static_cast<char>(0x80 | (code & 0x3f));
        }
    }
    return letters;
}

namespace {

constexpr int64_t kMaxTokens = 16777216;  // the limit of model.vocab_size

class TokenizerReader {
  public:
    TokenizerReader(std::string source, const std::string& name) : name_(name) {
        for (size_t byte = 0; byte < letters_.size(); ++byte)
            bytes_of_letters_[letters_[byte]] = static_cast<char>(static_cast<uint8_t>(byte));
        constexpr JsonLimits kLimits = {.max_bytes = kMaxTokenizerBytes,
                                        .advice = "it must be the tokenizer.json of a byte-level BPE"};
        const json root = parse_json(source, name_, kLimits);
        REQUIRE(root.is_object() && root.value("model", json()).is_object() && root.at("model").contains("vocab"),
                name_, " has no \"model\" with a \"vocab\": it must be the tokenizer.json of a byte-level BPE");
        known_keys(root, "",
                   {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
                    "decoder", "model"});
        // "truncation" and "padding" are for batches of a finished model's input, so they are ignored: a text is
        // encoded whole.
        description_.source = std::move(source);
        normalizer(root.value("normalizer", json()), "normalizer");
        pre_tokenizer(root.value("pre_tokenizer", json()), "pre_tokenizer");
        decoder(root.value("decoder", json()), "decoder");
        model(root.at("model"));
        added_tokens(root.value("added_tokens", json::array()));
    }

    BpeDescription take() { return std::move(description_); }

  private:
    static bool is_null(const json& object, const char* key) {
        return !object.contains(key) || object.at(key).is_null();
    }
    [[noreturn]] void unsupported(const std::string& path, const json& value, const std::string& known) const {
        throw UserError(join(name_, ": ", path, " is ", shown(value), ", which is not supported: it must be ", known));
    }
    void known_keys(const json& object, const std::string& path, const std::set<std::string>& known) const {
        REQUIRE(object.is_object(), name_, ": ", path, " is ", shown(object), ", it must be an object");
        for (const auto& entry : object.items())
            REQUIRE(known.count(entry.key()) == 1, name_, ": unknown key ", path, path.empty() ? "" : ".",
                    excerpt(entry.key(), 60),
                    ", so its tokens could be others: use a file of the GPT-2, Llama-3 or Qwen kind");
    }
    bool boolean(const json& object, const std::string& path, const char* key, bool otherwise) const {
        if (is_null(object, key)) return otherwise;
        REQUIRE(object.at(key).is_boolean(), name_, ": ", path, ".", key, " is ", shown(object.at(key)),
                ", it must be true or false");
        return object.at(key).get<bool>();
    }
    std::string type_of(const json& object, const std::string& path) const {
        REQUIRE(object.is_object() && object.contains("type") && object.at("type").is_string(), name_, ": ", path,
                " has no \"type\": use a tokenizer.json as HF tokenizers writes it");
        return object.at("type").get<std::string>();
    }
    const json& list(const json& object, const std::string& path, const char* key) const {
        REQUIRE(object.contains(key) && object.at(key).is_array(), name_, ": ", path, ".", key, " must be a list");
        return object.at(key);
    }

    void normalizer(const json& value, const std::string& path) {
        if (value.is_null()) return;
        const std::string type = type_of(value, path);
        if (type == "Sequence") {
            known_keys(value, path, {"type", "normalizers"});
            int index = 0;
            for (const json& part : list(value, path, "normalizers")) normalizer(part, join(path, "[", index++, "]"));
            return;
        }
        if (type != "NFC") unsupported(path + ".type", value.at("type"), "\"NFC\", or no normalizer at all");
        known_keys(value, path, {"type"});
        description_.uses_nfc = true;
    }

    void add_step(PreTokenizerStep::Kind kind, const std::string& regex, const std::string& where) {
        description_.steps.push_back({kind, {}});
        description_.steps.back().pattern.emplace_back(regex, where);
    }

    void pre_tokenizer(const json& value, const std::string& path) {
        const std::string known = "\"ByteLevel\", \"Split\" by a Regex, \"Digits\", or a \"Sequence\" of them";
        if (value.is_null()) unsupported(path, value, known);
        std::vector<std::pair<json, std::string>> parts;
        if (type_of(value, path) == "Sequence") {
            known_keys(value, path, {"type", "pretokenizers"});
            for (const json& part : list(value, path, "pretokenizers"))
                parts.emplace_back(part, join(path, ".pretokenizers[", parts.size(), "]"));
        } else {
            parts.emplace_back(value, path);
        }
        for (size_t i = 0; i < parts.size(); ++i) {
            const auto& [part, where] = parts[i];
            const std::string type = type_of(part, where);
            REQUIRE((type == "ByteLevel") == (i + 1 == parts.size()), name_, ": ", where, " is ", shown(part),
                    ": \"ByteLevel\" must stand once, as the last pre-tokenizer");
            if (type == "ByteLevel")
                byte_level(part, where);
            else if (type == "Split")
                split(part, where);
            else if (type == "Digits") {
                known_keys(part, where, {"type", "individual_digits"});
                const bool is_single = boolean(part, where, "individual_digits", false);
                add_step(PreTokenizerStep::Kind::isolate, is_single ? "\\p{N}" : "\\p{N}+", join(name_, ": ", where));
            } else
                unsupported(where + ".type", part.at("type"), known);
        }
        REQUIRE(!parts.empty(), name_, ": ", path, " is empty: it must have \"ByteLevel\" last");
    }

    void byte_level(const json& part, const std::string& where) {
        known_keys(part, where, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
        if (boolean(part, where, "add_prefix_space", true))
            description_.steps.push_back({PreTokenizerStep::Kind::prefix_space, {}});
        if (boolean(part, where, "use_regex", true))
            add_step(PreTokenizerStep::Kind::isolate, kGpt2Pattern, join(name_, ": ", where));
    }

    void split(const json& part, const std::string& where) {
        known_keys(part, where, {"type", "pattern", "behavior", "invert"});
        REQUIRE(part.contains("pattern") && part.at("pattern").is_object() && part.at("pattern").contains("Regex") &&
                    part.at("pattern").at("Regex").is_string(),
                name_, ": ", where, ".pattern must be {\"Regex\": \"...\"}: other patterns are not supported");
        const std::string behavior = part.value("behavior", json()).is_string() ? part.at("behavior") : json("");
        const bool is_inverted = boolean(part, where, "invert", false);
        const bool isolates = behavior == "Isolated";
        // With "invert" the text between the matches is removed.
        if (!isolates && !(behavior == "Removed" && is_inverted))
            unsupported(where + ".behavior", part.value("behavior", json()),
                        "\"Isolated\", or \"Removed\" with \"invert\": true");
        add_step(isolates ? PreTokenizerStep::Kind::isolate : PreTokenizerStep::Kind::keep_matches,
                 part.at("pattern").at("Regex"), join(name_, ": ", where, ".pattern"));
    }

    void decoder(const json& value, const std::string& path) {
        if (value.is_null()) return;
        const std::string type = type_of(value, path);
        if (type == "Sequence" && value.contains("decoders") && value.at("decoders").size() == 1)
            return decoder(value.at("decoders")[0], path + ".decoders[0]");
        if (type != "ByteLevel") unsupported(path + ".type", value.at("type"), "\"ByteLevel\", or no decoder");
    }

    // ---- The model ----

    // Converts a string of the file to the bytes that it stands for. Returns false if a letter stands for no byte.
    bool to_bytes(const std::string& text, std::string* bytes) const {
        bytes->clear();
        for (size_t i = 0; i < text.size();) {
            const auto length = static_cast<size_t>(utf8_length(text.data() + i, text.size() - i));
            const auto byte = bytes_of_letters_.find(text.substr(i, length));
            if (byte == bytes_of_letters_.end()) return false;
            *bytes += byte->second;
            i += length;
        }
        return true;
    }

    void model(const json& value) {
        const json type = value.value("type", json("BPE"));  // early files leave the type out
        if (type != "BPE") unsupported("model.type", type, "\"BPE\" over bytes (GPT-2, Llama-3, Qwen)");
        known_keys(value, "model",
                   {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                    "end_of_subword_suffix", "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
        if (!is_null(value, "dropout") && value.at("dropout") != 0)
            unsupported("model.dropout", value.at("dropout"), "null: dropout gives other tokens each time");
        for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix", "end_of_subword_suffix"})
            if (!is_null(value, key) && value.at(key) != "")
                unsupported(join("model.", key), value.at(key), "null, as in byte-level BPE");
        if (boolean(value, "model", "byte_fallback", false))
            unsupported("model.byte_fallback", value.at("byte_fallback"),
                        "false, as in byte-level BPE: this is a SentencePiece kind of file");
        description_.ignore_merges = boolean(value, "model", "ignore_merges", false);
        REQUIRE(value.at("vocab").is_object(), name_, ": model.vocab must be an object");
        for (const auto& entry : value.at("vocab").items()) {
            const json& id = entry.value();
            REQUIRE(id.is_number_integer() && id >= 0 && id < kMaxTokens, name_, ": model.vocab gives ",
                    shown(entry.key()), " the id ", shown(id), ", it must be an integer in [0, ", kMaxTokens - 1, "]");
            REQUIRE(ids_.insert(id.get<int32_t>()).second, name_, ": model.vocab gives the id ", shown(id),
                    " twice, the second time to ", shown(entry.key()), ": use the file as its maker wrote it");
            vocab_[entry.key()] = id.get<int32_t>();
            std::string bytes;
            // An entry that is not written in byte letters can only be found as an added token, and then stands for
            // itself.
            const bool is_text = to_bytes(entry.key(), &bytes);
            description_.vocab.emplace_back(is_text ? bytes : entry.key(), id.get<int32_t>());
        }
        for (size_t byte = 0; byte < letters_.size(); ++byte) {
            const auto entry = vocab_.find(letters_[byte]);
            REQUIRE(entry != vocab_.end(), name_, ": model.vocab has no token for byte ", byte, " (\"", letters_[byte],
                    "\"), so some texts would have no tokens: train it with the initial alphabet of ByteLevel");
            description_.byte_ids[byte] = entry->second;
        }
        merges(list(value, "model", "merges"));
    }

    void merges(const json& all) {
        for (size_t i = 0; i < all.size(); ++i) {
            const json& merge = all[i];
            std::string left, right;
            if (merge.is_string()) {
                const std::string text = merge;
                if (text.rfind("#version", 0) == 0) continue;  // the first line of GPT-2's merges.txt
                const size_t space = text.find(' ');
                if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
                    left = text.substr(0, space);
                    right = text.substr(space + 1);
                }
            } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
                left = merge[0];
                right = merge[1];
            }
            REQUIRE(!left.empty() && !right.empty(), name_, ": model.merges[", i, "] is ", shown(merge),
                    ", it must be two texts: \"a b\" or [\"a\", \"b\"]");
            const auto id_of = [&](const std::string& text) {
                const auto entry = vocab_.find(text);
                REQUIRE(entry != vocab_.end(), name_, ": model.merges[", i, "] is ", shown(merge), ", and ",
                        shown(text), " is not in model.vocab: use the file as its maker wrote it");
                return entry->second;
            };
            description_.merges.push_back({id_of(left), id_of(right), id_of(left + right)});
        }
    }

    void added_tokens(const json& all) {
        REQUIRE(all.is_array(), name_, ": added_tokens must be a list");
        std::set<std::string> contents;
        // HF assigns these ids itself and ignores the file's: the id in model.vocab, else the next free one. A file
        // with other ids would mean other tokens here than in HF.
        int64_t next = static_cast<int64_t>(vocab_.size());
        for (size_t i = 0; i < all.size(); ++i) {
            const std::string where = join("added_tokens[", i, "]");
            const json& entry = all[i];
            known_keys(entry, where, {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
            AddedToken token;
            REQUIRE(entry.contains("content") && entry.at("content").is_string() && entry.at("content") != "", name_,
                    ": ", where, ".content must be a text");
            token.content = entry.at("content");
            REQUIRE(contents.insert(token.content).second, name_, ": ", where, " is ", shown(entry.at("content")),
                    ", which is there already: remove one of them");
            const auto known = vocab_.find(token.content);
            const int64_t expected = known != vocab_.end() ? known->second : next;
            REQUIRE(entry.value("id", json()) == expected && expected < kMaxTokens, name_, ": ", where, " ",
                    shown(entry.at("content")), " has the id ", shown(entry.value("id", json())),
                    ", HF tokenizers would give it ", expected, ": set it to that");
            token.id = static_cast<int32_t>(expected);
            REQUIRE(ids_.insert(token.id).second || known != vocab_.end(), name_, ": ", where, " ",
                    shown(entry.at("content")), " has the id ", token.id,
                    ", which another token has: use a file whose model.vocab has no holes");
            next = std::max(next, expected + 1);
            token.single_word = boolean(entry, where, "single_word", false);
            token.lstrip = boolean(entry, where, "lstrip", false);
            token.rstrip = boolean(entry, where, "rstrip", false);
            token.normalized = boolean(entry, where, "normalized", false);
            token.special = boolean(entry, where, "special", false);
            description_.added.push_back(std::move(token));
        }
    }

    const std::string& name_;
    const std::array<std::string, 256> letters_ = byte_letters();
    std::map<std::string, char> bytes_of_letters_;
    std::unordered_map<std::string, int32_t> vocab_;  // with the strings as the file writes them
    std::set<int32_t> ids_;
    BpeDescription description_;
};

}  // namespace

std::unique_ptr<Tokenizer> parse_tokenizer(std::string source, const std::string& name) {
    return std::make_unique<ByteLevelBpe>(TokenizerReader(std::move(source), name).take());
}

}  // namespace ingot
