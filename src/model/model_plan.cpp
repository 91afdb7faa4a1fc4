// What a model plans: its memory, activation by activation, and the constants that fill some of it.
#include <algorithm>
#include <cmath>

#include "kernels/embedding.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "src/model/model.h"

namespace ingot {

namespace {

// Memory that the logits of one chunk may take. Large enough for the head's GEMMs to run at full speed, small enough
// to be a minor part of the plan. Each chunk reads and writes the head's whole gradient once: with 50,304 tokens of
// vocabulary and width 768 that is 309 MB, which on a GPU only chunks of thousands of tokens make little.
constexpr int64_t kLogitsBytes = 64 << 20, kLogitsBytesCuda = 1 << 30;

}  // namespace

int64_t logits_chunk(const Device& device, const ModelConfig& config, DType dtype, int64_t max_tokens) {
    const int64_t bytes = device.is_cpu() ? kLogitsBytes : kLogitsBytesCuda;
    const int64_t most = std::clamp<int64_t>(bytes / (config.padded_vocab_size() * size_of(dtype)), 1, max_tokens);
    // Chunks of one size in whole tiles are preferred: then no GEMM has a second shape.
    for (int64_t chunk = most / 128 * 128; chunk > most / 2; chunk -= 128)
        if (max_tokens % chunk == 0) return chunk;
    return most;
}

namespace {

// In fp8 three of them are needed by evaluation, and by training for their gradients alone.
std::vector<Activation> layer_activations(const ModelConfig& config, DType dtype, DType stats, bool uses_fp8) {
    using Shape = Activation::Shape;
    using Layer = LayerActivations;
    const int64_t C = config.d_model, F = config.d_ff, HS = config.head_dim;
    const int64_t NH = config.n_heads, NKV = config.n_kv_heads;
    constexpr Recompute light = Recompute::light, block = Recompute::block;
    const Recompute operand = uses_fp8 ? Recompute::none : light;
    std::vector<Activation> list = {
        {"attention_norm", &Layer::attention_norm, dtype, Shape::tokens_width, C, operand},
        {"attention_rstd", &Layer::attention_rstd, stats, Shape::tokens, 1, block},
        {"qkv", &Layer::qkv, dtype, Shape::tokens_width, config.qkv_width(), block},
        {"attention", &Layer::attention, dtype, Shape::tokens_width, NH * HS, block},
        {"lse", &Layer::lse, stats, Shape::width_tokens, NH, block},
        {"residual_mid", &Layer::residual_mid, dtype, Shape::tokens_width, C, block},
        {"mlp_norm", &Layer::mlp_norm, dtype, Shape::tokens_width, C, operand, uses_fp8 ? "attention_norm" : nullptr},
        {"mlp_rstd", &Layer::mlp_rstd, stats, Shape::tokens, 1, block},
        {"gate_up", &Layer::gate_up, dtype, Shape::tokens_width, 2 * F, block},
        {"swiglu", &Layer::swiglu, dtype, Shape::tokens_width, F, operand},
    };
    if (config.qk_norm) {
        list.push_back({"qk", &Layer::qk, dtype, Shape::tokens_width, (NH + NKV) * HS, block});
        list.push_back({"qk_rstd", &Layer::qk_rstd, stats, Shape::width_tokens, NH + NKV, block});
    }
    return list;
}

}  // namespace

Model::Model(const Device& device, const ModelConfig& config, const ModelOptions& options, MemoryPlan* plan)
    : device_(device),
      config_(config),
      table_(config, options.num_ranks),
      dtype_(options.dtype),
      stats_(accumulation_dtype(options.dtype)),
      max_tokens_(options.max_tokens),
      recompute_(options.is_training ? options.recompute : Recompute::block),
      z_loss_(options.z_loss),
      attention_(options.attention) {
    const int64_t N = max_tokens_, C = config.d_model, L = config.n_layers, VP = config.padded_vocab_size();
    const int64_t NH = config.n_heads, NKV = config.n_kv_heads, HS = config.head_dim;
    const bool is_training = options.is_training;
    try {  // refuses what no kernel can do, before anything is allocated
        (void)choose_attention(device, dtype_, HS, attention_);
    } catch (const UserError& error) {
        throw UserError(join(error.what(), " (model.head_dim, training.precision, training.attention, --device)"));
    }
    chunk_ = logits_chunk(device, config, dtype_, N);

    plan->add("weights", dtype_, {table_.flat_size()}, &weights_);
    if (is_training) plan->add("gradients", stats_, {table_.flat_size()}, &gradients_);
    if (config.position == Position::alibi) plan->add("constants.slopes", stats_, {NH}, &slopes_);
    if (config.position == Position::rope)
        plan->add("constants.rope_table", stats_, {options.max_positions, HS}, &rope_table_);

    residual_.resize(static_cast<size_t>(L + 1));
    for (int64_t l = 0; l <= L; ++l) {
        // Without training two buffers take turns: a layer reads one and writes the other.
        const std::string name = join("activations.residual.", is_training ? l : l % 2);
        if (is_training || l < 2)
            plan->add(name, dtype_, {N, C}, &residual_[static_cast<size_t>(l)]);
        else
            plan->share(name, &residual_[static_cast<size_t>(l)]);
    }
    const bool uses_fp8 = is_training && options.uses_fp8;
    activations_ = layer_activations(config, dtype_, stats_, uses_fp8);
    layers_.resize(static_cast<size_t>(L));
    for (int64_t l = 0; l < L; ++l)
        for (const Activation& row : activations_) {
            Tensor* const slot = &(layers_[static_cast<size_t>(l)].*row.slot);
            const bool is_shared = recompute_ >= row.shared_with;
            const std::string name = join("activations.", row.name, ".", is_shared ? 0 : l);
            if (row.takes_place_of != nullptr)
                plan->share(join("activations.", row.takes_place_of, ".0"), slot);
            else if (is_shared && l > 0)
                plan->share(name, slot);
            else if (row.shape == Activation::Shape::tokens)
                plan->add(name, row.dtype, {N}, slot);
            else if (row.shape == Activation::Shape::tokens_width)
                plan->add(name, row.dtype, {N, row.width}, slot);
            else
                plan->add(name, row.dtype, {row.width, N}, slot);
        }
    plan->add("activations.final_norm", dtype_, {N, C}, &final_norm_);
    plan->add("activations.final_rstd", stats_, {N}, &final_rstd_);
    plan->add("activations.losses", stats_, {N}, &losses_);
    // The memory of a chunk's logits serves fp8 as well, before and after the head.
    int64_t logits_rows = chunk_;
    if (uses_fp8) {
        fp8_ = std::make_unique<Fp8Buffers>(config, N, recompute_, plan);
        const int64_t row_bytes = VP * size_of(dtype_);
        logits_rows = std::max(chunk_, (fp8_->scratch_bytes() + row_bytes - 1) / row_bytes);
    }
    plan->add("logits", dtype_, {logits_rows, VP}, &logits_);
    if (!is_training) return;
    plan->add("activation_gradients.residual", dtype_, {N, C}, &dresidual_);
    plan->add("activation_gradients.qkv", dtype_, {N, config.qkv_width()}, &dqkv_);
    if (config.qk_norm) plan->add("activation_gradients.qk", dtype_, {N, (NH + NKV) * HS}, &dqk_);
    plan->add("activation_gradients.attention", dtype_, {N, NH * HS}, &dattention_);
    size_t workspace = rmsnorm_backward_workspace(device, residual_[0]);
    if (config.qk_norm)
        workspace = std::max(workspace, rmsnorm_backward_workspace(device, dqk_.split_last(NH + NKV, HS)));
    if (config.qkv_bias) workspace = std::max(workspace, matmul_backward_bias_workspace(device, dqkv_.shape[1]));
    workspace = std::max(workspace, embedding_backward_workspace(device, dresidual_));
    workspace = std::max(workspace, attention_backward_workspace(device, dattention_.split_last(NH, HS), attention_));
    plan->add("workspace.backward", DType::u8, {static_cast<int64_t>(workspace)}, &workspace_);
}

void Model::initialize_constants() {
    const std::shared_ptr<void> memory =
        Device::cpu().allocate(static_cast<size_t>(std::max(rope_table_.bytes(), slopes_.bytes())));
    if (fp8_ != nullptr) fp8_->reset_scales(device_);
    if (slopes_) {
        Tensor host = slopes_;
        host.data = memory.get();
        host.device = DeviceKind::cpu;
        const std::vector<double> slopes = alibi_slopes(config_.n_heads);
        for_cpu_scalar(stats_, "slopes", [&](auto scalar) {
            using T = decltype(scalar);
            for (size_t h = 0; h < slopes.size(); ++h) host.get<T>()[h] = static_cast<T>(slopes[h]);
        });
        device_.copy(slopes_, host);
    }
    if (rope_table_) {
        Tensor host = rope_table_;
        host.data = memory.get();
        host.device = DeviceKind::cpu;
        const RopeScaling& scaling = config_.rope_scaling;
        const RopeStretch stretch = {.factor = scaling.factor,
                                     .low_freq_factor = scaling.low_freq_factor,
                                     .high_freq_factor = scaling.high_freq_factor,
                                     .original_context = static_cast<double>(scaling.original_context_length)};
        fill_rope_table(host, config_.rope_theta, scaling.type == RopeScalingType::llama3 ? &stretch : nullptr);
        device_.copy(rope_table_, host);
    }
}

}  // namespace ingot
