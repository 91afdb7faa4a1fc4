#include "src/model/model.h"

#include <algorithm>
#include <cmath>

#include "kernels/attention/decode.h"
#include "kernels/attention/left_out.h"
#include "kernels/core/profile.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/fp8.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"

namespace ingot {

namespace {

// The first n tokens of a buffer planned for N.
Tensor first(const Tensor& tensor, int64_t n) {
    return tensor ? tensor.slice(0, 0, n) : tensor;
}

// A buffer (rows, N) reused as a contiguous (rows, n).
Tensor first_columns(const Tensor& tensor, int64_t n) {
    return Tensor::contiguous(tensor.data, tensor.dtype, {tensor.shape[0], n}, tensor.device);
}

}  // namespace

void Model::leave_out_attention() {
    CHECK(!device_.is_cpu(), "attention can be left out on CUDA only");
    is_attention_left_out_ = true;
    config_.qk_norm = false;
    config_.position = Position::none;
}

LayerActivations Model::activations(int64_t layer, int64_t n) const {
    LayerActivations acts = layers_[static_cast<size_t>(layer)];
    for (const Activation& row : activations_) {
        Tensor& tensor = acts.*row.slot;
        tensor = row.shape == Activation::Shape::width_tokens ? first_columns(tensor, n) : first(tensor, n);
    }
    return acts;
}

Model::Heads Model::attention_heads(const LayerActivations& acts, int64_t n) const {
    const int64_t NH = config_.n_heads, NKV = config_.n_kv_heads, HS = config_.head_dim;
    const Tensor qkv = first(acts.qkv, n).split_last(NH + 2 * NKV, HS);
    const Tensor qk = config_.qk_norm ? first(acts.qk, n).split_last(NH + NKV, HS) : qkv;
    return {qk.slice(1, 0, NH), qk.slice(1, NH, NH + NKV), qkv.slice(1, NH + NKV, NH + 2 * NKV)};
}

Fp8Layer Model::fp8_layer(int64_t layer, int64_t n, GemmType type) const {
    if (fp8_ == nullptr || type == GemmType::compute_type) return {};
    return fp8_->layer(layer, n, logits_);
}

Model::Layer Model::layer(int64_t layer, const Fp8Layer& fp8) const {
    Layer result;
    result.weights = layer_tensors(table_, weights_, layer);
    if (gradients_) result.gradients = layer_tensors(table_, gradients_, layer);
    const LayerTensors &w = result.weights, &dw = result.gradients;
    result.qkv = {device_, w.qkv, w.qkv_bias, dw.qkv, dw.qkv_bias};
    result.attention_out = {.device = device_, .weight = w.attention_out, .dweight = dw.attention_out};
    result.gate_up = {.device = device_, .weight = w.gate_up, .dweight = dw.gate_up};
    result.down = {.device = device_, .weight = w.down, .dweight = dw.down};
    result.qkv.weight_fp8 = fp8.qkv.weight;
    result.attention_out.weight_fp8 = fp8.attention_out.weight;
    result.gate_up.weight_fp8 = fp8.gate_up.weight;
    result.down.weight_fp8 = fp8.down.weight;
    return result;
}

Linear Model::head() const {
    const Parameter& parameter = table_.find(config_.tie_embeddings ? "embedding" : "head");
    return {.device = device_,
            .weight = parameter_view(weights_, parameter),
            .dweight = gradients_ ? parameter_view(gradients_, parameter) : Tensor{}};
}

// ---- Forward ----

void Model::attend(const MicroBatch& batch, const Heads& heads, const LayerActivations& acts, int64_t layer,
                   const KvCache* cache) {
    const int64_t NH = config_.n_heads, NKV = config_.n_kv_heads, HS = config_.head_dim;
    const double scale = 1 / std::sqrt(static_cast<double>(HS));
    if (cache != nullptr) {
        const int64_t begin = cache->length(), end = begin + heads.k.shape[0];
        const auto rows = [&](const Tensor& tensor) {
            return tensor.slice(0, layer, layer + 1).view({cache->capacity(), NKV, HS});
        };
        const Tensor k = rows(cache->k_), v = rows(cache->v_);
        kv_cache_append(
            device_,
            {.cache_k = k.slice(0, begin, end), .cache_v = v.slice(0, begin, end), .k = heads.k, .v = heads.v});
        if (begin > 0) {
            attention_decode(device_, {.out = acts.attention.view({NH, HS}),
                                       .q = heads.q.view({NH, HS}),
                                       .k = k.slice(0, 0, end),
                                       .v = v.slice(0, 0, end),
                                       .slopes = slopes_,
                                       .scale = scale});
            return;
        }
    }
    if (is_attention_left_out_) {
        attention_left_out_forward(device_, {.out = acts.attention.split_last(NH, HS), .v = heads.v});
        return;
    }
    attention_forward(device_, {.out = acts.attention.split_last(NH, HS),
                                .lse = acts.lse,
                                .q = heads.q,
                                .k = heads.k,
                                .v = heads.v,
                                .slopes = slopes_,
                                .mask = batch.mask,
                                .scale = scale,
                                .options = attention_});
}

void Model::layer_forward(const MicroBatch& batch, int64_t n, int64_t layer, GemmType type, bool is_recompute,
                          const KvCache* cache) {
    const ProfileRange range("layer ", layer, is_recompute ? " recompute" : " forward");
    const Fp8Layer fp8 = fp8_layer(layer, n, type);
    const Layer ops = this->layer(layer, fp8);
    const LayerTensors& w = ops.weights;
    const LayerActivations acts = activations(layer, n);
    const int64_t NH = config_.n_heads, NKV = config_.n_kv_heads, HS = config_.head_dim;
    const Tensor x = first(residual_[static_cast<size_t>(layer)], n);
    const Tensor x_out = first(residual_[static_cast<size_t>(layer + 1)], n);
    const double eps = config_.norm_eps;

    rmsnorm_forward(device_, {.out = fp8 ? Tensor{} : acts.attention_norm,
                              .rstd = acts.attention_rstd,
                              .x = x,
                              .weight = w.attention_norm,
                              .eps = eps,
                              .quantized = fp8.qkv.x});
    ops.qkv.forward({.out = acts.qkv, .x = acts.attention_norm, .x_fp8 = fp8.qkv.x});
    const Heads heads = attention_heads(acts, n);
    if (config_.qk_norm) {
        const Tensor raw = acts.qkv.split_last(NH + 2 * NKV, HS), rstd = acts.qk_rstd;
        rmsnorm_forward(device_, {.out = heads.q,
                                  .rstd = rstd.slice(0, 0, NH).view({n, NH}),
                                  .x = raw.slice(1, 0, NH),
                                  .weight = w.q_norm,
                                  .eps = eps});
        rmsnorm_forward(device_, {.out = heads.k,
                                  .rstd = rstd.slice(0, NH, NH + NKV).view({n, NKV}),
                                  .x = raw.slice(1, NH, NH + NKV),
                                  .weight = w.k_norm,
                                  .eps = eps});
    }
    if (config_.position == Position::rope) {
        rope_forward(device_, {.x = heads.q, .positions = batch.positions, .table = rope_table_});
        rope_forward(device_, {.x = heads.k, .positions = batch.positions, .table = rope_table_});
    }
    attend(batch, heads, acts, layer, cache);
    if (fp8) fp8_quantize(device_, {.out = fp8.attention_out.x, .in = acts.attention});
    ops.attention_out.forward(
        {.out = acts.residual_mid, .x = acts.attention, .residual = x, .x_fp8 = fp8.attention_out.x});

    rmsnorm_forward(device_, {.out = fp8 ? Tensor{} : acts.mlp_norm,
                              .rstd = acts.mlp_rstd,
                              .x = acts.residual_mid,
                              .weight = w.mlp_norm,
                              .eps = eps,
                              .quantized = fp8.gate_up.x});
    ops.gate_up.forward({.out = acts.gate_up, .x = acts.mlp_norm, .x_fp8 = fp8.gate_up.x});
    if (is_recompute) return;  // the layer's output is still there, and backward computes swiglu again
    swiglu_forward(device_, {.out = fp8 ? Tensor{} : acts.swiglu, .gate_up = acts.gate_up, .quantized = fp8.down.x});
    ops.down.forward({.out = x_out, .x = acts.swiglu, .residual = acts.residual_mid, .x_fp8 = fp8.down.x});
}

void Model::forward_trunk(const MicroBatch& batch, int64_t n, GemmType type, const KvCache* cache) {
    CHECK(n >= 1 && n <= max_tokens_, "a micro-batch of ", n, " tokens, planned for up to ", max_tokens_);
    before_weights(ParameterTable::kEmbeddingBucket);
    {
        const ProfileRange range("embedding forward");
        embedding_forward(device_, {.out = first(residual_[0], n),
                                    .weight = parameter_view(weights_, table_.find("embedding")),
                                    .tokens = batch.tokens});
    }
    for (int64_t layer = 0; layer < config_.n_layers; ++layer) {
        before_weights(ParameterTable::bucket_of_layer(layer));
        layer_forward(batch, n, layer, type, false, cache);
    }
    before_weights(table_.head_bucket());
    rmsnorm_forward(device_, {.out = first(final_norm_, n),
                              .rstd = first(final_rstd_, n),
                              .x = first(residual_.back(), n),
                              .weight = parameter_view(weights_, table_.find("final_norm")),
                              .eps = config_.norm_eps});
}

// Logits, loss and, in training, the gradients of logits, head weight and final norm output, a chunk of tokens at a
// time.
void Model::head_and_loss(const MicroBatch& batch, int64_t n, StepBlock* step, HeadMode mode, bool accumulate) {
    const ProfileRange range("head");
    const Linear linear = head();
    for (int64_t begin = 0; begin < n; begin += chunk_) {
        const int64_t end = std::min(begin + chunk_, n);
        const Tensor x = final_norm_.slice(0, begin, end), logits = first(logits_, end - begin);
        linear.forward({.out = logits, .x = x});
        cross_entropy(device_, {.logits = logits,
                                .losses = losses_.slice(0, begin, end),
                                .targets = batch.targets.slice(0, begin, end),
                                .vocab_size = config_.vocab_size,
                                .z_loss = z_loss_,
                                .loss_scale = &step->state.loss_scale,
                                .write_gradient = mode == HeadMode::train});
        if (mode != HeadMode::train) continue;
        linear.backward({.dx = x, .dout = logits, .x = x, .accumulate = accumulate || begin > 0});
    }
    loss_sum(device_, {.step = step, .losses = first(losses_, n), .targets = batch.targets});
}

void Model::train(const MicroBatch& batch, StepBlock* step, bool accumulate) {
    CHECK(gradients_, "this model was planned without gradients");
    const int64_t n = batch.tokens.shape[0];
    forward_trunk(batch, n, GemmType::as_in_training);
    head_and_loss(batch, n, step, HeadMode::train, accumulate);
    backward(batch, accumulate);
}

void Model::evaluate(const MicroBatch& batch, StepBlock* step) {
    const int64_t n = batch.tokens.shape[0];
    forward_trunk(batch, n, GemmType::compute_type);
    head_and_loss(batch, n, step, HeadMode::evaluate, false);
}

void Model::logits(const MicroBatch& batch, const std::vector<int64_t>& rows, const Tensor& logits) {
    forward_trunk(batch, batch.tokens.shape[0], GemmType::compute_type);
    for (size_t i = 0; i < rows.size(); ++i) {
        const int64_t out = static_cast<int64_t>(i);
        head().forward({.out = logits.slice(0, out, out + 1), .x = final_norm_.slice(0, rows[i], rows[i] + 1)});
    }
}

void Model::extend(const MicroBatch& batch, KvCache* cache, const Tensor& logits) {
    const int64_t n = batch.tokens.shape[0];
    CHECK(n == 1 || cache->length() == 0, n, " tokens at once after ", cache->length(), ": only one at a time");
    CHECK(cache->length() + n <= cache->capacity(), cache->length(), " + ", n, " tokens in a cache for ",
          cache->capacity());
    forward_trunk(batch, n, GemmType::compute_type, cache);
    cache->length_ += n;
    head().forward({.out = logits, .x = final_norm_.slice(0, n - 1, n)});
}

// ---- Backward ----

// Writes a norm's output again for backward, where it was not kept. With block it is there in the compute type, since
// the layer's forward has just run again; in fp8 the columns are not.
void Model::recompute_norm(const Tensor& out, const Tensor& rstd, const Tensor& x, const Tensor& weight,
                           const Fp8Linear& fp8) {
    if (fp8 ? fp8_->keeps_columns() : recompute_ != Recompute::light) return;
    rmsnorm_forward(device_, {.out = fp8 ? Tensor{} : out,
                              .rstd = rstd,
                              .x = x,
                              .weight = weight,
                              .eps = config_.norm_eps,
                              .quantized = fp8.x_columns});
}

// x_out = x_mid + Wdown swiglu(Wgu norm(x_mid)): dx, the gradient of x_out, becomes that of x_mid. Where swiglu's
// output was not kept, its backward writes it again.
void Model::mlp_backward(const Layer& ops, const LayerActivations& acts, const Fp8Layer& fp8, const Tensor& dx,
                         bool accumulate) {
    const LayerTensors &w = ops.weights, &dw = ops.gradients;
    // Gradients take the place of activations that are not read any more.
    const Tensor dmlp_norm = acts.mlp_norm, dgate_up = acts.gate_up, dswiglu = acts.swiglu;
    const bool keeps_swiglu = recompute_ == Recompute::none;
    if (fp8) fp8_quantize(device_, {.out = fp8.down.dout, .in = dx});
    const Linear::Backward down = {.dx = dswiglu,
                                   .dout = dx,
                                   .x = acts.swiglu,
                                   .dout_fp8 = fp8.down.dout,
                                   .x_fp8 = fp8.down.x_columns,
                                   .accumulate = accumulate};
    if (keeps_swiglu) ops.down.backward_weight(down);
    ops.down.backward_input(down);
    swiglu_backward(device_, {.dgate_up = fp8 ? Tensor{} : dgate_up,
                              .dout = dswiglu,
                              .gate_up = acts.gate_up,
                              .out = keeps_swiglu || fp8 ? Tensor{} : acts.swiglu,
                              .quantized = fp8.gate_up.dout,
                              .quantized_out = keeps_swiglu ? Fp8Operand{} : fp8.down.x_columns});
    if (!keeps_swiglu) ops.down.backward_weight(down);
    recompute_norm(acts.mlp_norm, acts.mlp_rstd, acts.residual_mid, w.mlp_norm, fp8.gate_up);
    ops.gate_up.backward({.dx = dmlp_norm,
                          .dout = dgate_up,
                          .x = acts.mlp_norm,
                          .dout_fp8 = fp8.gate_up.dout,
                          .x_fp8 = fp8.gate_up.x_columns,
                          .accumulate = accumulate});
    rmsnorm_backward(device_, {.dx = dx,
                               .dweight = dw.mlp_norm,
                               .dout = dmlp_norm,
                               .x = acts.residual_mid,
                               .rstd = acts.mlp_rstd,
                               .weight = w.mlp_norm,
                               .dresidual = dx,
                               .workspace = workspace_,
                               .accumulate = accumulate});
}

// attention = softmax(q k^T) v of each head: dattention becomes dqkv, through attention, RoPE and QK-norm.
void Model::heads_backward(const MicroBatch& batch, const Layer& ops, const LayerActivations& acts,
                           const Tensor& dattention, const Tensor& dqkv, bool accumulate) {
    const LayerTensors &w = ops.weights, &dw = ops.gradients;
    const int64_t n = dqkv.shape[0], NH = config_.n_heads, NKV = config_.n_kv_heads, HS = config_.head_dim;
    const Heads heads = attention_heads(acts, n);
    LayerActivations gradients;
    gradients.qkv = dqkv;
    gradients.qk = dqk_;
    const Heads dheads = attention_heads(gradients, n);
    const Tensor dout = dattention.split_last(NH, HS);
    if (is_attention_left_out_)
        attention_left_out_backward(device_, {.dq = dheads.q, .dk = dheads.k, .dv = dheads.v, .dout = dout});
    else
        attention_backward(device_, {.dq = dheads.q,
                                     .dk = dheads.k,
                                     .dv = dheads.v,
                                     .dout = dout,
                                     .out = acts.attention.split_last(NH, HS),
                                     .lse = acts.lse,
                                     .q = heads.q,
                                     .k = heads.k,
                                     .v = heads.v,
                                     .slopes = slopes_,
                                     .mask = batch.mask,
                                     .scale = 1 / std::sqrt(static_cast<double>(HS)),
                                     .workspace = workspace_,
                                     .options = attention_});
    if (config_.position == Position::rope) {
        rope_backward(device_, {.x = dheads.q, .positions = batch.positions, .table = rope_table_});
        rope_backward(device_, {.x = dheads.k, .positions = batch.positions, .table = rope_table_});
    }
    if (config_.qk_norm) {
        const Tensor raw = acts.qkv.split_last(NH + 2 * NKV, HS), draw = dqkv.split_last(NH + 2 * NKV, HS);
        const Tensor rstd = acts.qk_rstd;
        rmsnorm_backward(device_, {.dx = draw.slice(1, 0, NH),
                                   .dweight = dw.q_norm,
                                   .dout = dheads.q,
                                   .x = raw.slice(1, 0, NH),
                                   .rstd = rstd.slice(0, 0, NH).view({n, NH}),
                                   .weight = w.q_norm,
                                   .workspace = workspace_,
                                   .accumulate = accumulate});
        rmsnorm_backward(device_, {.dx = draw.slice(1, NH, NH + NKV),
                                   .dweight = dw.k_norm,
                                   .dout = dheads.k,
                                   .x = raw.slice(1, NH, NH + NKV),
                                   .rstd = rstd.slice(0, NH, NH + NKV).view({n, NKV}),
                                   .weight = w.k_norm,
                                   .workspace = workspace_,
                                   .accumulate = accumulate});
    }
}

void Model::layer_backward(const MicroBatch& batch, int64_t n, int64_t layer, bool accumulate) {
    const ProfileRange range("layer ", layer, " backward");
    const Fp8Layer fp8 = fp8_layer(layer, n, GemmType::as_in_training);
    const Layer ops = this->layer(layer, fp8);
    const LayerTensors &w = ops.weights, &dw = ops.gradients;
    const LayerActivations acts = activations(layer, n);
    const Tensor x = first(residual_[static_cast<size_t>(layer)], n);
    // The gradient of the residual stream: at first that of the layer's output, then, once each branch has added its
    // own, that of its input.
    const Tensor dx = first(dresidual_, n);
    const Tensor dqkv = first(dqkv_, n), dattention = first(dattention_, n), dattention_norm = acts.attention_norm;

    if (recompute_ == Recompute::block) layer_forward(batch, n, layer, GemmType::as_in_training, true);
    mlp_backward(ops, acts, fp8, dx, accumulate);

    // x_mid = x + Wo attention(Wqkv norm(x))
    if (fp8) {
        fp8_quantize(device_, {.out = fp8.attention_out.dout, .in = dx});
        if (!fp8_->keeps_columns()) fp8_quantize(device_, {.out = fp8.attention_out.x_columns, .in = acts.attention});
    }
    ops.attention_out.backward({.dx = dattention,
                                .dout = dx,
                                .x = acts.attention,
                                .dout_fp8 = fp8.attention_out.dout,
                                .x_fp8 = fp8.attention_out.x_columns,
                                .accumulate = accumulate});
    heads_backward(batch, ops, acts, dattention, dqkv, accumulate);
    if (fp8) fp8_quantize(device_, {.out = fp8.qkv.dout, .in = dqkv});
    recompute_norm(acts.attention_norm, acts.attention_rstd, x, w.attention_norm, fp8.qkv);
    ops.qkv.backward({.dx = dattention_norm,
                      .dout = dqkv,
                      .x = acts.attention_norm,
                      .workspace = workspace_,
                      .dout_fp8 = fp8.qkv.dout,
                      .x_fp8 = fp8.qkv.x_columns,
                      .accumulate = accumulate});
    rmsnorm_backward(device_, {.dx = dx,
                               .dweight = dw.attention_norm,
                               .dout = dattention_norm,
                               .x = x,
                               .rstd = acts.attention_rstd,
                               .weight = w.attention_norm,
                               .dresidual = dx,
                               .workspace = workspace_,
                               .accumulate = accumulate});
}

void Model::backward(const MicroBatch& batch, bool accumulate) {
    const int64_t n = batch.tokens.shape[0];
    // final_norm_ holds the gradient of the final norm's output: head_and_loss() left it there.
    rmsnorm_backward(device_, {.dx = first(dresidual_, n),
                               .dweight = parameter_view(gradients_, table_.find("final_norm")),
                               .dout = first(final_norm_, n),
                               .x = first(residual_.back(), n),
                               .rstd = first(final_rstd_, n),
                               .weight = parameter_view(weights_, table_.find("final_norm")),
                               .workspace = workspace_,
                               .accumulate = accumulate});
    after_gradients(table_.head_bucket());
    for (int64_t layer = config_.n_layers - 1; layer >= 0; --layer) {
        layer_backward(batch, n, layer, accumulate);
        after_gradients(ParameterTable::bucket_of_layer(layer));
    }
    const ProfileRange range("embedding backward");
    // Adds: to the head's gradient, which is in the same place, or to nothing.
    const Tensor dembedding = parameter_view(gradients_, table_.find("embedding"));
    if (!accumulate && !config_.tie_embeddings) device_.zero(dembedding);
    embedding_backward(
        device_,
        {.dweight = dembedding, .dout = first(dresidual_, n), .tokens = batch.tokens, .workspace = workspace_});
    after_gradients(ParameterTable::kEmbeddingBucket);
}

}  // namespace ingot
