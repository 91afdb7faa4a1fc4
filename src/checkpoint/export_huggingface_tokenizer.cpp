#include "src/checkpoint/export_huggingface_tokenizer.h"

#include <nlohmann/json.hpp>

#include "kernels/core/check.h"
#include "src/base/json_text.h"
#include "src/tokenizer/byte_level_bpe.h"
#include "src/tokenizer/tokenizer.h"

namespace ingot {

using nlohmann::json;
using nlohmann::ordered_json;

namespace {

constexpr const char* kEotText = "<|endoftext|>";

// Returns whether transformers would add tokens at the start or end of a text.
bool adds_tokens(const json& post_processor) {
    if (!post_processor.is_object()) return false;
    const json& type = post_processor.value("type", json());
    if (type == "Sequence") {
        for (const json& part : post_processor.value("processors", json::array()))
            if (adds_tokens(part)) return true;
        return false;
    }
    return type != "ByteLevel";
}

ordered_json added_token(int64_t id) {
    return {{"id", id},        {"content", kEotText}, {"single_word", false}, {"lstrip", false},
            {"rstrip", false}, {"normalized", false}, {"special", true}};
}

}  // namespace

std::string byte_tokenizer_json(int64_t eot_token) {
    ordered_json vocab = ordered_json::object();
    int64_t id = 0;
    for (const std::string& letter : byte_letters()) vocab[letter] = id++;
    ordered_json added = ordered_json::array();
    if (eot_token >= kByteTokens) {
        vocab[kEotText] = eot_token;
        added.push_back(added_token(eot_token));
    }
    const ordered_json byte_level = {
        {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
    ordered_json root;
    root["version"] = "1.0";
    root["truncation"] = nullptr;
    root["padding"] = nullptr;
    root["added_tokens"] = added;
    root["normalizer"] = nullptr;
    root["pre_tokenizer"] = byte_level;
    root["post_processor"] = nullptr;
    root["decoder"] = byte_level;
    root["model"] = {{"type", "BPE"},
                     {"dropout", nullptr},
                     {"unk_token", nullptr},
                     {"continuing_subword_prefix", nullptr},
                     {"end_of_word_suffix", nullptr},
                     {"fuse_unk", false},
                     {"byte_fallback", false},
                     {"ignore_merges", false},
                     {"vocab", vocab},
                     {"merges", ordered_json::array()}};
    return root.dump(2) + "\n";
}

HuggingFaceTokenizer huggingface_tokenizer(const Checkpoint& checkpoint) {
    HuggingFaceTokenizer result;
    const Config& config = checkpoint.manifest.config;
    const std::unique_ptr<Tokenizer> tokenizer = checkpoint_tokenizer(checkpoint);
    if (tokenizer == nullptr) {
        result.notes.push_back("the run has no tokenizer (data.tokenizer), so the folder has none: it takes token ids");
        return result;
    }
    const int64_t eot = config.data.eot_token.value_or(-1);
    const bool is_bytes = tokenizer->source().empty();
    std::string eot_text;
    ordered_json tokenizer_config;
    tokenizer_config["tokenizer_class"] = "PreTrainedTokenizerFast";
    tokenizer_config["model_max_length"] = config.model.context_length;
    tokenizer_config["model_input_names"] = {"input_ids", "attention_mask"};
    tokenizer_config["clean_up_tokenization_spaces"] = false;  // it would change the text that the model has written
    if (is_bytes) {
        result.files.push_back({"tokenizer.json", byte_tokenizer_json(eot)});
        if (eot >= kByteTokens) eot_text = kEotText;
        // In a text the letters of a special token are ordinary bytes, as they were in training.
        tokenizer_config["split_special_tokens"] = true;
    } else {
        result.files.push_back({"tokenizer.json", tokenizer->source()});
        if (eot >= 0 && tokenizer->is_special(static_cast<int32_t>(eot)))
            eot_text = tokenizer->bytes_of(static_cast<int32_t>(eot));
        constexpr JsonLimits kLimits = {.max_bytes = kMaxTokenizerBytes, .advice = "it is not as it was read before"};
        const json root = parse_json(tokenizer->source(), "tokenizer.json", kLimits);
        if (adds_tokens(root.value("post_processor", json())))
            result.notes.push_back(
                "the post_processor of tokenizer.json adds tokens to every text that transformers encodes, which "
                "prepare.py does not: encode with add_special_tokens=False to get what the model was trained on");
    }
    if (!eot_text.empty()) {
        const ordered_json special = {{"bos_token", eot_text}, {"eos_token", eot_text}};
        tokenizer_config.update(special);
        result.files.push_back({"special_tokens_map.json", special.dump(2) + "\n"});
    } else if (eot >= 0) {
        result.notes.push_back(join("data.eot_token ", eot,
                                    " is no special token of the tokenizer: generate() ends at it all the same, but "
                                    "the tokenizer has no eos_token"));
    }
    result.files.push_back({"tokenizer_config.json", tokenizer_config.dump(2) + "\n"});
    return result;
}

}  // namespace ingot
