// Byte-level BPE against tokens that HF tokenizers made (tests/fixtures/tokenizers.json, by
// tests/scripts/tokenizer_kinds.py), against brute force, and what is refused.
// Seen to catch: merges of equal rank taken from the right; a candidate whose right neighbour has changed;
// ignore_merges left out; no NFC; added tokens that are not normalized with the text; lstrip left out; single_word that
// looks at one side alone; ids of added tokens that are not compared.
#include "src/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "kernels/core/check.h"
#include "kernels/core/rng.h"
#include "src/tokenizer/unicode.h"

namespace ingot::test {
namespace {

using nlohmann::json;

const json& fixture() {
    static const json root = [] {
        std::ifstream stream(INGOT_SOURCE_DIR "/tests/fixtures/tokenizers.json");
        return json::parse(stream);
    }();
    return root;
}

json description(const std::string& kind) {
    return fixture().at("kinds").at(kind).at("tokenizer");
}

std::unique_ptr<Tokenizer> tokenizer(const std::string& kind) {
    return parse_tokenizer(description(kind).dump(), kind + ".json");
}

std::vector<std::string> texts() {
    std::vector<std::string> result = fixture().at("texts");
    for (const std::string hex : fixture().at("broken")) {
        result.emplace_back();
        for (size_t i = 0; i < hex.size(); i += 2)
            result.back() += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    }
    return result;
}

std::string decoded(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
    std::string text;
    for (const int32_t id : ids) text += tokenizer.bytes_of(id);
    return text;
}

TEST(Tokenizer, GivesTheTokensOfHfTokenizers) {
    for (const auto& kind : fixture().at("kinds").items()) {
        const std::unique_ptr<Tokenizer> ours = tokenizer(kind.key());
        const std::vector<std::string> all = texts();
        ASSERT_EQ(all.size(), kind.value().at("ids").size());
        for (const bool is_again : {false, true})  // now from the cache
            for (size_t i = 0; i < all.size(); ++i)
                EXPECT_EQ(ours->encode(all[i]), kind.value().at("ids")[i].get<std::vector<int32_t>>())
                    << kind.key() << ", text " << i << (is_again ? " again" : "");
    }
}

TEST(Tokenizer, TokensSpellTheText) {
    for (const char* kind : {"gpt2", "llama3"}) {
        const std::unique_ptr<Tokenizer> ours = tokenizer(kind);
        for (const std::string& text : texts())
            EXPECT_EQ(decoded(*ours, ours->encode(text)), replace_invalid_utf8(text)) << kind;
    }
    const std::unique_ptr<Tokenizer> qwen = tokenizer("qwen");
    for (const std::string& text : texts())
        EXPECT_EQ(decoded(*qwen, qwen->encode(text)), to_nfc(replace_invalid_utf8(text)));
    EXPECT_EQ(qwen->bytes_of(-1), "");
    EXPECT_EQ(qwen->bytes_of(static_cast<int32_t>(qwen->vocab_size())), "");
    const int32_t eot = qwen->encode("<|endoftext|>")[0];
    EXPECT_EQ(qwen->bytes_of(eot), "<|endoftext|>");
    EXPECT_TRUE(qwen->is_special(eot));
    EXPECT_FALSE(qwen->is_special(qwen->encode("<think>")[0]));
    EXPECT_FALSE(qwen->is_special(-1));
    EXPECT_EQ(parse_tokenizer(qwen->source(), "again")->encode("again"), qwen->encode("again"));
}

// The definition: the pair of the lowest rank anywhere in the word, the leftmost of them, again and again.
std::vector<std::string> brute_force(std::vector<std::string> word, const std::map<std::string, size_t>& ranks) {
    for (;;) {
        size_t best = ranks.size(), at = 0;
        for (size_t i = 0; i + 1 < word.size(); ++i) {
            const auto rank = ranks.find(word[i] + " " + word[i + 1]);
            if (rank == ranks.end() || rank->second >= best) continue;
            best = rank->second;
            at = i;
        }
        if (best == ranks.size()) return word;
        word[at] += word[at + 1];
        word.erase(word.begin() + static_cast<ptrdiff_t>(at) + 1);
    }
}

TEST(Tokenizer, MergesAsTheDefinitionSays) {
    // Merges of two letters in every way, so that each one takes something from another.
    json file = description("gpt2");
    json& model = file["model"];
    model["merges"] = json::array();
    std::map<std::string, size_t> ranks;
    std::vector<std::string> parts = {"a", "b"};
    for (uint64_t draw = 0; ranks.size() < 60; ++draw) {
        const std::string left = parts[random_bits(1, 2, 2 * draw) % parts.size()];
        const std::string right = parts[random_bits(1, 2, 2 * draw + 1) % parts.size()];
        if (left.size() + right.size() > 7 || !ranks.emplace(left + " " + right, ranks.size()).second) continue;
        // The two forms of a merge, and the line that GPT-2's list begins with.
        if (ranks.size() == 1) model["merges"].push_back("#version: 0.2");
        if (ranks.size() % 2 == 0)
            model["merges"].push_back({left, right});
        else
            model["merges"].push_back(left + " " + right);
        parts.push_back(left + right);
        if (!model["vocab"].contains(parts.back())) model["vocab"][parts.back()] = 1000 + ranks.size();
    }
    file["added_tokens"] = json::array();
    const std::unique_ptr<Tokenizer> ours = parse_tokenizer(file.dump(), "merges.json");
    for (uint64_t trial = 0; trial < 2000; ++trial) {
        std::vector<std::string> letters;
        std::string text;
        // Some beyond what the cache takes.
        for (uint64_t i = 0; i < 1 + trial % 40 + (trial % 50 == 0 ? 60 : 0); ++i) {
            letters.emplace_back(1, random_bits(3, trial, i) % 2 == 0 ? 'a' : 'b');
            text += letters.back();
        }
        std::vector<std::string> spelt;
        for (const int32_t id : ours->encode(text)) spelt.emplace_back(ours->bytes_of(id));
        ASSERT_EQ(spelt, brute_force(letters, ranks)) << text;
    }
}

TEST(Tokenizer, Bytes) {
    const std::unique_ptr<Tokenizer> bytes = open_tokenizer("bytes");
    const std::string text("\x00\xff\x80z", 4);
    EXPECT_EQ(bytes->encode(text), (std::vector<int32_t>{0, 255, 128, 'z'}));
    EXPECT_EQ(decoded(*bytes, {0, 255, 128, 'z', 256, -1}), text);
    EXPECT_EQ(bytes->vocab_size(), 256);
    EXPECT_EQ(bytes->source(), "");
}

// ---- What is refused: how the file is changed, and what the line must say ----

struct Refusal {
    const char* what;
    std::function<void(json&)> change;
    std::vector<std::string> says;
};

const std::vector<Refusal> kRefusals = {
    {"model type", [](json& f) { f["model"]["type"] = "WordPiece"; }, {"model.type is \"WordPiece\"", "BPE"}},
    {"Unigram",
     [](json& f) {
         f["model"] = {{"type", "Unigram"}, {"vocab", json::array()}};
     },
     {"Unigram"}},
    {"dropout", [](json& f) { f["model"]["dropout"] = 0.1; }, {"model.dropout is 0.1", "null"}},
    {"prefix", [](json& f) { f["model"]["continuing_subword_prefix"] = "##"; }, {"continuing_subword_prefix", "null"}},
    {"suffix", [](json& f) { f["model"]["end_of_word_suffix"] = "</w>"; }, {"end_of_word_suffix", "null"}},
    {"byte_fallback", [](json& f) { f["model"]["byte_fallback"] = true; }, {"byte_fallback is true", "false"}},
    {"unknown key of the model", [](json& f) { f["model"]["alpha"] = 1; }, {"unknown key model.alpha", "use"}},
    {"unknown key", [](json& f) { f["extra"] = 1; }, {"unknown key extra", "use"}},
    {"normalizer",
     [](json& f) {
         f["normalizer"] = {{"type", "Lowercase"}};
     },
     {"normalizer.type", "\"NFC\""}},
    {"normalizer in a sequence",
     [](json& f) {
         f["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}, {{"type", "Strip"}}}}};
     },
     {"normalizer[1].type is \"Strip\"", "\"NFC\""}},
    {"no pre-tokenizer", [](json& f) { f["pre_tokenizer"] = nullptr; }, {"pre_tokenizer is null", "ByteLevel"}},
    {"Whitespace",
     [](json& f) {
         f["pre_tokenizer"] = {{"type", "Whitespace"}};
     },
     {"Whitespace", "ByteLevel"}},
    {"no ByteLevel", [](json& f) { f["pre_tokenizer"]["pretokenizers"].erase(1); }, {"pretokenizers[0]", "last"}},
    {"empty sequence", [](json& f) { f["pre_tokenizer"]["pretokenizers"] = json::array(); }, {"is empty", "last"}},
    {"pattern as a string",
     [](json& f) {
         f["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"String", " "}};
     },
     {"pretokenizers[0].pattern", "Regex"}},
    {"pattern that is not known",
     [](json& f) { f["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(?<=a)b"; },
     {"pretokenizers[0].pattern", "group", "(?<=a)b"}},
    {"behavior",
     [](json& f) { f["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; },
     {"behavior is \"Removed\"", "Isolated"}},
    {"unknown key of a split", [](json& f) { f["pre_tokenizer"]["pretokenizers"][0]["x"] = 1; }, {"unknown key", ".x"}},
    {"decoder",
     [](json& f) {
         f["decoder"] = {{"type", "Metaspace"}};
     },
     {"decoder.type is \"Metaspace\"", "ByteLevel"}},
    {"a byte without a token", [](json& f) { f["model"]["vocab"].erase("a"); }, {"no token for byte 97", "alphabet"}},
    {"an id twice", [](json& f) { f["model"]["vocab"]["a"] = f["model"]["vocab"]["b"]; }, {"twice"}},
    {"an id that is none", [](json& f) { f["model"]["vocab"]["a"] = -1; }, {"the id -1", "must be an integer"}},
    {"a merge of unknown parts",
     [](json& f) {
         f["model"]["merges"].push_back({"q", "zz"});
     },
     {"not in model.vocab"}},
    {"a merge of three", [](json& f) { f["model"]["merges"].push_back("a b c"); }, {"it must be two texts"}},
    {"no merges", [](json& f) { f["model"].erase("merges"); }, {"model.merges must be a list"}},
    {"an added token's id", [](json& f) { f["added_tokens"][1]["id"] = 5000; }, {"has the id 5000", "set it to"}},
    {"an added token twice",
     [](json& f) { f["added_tokens"].push_back(f["added_tokens"][0]); },
     {"is there already", "remove"}},
    {"an added token without a text",
     [](json& f) { f["added_tokens"][1]["content"] = ""; },
     {"content must be a text"}},
    {"a flag that is none", [](json& f) { f["added_tokens"][1]["lstrip"] = 1; }, {"lstrip is 1", "true or false"}},
    {"no model", [](json& f) { f.erase("model"); }, {"has no \"model\" with a \"vocab\"", "must be"}},
};

TEST(Tokenizer, RefusesWhatItDoesNotSupport) {
    for (const Refusal& refusal : kRefusals) {
        json file = description("llama3");
        refusal.change(file);
        std::string error = "accepted";
        try {
            parse_tokenizer(file.dump(), "some.json");
        } catch (const UserError& fault) {
            error = fault.what();
        }
        EXPECT_EQ(error.rfind("some.json", 0), 0u) << refusal.what << ": " << error;
        for (const std::string& part : refusal.says)
            EXPECT_NE(error.find(part), std::string::npos) << refusal.what << ": " << error;
        EXPECT_LT(error.size(), 450u) << refusal.what;
    }
    for (const char* text : {"", "[]", "{", "3", "\"text\"", "\xff", "{\"model\": 3}", "{\"model\": {}}"})
        EXPECT_THROW(parse_tokenizer(text, "some.json"), UserError) << text;
}

TEST(Tokenizer, AcceptsWhatChangesNothing) {
    json file = description("llama3");
    const std::vector<int32_t> tokens = tokenizer("llama3")->encode("The quick fox");
    file["model"].erase("type");
    file["model"]["unk_token"] = "<|endoftext|>";  // every byte has a token
    file["model"]["continuing_subword_prefix"] = "";
    file["model"]["dropout"] = 0.0;
    file["normalizer"] = {{"type", "Sequence"}, {"normalizers", json::array()}};
    file["decoder"] = nullptr;
    file["truncation"] = {{"direction", "Right"}, {"max_length", 1}, {"strategy", "LongestFirst"}, {"stride", 0}};
    file["padding"] = {{"strategy", {{"Fixed", 64}}}, {"pad_id", 0}, {"pad_token", "<|endoftext|>"}};
    EXPECT_EQ(parse_tokenizer(file.dump(), "some.json")->encode("The quick fox"), tokens);
}

}  // namespace
}  // namespace ingot::test
