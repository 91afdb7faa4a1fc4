// The GPT: pre-norm decoder, forward and backward written out op by op.
//
//   x = embedding[token]
//   per layer:  x += Wo attention(norm(x));   x += Wdown (silu(gate) * up),  [gate | up] = Wgu norm(x)
//   logits = Whead norm(x)
//
// Shapes: N = B * T tokens of a micro-batch as one packed row, C width, F hidden, V / VP vocabulary and padded
// vocabulary, L layers, NH / NKV query and key/value heads, HS head size.
#pragma once

#include <memory>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/core/device.h"
#include "kernels/core/step.h"
#include "src/config/config.h"
#include "src/model/parameters.h"

namespace ingot {

// One packed row of n <= N tokens, on the device.
struct MicroBatch {
    Tensor tokens, targets;  // (n) int32; target -1 = ignored
    Tensor positions;        // (n) int32, within the document
    AttentionMask mask;      // (n) int32 each
};

// What is kept of the forward pass for backward.
struct LayerActivations {
    Tensor attention_norm, attention_rstd;  // (N, C), (N)
    Tensor qkv;                             // (N, (NH + 2 NKV) HS); q and k rotated, unless QK-norm is on
    Tensor qk, qk_rstd;                     // QK-norm only: (N, (NH + NKV) HS) normed and rotated, (N, NH + NKV)
    Tensor attention, lse;                  // (N, NH HS), (NH, N)
    Tensor residual_mid;                    // (N, C): x after attention
    Tensor mlp_norm, mlp_rstd;              // (N, C), (N)
    Tensor gate_up, swiglu;                 // (N, 2F), (N, F)
};

// Keys (rotated and normed as attention reads them) and values of the tokens of one document that were read so far.
class KvCache {
  public:
    // Plans memory for a document of up to `capacity` tokens.
    KvCache(const ModelConfig& config, DType dtype, int64_t capacity, MemoryPlan* plan);
    KvCache(const KvCache&) = delete;  // the plan knows where the tensors are
    KvCache& operator=(const KvCache&) = delete;

    int64_t capacity() const { return k_.shape[1]; }
    int64_t length() const { return length_; }
    bool is_full() const { return length_ == capacity(); }
    void clear() { length_ = 0; }

  private:
    friend class Model;
    int64_t length_ = 0;
    Tensor k_, v_;  // (L, capacity, NKV, HS)
};

// How many tokens' logits exist at a time, in a micro-batch of up to max_tokens.
int64_t logits_chunk(const Device& device, const ModelConfig& config, DType dtype, int64_t max_tokens);

class Model {
  public:
    // Plans all memory of weights, gradients and activations for micro-batches of up to `max_tokens` tokens. dtype is
    // the compute type: fp32 on the CPU, fp64 for the oracle. `plan` is the caller's: others add to it before it is
    // allocated. max_positions bounds the positions within a document (the RoPE table's rows).
    Model(const Device& device, const ModelConfig& config, DType dtype, int64_t max_tokens, int64_t max_positions,
          Recompute recompute, double z_loss, bool is_training, MemoryPlan* plan,
          const AttentionOptions& attention = {});
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    // After the plan was allocated: tables, slopes; then weights from the seed.
    void initialize_constants();
    void initialize_weights(uint64_t seed);
    // After the weights were written from outside: rounds the copy that is computed with.
    void refresh_compute_weights();

    // For benchmarks alone, on CUDA: from now on every token sees itself only (kernels/attention/left_out.h), without
    // QK-norm and positions, so that what is left of a step can be timed. config() says so.
    void leave_out_attention();

    // Adds the micro-batch's losses and target count to step->sums, and keeps what backward needs; the head's gradient
    // is already taken here, chunk by chunk, so that logits never exist for more than a chunk. `accumulate`: whether
    // the gradients are added to, or overwritten, as for a step's first micro-batch.
    void forward(const MicroBatch& batch, StepBlock* step, bool accumulate = true);
    // Gradients of S * (sum of token losses). Follows forward() of the same batch and `accumulate`, once: it overwrites
    // activations with their gradients.
    void backward(const MicroBatch& batch, bool accumulate = true);
    // Losses alone: adds to step->sums, leaves per-token losses in losses().
    void evaluate(const MicroBatch& batch, StepBlock* step);
    // Logits of the given tokens of the batch, into `logits` (rows.size(), VP) on the device; for sampling and tests.
    void logits(const MicroBatch& batch, const std::vector<int64_t>& rows, const Tensor& logits);

    // Reads the tokens of `batch`, which go on the document in `cache`, and keeps their keys and values there: the
    // first n tokens of a document if the cache is empty, one token after that. Positions count from the document's
    // start. Writes the last token's logits into `logits` (1, VP) on the device.
    void extend(const MicroBatch& batch, KvCache* cache, const Tensor& logits);

    // FLOPs of forward and backward of so many tokens: 6 for each parameter of a product and token; in attention two
    // products of 2 HS each for a visible pair and head, forward once and backward twice.
    double flops(double tokens, double visible_pairs) const {
        const double heads = static_cast<double>(config_.n_layers * config_.n_heads * config_.head_dim);
        return 6.0 * static_cast<double>(table_.num_matmul_parameters()) * tokens + 12.0 * heads * visible_pairs;
    }
    const ModelConfig& config() const { return config_; }
    const ParameterTable& table() const { return table_; }
    const Device& device() const { return device_; }
    const Tensor& weights() const { return weights_; }  // flat, fp32 (fp64)
    // What products and norms read: a copy of the weights in the compute type, or the weights themselves.
    const Tensor& compute_weights() const { return compute_weights_ ? compute_weights_ : weights_; }
    const Tensor& gradients() const { return gradients_; }  // flat, the same layout
    const Tensor& losses() const { return losses_; }        // (N) of the last forward() or evaluate()
    DType dtype() const { return dtype_; }
    int64_t max_tokens() const { return max_tokens_; }

  private:
    enum class HeadMode { train, evaluate };
    // Embedding and all layers, then the final norm into final_norm_.
    void forward_trunk(const MicroBatch& batch, int64_t n, const KvCache* cache = nullptr);
    void layer_forward(const MicroBatch& batch, int64_t n, int64_t layer, bool is_recompute,
                       const KvCache* cache = nullptr);
    void layer_backward(const MicroBatch& batch, int64_t n, int64_t layer, bool accumulate);
    void head(const MicroBatch& batch, int64_t n, StepBlock* step, HeadMode mode, bool accumulate);
    // The query, key and value views that attention reads: slices of qkv, or of qk with QK-norm.
    struct Heads {
        Tensor q, k, v;
    };
    // Attention of the batch within itself, or, with a cache, after adding its keys and values there.
    void attend(const MicroBatch& batch, const Heads& heads, const LayerActivations& acts, int64_t layer,
                const KvCache* cache);
    Heads attention_heads(const LayerActivations& acts, int64_t n) const;
    LayerActivations activations(int64_t layer, int64_t n) const;
    Tensor head_weight(const Tensor& flat) const;

    Device device_;
    ModelConfig config_;
    ParameterTable table_;
    DType dtype_, stats_;
    int64_t max_tokens_;
    Recompute recompute_;
    double z_loss_;
    int64_t chunk_;  // tokens whose logits exist at a time
    AttentionOptions attention_;
    bool is_attention_left_out_ = false;

    Tensor weights_, compute_weights_, gradients_;
    Tensor slopes_, rope_table_;
    std::vector<LayerActivations> layers_;
    std::vector<Tensor> residual_;  // L + 1 of (N, C): what enters each layer, and what leaves the last
    Tensor final_norm_, final_rstd_, losses_, logits_;
    // Gradients of activations, shared by all layers. Those that are not here take the place of the activation itself.
    Tensor dresidual_, dqkv_, dqk_, dattention_;
    Tensor workspace_;
};

}  // namespace ingot
