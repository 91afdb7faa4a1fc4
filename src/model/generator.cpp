#include "src/model/generator.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/core/rng.h"

namespace ingot {

namespace {

// Fills a batch with one document, tokens[0 .. n), whose first token has the position `position`, and with no targets.
void fill_text(const int32_t* tokens, size_t n, int64_t position, HostBatch* batch) {
    batch->resize(static_cast<int64_t>(n));
    std::copy_n(tokens, n, batch->tokens.begin());
    std::fill(batch->targets.begin(), batch->targets.end(), -1);
    std::iota(batch->positions.begin(), batch->positions.end(), static_cast<int32_t>(position));
    fill_document_mask(batch->mask(), {0}, true);
}

}  // namespace

// ---- Drawing ----

int32_t draw_token(const std::vector<double>& logits, const Sampling& sampling, double uniform) {
    for (const double logit : logits)
        if (!std::isfinite(logit)) return -1;
    const int32_t likeliest =
        static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());  // the first of them
    if (sampling.temperature == 0) return likeliest;
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    const auto is_likelier = [&](int32_t a, int32_t b) {
        const double x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
        return x != y ? x > y : a < b;
    };
    const size_t count =
        sampling.top_k > 0 ? std::min(static_cast<size_t>(sampling.top_k), order.size()) : order.size();
    if (count < order.size() || sampling.top_p < 1)
        std::partial_sort(order.begin(), order.begin() + static_cast<ptrdiff_t>(count), order.end(), is_likelier);
    order.resize(count);
    // sums[i]: the weight of the first i + 1 tokens, relative to that of the likeliest.
    std::vector<double> sums(count);
    double total = 0;
    for (size_t i = 0; i < count; ++i) {
        const double below = logits[static_cast<size_t>(order[i])] - logits[static_cast<size_t>(likeliest)];
        sums[i] = total += std::exp(below / sampling.temperature);
    }
    if (sampling.top_p < 1) {
        const auto end = std::lower_bound(sums.begin(), sums.end(), sampling.top_p * total);
        sums.resize(static_cast<size_t>(std::min(end, sums.end() - 1) - sums.begin()) + 1);
    }
    // The first token whose sum is above the point, so none without weight. The point lies below the last sum: uniform
    // is at most 1 - 2^-32, far more than rounding takes away.
    const auto drawn = std::upper_bound(sums.begin(), sums.end(), uniform * sums.back());
    return order[static_cast<size_t>(std::min(drawn, sums.end() - 1) - sums.begin())];
}

// ---- The generator ----

Generator::Generator(Model& model, BatchBuffers& buffers, int64_t capacity, MemoryPlan* plan)
    : model_(model), buffers_(buffers), cache_(model.config(), model.dtype(), capacity, plan) {
    CHECK(capacity <= model.config().context_length, "a cache for ", capacity, " tokens, the model's context is ",
          model.config().context_length);
    plan->add("sample_logits", model.dtype(), {1, model.config().padded_vocab_size()}, &logits_);
    tokens_.reserve(static_cast<size_t>(capacity));
    host_logits_.resize(static_cast<size_t>(model.config().vocab_size));
    staging_.resize(static_cast<size_t>(logits_.bytes()));
}

int64_t Generator::prefill(int64_t num_prompt, int64_t num_tokens, int64_t capacity) {
    const int64_t half = std::max<int64_t>(1, capacity / 2);
    if (num_prompt > capacity) return half;
    return num_prompt + num_tokens <= capacity ? num_prompt : std::max(num_prompt, half);
}

void Generator::start(const std::vector<int32_t>& tokens) {
    CHECK(!tokens.empty(), "a text begins with a token");
    const size_t capacity = static_cast<size_t>(cache_.capacity()), half = std::max<size_t>(1, capacity / 2);
    const size_t kept = tokens.size() > capacity ? half : tokens.size();
    tokens_.assign(tokens.end() - static_cast<ptrdiff_t>(kept), tokens.end());
    cache_.clear();
    read(0);
}

void Generator::append(int32_t token) {
    if (cache_.is_full()) {
        const size_t half = std::max<size_t>(1, tokens_.size() / 2);
        tokens_.push_back(token);
        tokens_.erase(tokens_.begin(), tokens_.end() - static_cast<ptrdiff_t>(half));
        cache_.clear();
        read(0);
        return;
    }
    tokens_.push_back(token);
    read(tokens_.size() - 1);
}

void Generator::read(size_t begin) {
    fill_text(tokens_.data() + begin, tokens_.size() - begin, static_cast<int64_t>(begin), buffers_.next());
    model_.extend(buffers_.upload(), &cache_, logits_);
    const Tensor staged = Tensor::contiguous(staging_.data(), logits_.dtype, {logits_.numel()});
    model_.device().copy(staged, logits_.view({logits_.numel()}));
    switch (staged.dtype) {
        case DType::bf16:
            std::transform(staged.get<bf16>(), staged.get<bf16>() + host_logits_.size(), host_logits_.begin(),
                           [](bf16 logit) { return to_float(logit); });
            break;
        case DType::f16:
            std::transform(staged.get<f16>(), staged.get<f16>() + host_logits_.size(), host_logits_.begin(),
                           [](f16 logit) { return to_float(logit); });
            break;
        default:
            for_cpu_scalar(staged.dtype, "generate", [&](auto scalar) {
                std::copy_n(staged.get<decltype(scalar)>(), host_logits_.size(), host_logits_.begin());
            });
    }
}

int32_t Generator::next(const Sampling& sampling, uint64_t seed, uint64_t stream, uint64_t index) {
    return draw_token(host_logits_, sampling, random_bits(seed, stream, index) * 0x1p-32);
}

std::vector<int32_t> prompt_tokens(Tokenizer& tokenizer, const std::string& prompt, const DataConfig& data) {
    if (!prompt.empty()) return tokenizer.encode(prompt);
    REQUIRE(data.eot_token, "the prompt is empty, and this run has no data.eot_token that could begin a document: ",
            "give some text, e.g. \"The \"");
    return {static_cast<int32_t>(*data.eot_token)};
}

std::string sample_text(Generator& generator, const Tokenizer& tokenizer, const std::vector<int32_t>& prompt,
                        const std::string& name, const SampleOptions& options) {
    generator.start(prompt);
    std::string text;
    for (int64_t i = 0; i < options.num_tokens; ++i) {
        const int32_t token =
            generator.next(options.sampling, options.seed, stream_of(name.c_str()), static_cast<uint64_t>(i));
        if (token < 0 || token == options.eot_token) break;
        text += tokenizer.bytes_of(token);
        if (i + 1 < options.num_tokens) generator.append(token);
    }
    return text;
}

void check_tokenizer(Tokenizer& tokenizer, const Config& config) {
    const int64_t context = config.model.context_length;
    REQUIRE(tokenizer.vocab_size() <= config.model.vocab_size, "model.vocab_size is ", config.model.vocab_size,
            ", but data.tokenizer ", config.data.tokenizer, " has ", tokenizer.vocab_size(),
            " tokens: use at least that");
    if (config.sample.every == 0) return;
    for (const std::string& prompt : config.sample.prompts) {
        const auto num_prompt = static_cast<int64_t>(prompt_tokens(tokenizer, prompt, config.data).size());
        REQUIRE(num_prompt + config.sample.tokens <= context, "a sample of ", num_prompt, " prompt tokens and ",
                config.sample.tokens, " more does not fit model.context_length ", context,
                num_prompt < context ? join(": use sample.tokens of at most ", context - num_prompt)
                                     : std::string(": use a shorter prompt"));
    }
}

}  // namespace ingot
