// Text from the model, token by token.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/config/config.h"
#include "src/model/batch.h"
#include "src/model/model.h"
#include "src/tokenizer/tokenizer.h"

namespace ingot {

// How tokens are drawn. top_k restricts the choice first, then top_p restricts what is left.
struct Sampling {
    double temperature = 0.8;  // logits are divided by it; 0: the likeliest token
    int64_t top_k = 50;        // the K likeliest tokens; 0: all
    double top_p = 0.95;       // the fewest likeliest tokens that have this probability together; 1: all
};

// Draws a token from logits (V) with a uniform number in [0, 1). Equal logits rank by token number. Returns -1 if a
// logit is not finite. A pure function: no state, the same bits everywhere.
int32_t draw_token(const std::vector<double>& logits, const Sampling& sampling, double uniform);

// Reads a text once and goes on one token at a time, with the keys and values of what was read in a cache. Device
// memory is planned by the constructor; what follows allocates none.
//
// When the cache is full, the last half of the text in it is read again as the start of a document, and what was before
// is forgotten.
class Generator {
  public:
    // `capacity`: tokens that the cache holds; at most the model's context. The model must be planned for prefill()
    // tokens of what start() gets. `model` and `buffers` must outlive this.
    Generator(Model& model, BatchBuffers& buffers, int64_t capacity, MemoryPlan* plan);

    // Returns the most tokens that the model reads at once: a prompt, then `num_tokens` more, in a cache of `capacity`.
    static int64_t prefill(int64_t num_prompt, int64_t num_tokens, int64_t capacity);

    // Begins a text; at least one token. Of a text longer than the cache the last half of a cache is read.
    void start(const std::vector<int32_t>& tokens);
    // The next token: number `index` of the text's draws. -1 if the logits are not finite. Does not read it.
    int32_t next(const Sampling& sampling, uint64_t seed, uint64_t stream, uint64_t index);
    // Reads one more token.
    void append(int32_t token);

    const std::vector<double>& logits() const { return host_logits_; }  // (V), after what was read last
    const ModelConfig& config() const { return model_.config(); }

  private:
    void read(size_t begin);  // tokens_[begin ...)

    Model& model_;
    BatchBuffers& buffers_;
    KvCache cache_;
    Tensor logits_;                // (1, VP)
    std::vector<int32_t> tokens_;  // what is in the cache
    std::vector<double> host_logits_;
    std::vector<uint8_t> staging_;
};

struct SampleOptions {
    int64_t num_tokens = 64;
    Sampling sampling = {.temperature = 0.8, .top_k = 0, .top_p = 1};
    uint64_t seed = 0;
    int32_t eot_token = -1;  // ends the text; -1: none
};

// Returns the tokens that the model reads first. An empty prompt begins a document with EOT. Throws UserError if it is
// empty and the run has no EOT.
std::vector<int32_t> prompt_tokens(Tokenizer& tokenizer, const std::string& prompt, const DataConfig& data);

// Continues `prompt` and returns the continuation alone: the samples of a training run. Ends early if the logits are
// not finite. `prompt` is prompt_tokens() of `name`, which the draws are numbered by.
std::string sample_text(Generator& generator, const Tokenizer& tokenizer, const std::vector<int32_t>& prompt,
                        const std::string& name, const SampleOptions& options);

// Throws UserError if the tokenizer has ids that the model has not, or if a sample of the config does not fit the
// context.
void check_tokenizer(Tokenizer& tokenizer, const Config& config);

}  // namespace ingot
