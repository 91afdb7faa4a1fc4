// What llama.cpp makes of a GGUF file, for tests/scripts/test_export_gguf.py, which compiles it:
//   llama_probe FILE tokenize     < text     the ids of the text, one a line; special tokens in it are found
//   llama_probe FILE logits       < ids      fp32 logits of each position, raw, after reading all ids at once
//   llama_probe FILE generate N   < text     the likeliest N tokens that follow, each read through the cache, as text
//   llama_probe FILE end                     the ids that begin and end a text, and whether the second ends generation
#include <llama.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

namespace {

std::vector<llama_token> tokenize(const llama_vocab* vocab, const std::string& text) {
    std::vector<llama_token> tokens(text.size() + 1);
    const int count = llama_tokenize(vocab, text.data(), static_cast<int>(text.size()), tokens.data(),
                                     static_cast<int>(tokens.size()), true, true);
    if (count < 0) std::exit(3);
    tokens.resize(static_cast<size_t>(count));
    return tokens;
}

void read_tokens(llama_context* context, std::vector<llama_token> tokens, bool all_logits) {
    llama_batch batch = llama_batch_get_one(tokens.data(), static_cast<int>(tokens.size()));
    std::vector<int8_t> wants(tokens.size(), 1);
    if (all_logits) batch.logits = wants.data();
    if (llama_decode(context, batch) != 0) std::exit(4);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) return 2;
    const std::string mode = argv[2];
    llama_log_set(
        [](ggml_log_level level, const char* text, void*) {
            if (level >= GGML_LOG_LEVEL_WARN) std::fputs(text, stderr);
        },
        nullptr);
    llama_model* const model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == nullptr) return 1;
    const llama_vocab* const vocab = llama_model_get_vocab(model);
    if (mode == "end") {
        const llama_token end = llama_vocab_eos(vocab);
        std::printf("%d %d %d\n", llama_vocab_bos(vocab), end, llama_vocab_is_eog(vocab, end) ? 1 : 0);
        return 0;
    }
    const std::string input{std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
    if (mode == "tokenize") {
        for (const llama_token token : tokenize(vocab, input)) std::printf("%d\n", token);
        return 0;
    }
    llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 512;
    parameters.n_threads = parameters.n_threads_batch = 1;
    parameters.type_k = parameters.type_v = GGML_TYPE_F32;
    parameters.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context* const context = llama_init_from_model(model, parameters);
    if (context == nullptr) return 1;
    const int size = llama_vocab_n_tokens(vocab);
    if (mode == "logits") {
        std::vector<llama_token> tokens;
        for (const char* next = input.c_str();;) {
            char* end = nullptr;
            const long id = std::strtol(next, &end, 10);
            if (end == next) break;
            tokens.push_back(static_cast<llama_token>(id));
            next = end;
        }
        read_tokens(context, tokens, true);
        for (int i = 0; i < static_cast<int>(tokens.size()); ++i)
            std::fwrite(llama_get_logits_ith(context, i), sizeof(float), static_cast<size_t>(size), stdout);
        return 0;
    }
    read_tokens(context, tokenize(vocab, input), false);
    for (int left = std::atoi(argv[3]); left > 0; --left) {
        const float* const logits = llama_get_logits_ith(context, -1);
        const auto token = static_cast<llama_token>(std::max_element(logits, logits + size) - logits);
        if (llama_vocab_is_eog(vocab, token)) break;
        char piece[256];
        const int length = llama_token_to_piece(vocab, token, piece, sizeof piece, 0, true);
        if (length < 0) return 5;
        std::fwrite(piece, 1, static_cast<size_t>(length), stdout);
        read_tokens(context, {token}, false);
    }
    return 0;
}
