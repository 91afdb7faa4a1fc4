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
#include "src/data/micro_batch.h"
#include "src/model/fp8_buffers.h"
#include "src/model/kv_cache.h"
#include "src/model/linear.h"
#include "src/model/parameters.h"

namespace ingot {

// The activations of a layer that backward reads. Each has its row in layer_activations() (model_plan.cpp).
struct LayerActivations {
    Tensor attention_norm, attention_rstd;  // (N, C), (N)
    Tensor qkv;                             // (N, (NH + 2 NKV) HS); q and k rotated, unless QK-norm is on
    Tensor qk, qk_rstd;                     // QK-norm only: (N, (NH + NKV) HS) normed and rotated, (NH + NKV, N)
    Tensor attention, lse;                  // (N, NH HS), (NH, N)
    Tensor residual_mid;                    // (N, C): x after attention
    Tensor mlp_norm, mlp_rstd;              // (N, C), (N)
    Tensor gate_up, swiglu;                 // (N, 2F), (N, F)
};

// Returns how many tokens' logits exist at a time, in a micro-batch of up to max_tokens.
int64_t logits_chunk(const Device& device, const ModelConfig& config, DType dtype, int64_t max_tokens);

// A row of the list that plans the activations of a layer and cuts them to a micro-batch.
struct Activation {
    enum class Shape { tokens, tokens_width, width_tokens };  // (N), (N, width), (width, N)
    const char* name;
    Tensor LayerActivations::*slot;
    DType dtype;
    Shape shape;
    int64_t width;
    Recompute shared_with;  // from this recompute on all layers share one buffer, since backward computes it again
    const char* takes_place_of = nullptr;  // shares that buffer with another activation
};

// Told by the model as it goes through the buckets of the parameter table, so that weights can be gathered and
// gradients summed over ranks beside the computation. The model reads a bucket's weights only after before_weights(),
// in forward and in backward, and does not touch its gradients after after_gradients() in the same train().
class BucketUse {
  public:
    virtual ~BucketUse() = default;
    virtual void before_weights(int64_t bucket) = 0;
    virtual void after_gradients(int64_t bucket) = 0;
};

struct ModelOptions {
    DType dtype = DType::f32;   // the compute type: fp32 on the CPU, fp64 for the oracle
    int64_t max_tokens = 0;     // N, the most tokens of a micro-batch
    int64_t max_positions = 0;  // bounds the positions within a document: the RoPE table's rows
    bool is_training = false;   // plans gradients, and activations of every layer
    bool uses_fp8 = false;      // train() runs the layers' GEMMs in fp8; evaluation stays in the compute type
    Recompute recompute = Recompute::none;
    double z_loss = 0;
    AttentionOptions attention = {};
    int64_t num_ranks = 1;  // that share the parameters: the parameter table's
};

class Model {
  public:
    // Plans all memory of weights, gradients and activations. `plan` is the caller's: others add to it before it is
    // allocated. Throws UserError for what no kernel can do.
    Model(const Device& device, const ModelConfig& config, const ModelOptions& options, MemoryPlan* plan);
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    // Fills the RoPE table and the ALiBi slopes, once the plan is allocated. The weights come from
    // initialize_parameters() or a checkpoint; in 16 bits by way of the optimizer's fp32 masters.
    void initialize_constants();

    // Whom to tell of buckets from now on; null: nobody. It outlives the model's use.
    void set_bucket_use(BucketUse* use) { bucket_use_ = use; }

    // Serves benchmarks alone, on CUDA: from now on every token sees itself only (kernels/attention/left_out.h),
    // without QK-norm and positions, so that what is left of a step can be timed. config() says so.
    void leave_out_attention();

    // Forward and backward of one micro-batch: adds its losses and target count to step->sums, and S * (sum of token
    // losses) is what the gradients are of. `accumulate`: whether they are added to, or overwritten, as for a step's
    // first micro-batch. Logits never exist for more than a chunk of tokens: the head's gradients are taken in forward.
    void train(const MicroBatch& batch, StepBlock* step, bool accumulate = true);
    // Losses alone: adds to step->sums, leaves per-token losses in losses().
    void evaluate(const MicroBatch& batch, StepBlock* step);
    // Logits of the given tokens of the batch, into `logits` (rows.size(), VP) on the device; for sampling and tests.
    void logits(const MicroBatch& batch, const std::vector<int64_t>& rows, const Tensor& logits);

    // Reads the tokens of `batch`, which go on the document in `cache`, and keeps their keys and values there: the
    // first n tokens of a document if the cache is empty, one token after that. Positions count from the document's
    // start. Writes the last token's logits into `logits` (1, VP) on the device.
    void extend(const MicroBatch& batch, KvCache* cache, const Tensor& logits);

    // FLOPs of forward and backward of so many tokens: 6 for each parameter of a GEMM and token; in attention two
    // GEMMs of 2 HS FLOPs each for a visible pair and head, forward once and backward twice.
    double flops(double tokens, double visible_pairs) const {
        const double heads = static_cast<double>(config_.n_layers * config_.n_heads * config_.head_dim);
        return 6.0 * static_cast<double>(table_.num_matmul_parameters()) * tokens + 12.0 * heads * visible_pairs;
    }
    // The scales of training in fp8; null without it. They are updated once a step, by update_fp8_scales().
    const Fp8Buffers* fp8() const { return fp8_.get(); }
    void update_fp8_scales() const {
        if (fp8_ != nullptr) fp8_->update_scales(device_);
    }
    const ModelConfig& config() const { return config_; }
    const ParameterTable& table() const { return table_; }
    const Device& device() const { return device_; }
    const Tensor& weights() const { return weights_; }      // flat, in the compute type: what forward and backward read
    const Tensor& gradients() const { return gradients_; }  // flat, the same layout, fp32 (fp64)
    const Tensor& losses() const { return losses_; }        // (N) of the last train() or evaluate()
    DType dtype() const { return dtype_; }
    int64_t max_tokens() const { return max_tokens_; }

  private:
    enum class HeadMode { train, evaluate };
    enum class GemmType { compute_type, as_in_training };  // of the layers
    // A layer's weights and gradients, by the name of the op that reads them.
    struct Layer {
        LayerTensors weights, gradients;  // of the norms
        Linear qkv, attention_out, gate_up, down;
    };
    // `fp8` is null where the layer's GEMMs run in the compute type.
    Layer layer(int64_t layer, const Fp8Layer& fp8) const;
    Fp8Layer fp8_layer(int64_t layer, int64_t n, GemmType type) const;
    Linear head() const;
    // Embedding and all layers, then the final norm into final_norm_.
    void forward_trunk(const MicroBatch& batch, int64_t n, GemmType type, const KvCache* cache = nullptr);
    void layer_forward(const MicroBatch& batch, int64_t n, int64_t layer, GemmType type, bool is_recompute,
                       const KvCache* cache = nullptr);
    void layer_backward(const MicroBatch& batch, int64_t n, int64_t layer, bool accumulate);
    void mlp_backward(const Layer& ops, const LayerActivations& acts, const Fp8Layer& fp8, const Tensor& dx,
                      bool accumulate);
    void recompute_norm(const Tensor& out, const Tensor& rstd, const Tensor& x, const Tensor& weight,
                        const Fp8Linear& fp8);
    void heads_backward(const MicroBatch& batch, const Layer& ops, const LayerActivations& acts,
                        const Tensor& dattention, const Tensor& dqkv, bool accumulate);
    void head_and_loss(const MicroBatch& batch, int64_t n, StepBlock* step, HeadMode mode, bool accumulate);
    void backward(const MicroBatch& batch, bool accumulate);
    // The query, key and value views that attention reads: slices of qkv, or of qk with QK-norm.
    struct Heads {
        Tensor q, k, v;
    };
    // Attention of the batch within itself, or, with a cache, after adding its keys and values there.
    void attend(const MicroBatch& batch, const Heads& heads, const LayerActivations& acts, int64_t layer,
                const KvCache* cache);
    Heads attention_heads(const LayerActivations& acts, int64_t n) const;
    LayerActivations activations(int64_t layer, int64_t n) const;
    void before_weights(int64_t bucket) const {
        if (bucket_use_ != nullptr) bucket_use_->before_weights(bucket);
    }
    void after_gradients(int64_t bucket) const {
        if (bucket_use_ != nullptr) bucket_use_->after_gradients(bucket);
    }

    BucketUse* bucket_use_ = nullptr;
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

    Tensor weights_, gradients_;
    Tensor slopes_, rope_table_;
    std::vector<Activation> activations_;
    std::vector<LayerActivations> layers_;
    std::vector<Tensor> residual_;  // L + 1 of (N, C): what enters each layer, and what leaves the last
    Tensor final_norm_, final_rstd_, losses_, logits_;
    std::unique_ptr<Fp8Buffers> fp8_;
    // Gradients of activations, shared by all layers. Those that are not here take the place of the activation itself.
    Tensor dresidual_, dqkv_, dqk_, dattention_;
    Tensor workspace_;
};

}  // namespace ingot
