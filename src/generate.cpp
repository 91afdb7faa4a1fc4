#include "src/generate.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "kernels/core/rng.h"

namespace ingot {

namespace {

// One document of n tokens, nothing to predict.
HostBatch text_batch(const std::vector<int32_t>& tokens) {
    const size_t n = tokens.size();
    HostBatch batch;
    batch.tokens = tokens;
    batch.targets.assign(n, -1);
    for (std::vector<int32_t>* values :
         {&batch.positions, &batch.first_key, &batch.end_key, &batch.first_query, &batch.end_query})
        values->resize(n);
    for (size_t i = 0; i < n; ++i) batch.positions[i] = static_cast<int32_t>(i);
    const auto view = [n](std::vector<int32_t>& values) {
        return Tensor::contiguous(values.data(), DType::i32, {static_cast<int64_t>(n)});
    };
    fill_document_mask({view(batch.first_key), view(batch.end_key), view(batch.first_query), view(batch.end_query)},
                       {0}, true);
    return batch;
}

// Draws from softmax(logits / temperature) with a uniform number in [0, 1).
int32_t draw(const float* logits, int64_t vocab_size, double temperature, double uniform) {
    const int64_t likeliest = std::max_element(logits, logits + vocab_size) - logits;
    if (temperature <= 0) return static_cast<int32_t>(likeliest);
    std::vector<double> weights(static_cast<size_t>(vocab_size));
    double total = 0;
    for (int64_t v = 0; v < vocab_size; ++v)
        total += weights[static_cast<size_t>(v)] =
            std::exp((static_cast<double>(logits[v]) - static_cast<double>(logits[likeliest])) / temperature);
    double rest = uniform * total;
    for (int64_t v = 0; v < vocab_size; ++v)
        if ((rest -= weights[static_cast<size_t>(v)]) < 0) return static_cast<int32_t>(v);
    return static_cast<int32_t>(likeliest);  // rounding left a remainder
}

}  // namespace

std::string sample_text(Model& model, const BatchBuffers& buffers, const Tensor& logits, const std::string& prompt,
                        const SampleOptions& options) {
    CHECK(!prompt.empty() && static_cast<int64_t>(prompt.size()) + options.num_tokens <= model.max_tokens(),
          "a sample of ", prompt.size(), " + ", options.num_tokens, " tokens, planned for ", model.max_tokens());
    std::vector<int32_t> tokens;
    for (const char c : prompt) tokens.push_back(static_cast<uint8_t>(c));
    std::vector<float> host(static_cast<size_t>(logits.numel()));
    std::string text;
    for (int64_t i = 0; i < options.num_tokens; ++i) {
        const MicroBatch batch = buffers.upload(model.device(), text_batch(tokens));
        model.logits(batch, {static_cast<int64_t>(tokens.size()) - 1}, logits);
        model.device().copy(Tensor::contiguous(host.data(), DType::f32, {logits.numel()}),
                            logits.view({logits.numel()}));
        const double uniform = random_bits(options.seed, stream_of(prompt.c_str()), static_cast<uint64_t>(i)) * 0x1p-32;
        const int32_t token = draw(host.data(), model.config().vocab_size, options.temperature, uniform);
        if (token == options.eot_token || token > 255) break;
        tokens.push_back(token);
        text.push_back(static_cast<char>(static_cast<uint8_t>(token)));
    }
    return text;
}

int generate(const GenerateOptions&) {
    throw UserError("./train generate is not there yet");
}

}  // namespace ingot
