#include "src/train/features.h"

#include <omp.h>

#include <cstdio>

#include "kernels/core/blas.h"
#include "src/config/fields.h"

namespace ingot {

namespace {

template <typename... Values>
std::string line(const char* format, Values... values) {
    char text[512];
    std::snprintf(text, sizeof text, format, values...);
    return std::string(text) + "\n";
}

const char* describe(Position position) {
    switch (position) {
        case Position::alibi:
            return "ALiBi";
        case Position::rope:
            return "RoPE";
        default:
            return "no positions";
    }
}

}  // namespace

std::string describe_features(const Config& config, const TrainingPlan& plan) {
    const Model& model = plan.model;
    const Device& device = plan.device();
    const ModelConfig& m = config.model;
    const TrainingConfig& t = config.training;
    const OptimizerConfig& o = config.optimizer;
    const ScheduleConfig& s = config.schedule;
    const double parameters = static_cast<double>(model.table().num_parameters());
    const long heads = static_cast<long>(m.n_heads), kv_heads = static_cast<long>(m.n_kv_heads);
    // Forward and backward: 6 FLOPs per parameter of a product, and 6 per query, visible key and element of a head
    // twice (scores, values), half of the keys being visible to a causal row of one document.
    const double product_flops = 6.0 * static_cast<double>(model.table().num_matmul_parameters());
    const double attention_flops =
        6.0 * static_cast<double>(m.n_layers * m.n_heads * m.head_dim) * static_cast<double>(m.context_length + 1);

    std::string text =
        line("model: %.2fM parameters, %ld layers, width %ld, MLP %ld, context %ld, vocabulary %ld%s%s%s",
             parameters / 1e6, static_cast<long>(m.n_layers), static_cast<long>(m.d_model), static_cast<long>(m.d_ff),
             static_cast<long>(m.context_length), static_cast<long>(m.vocab_size),
             m.tie_embeddings ? ", tied embeddings" : "", m.qkv_bias ? ", QKV bias" : "", m.qk_norm ? ", QK-norm" : "");
    text += line("compute: %.3g MFLOPs per token in products, up to %.3g in attention", product_flops / 1e6,
                 attention_flops / 1e6);
    const std::string stretched =
        m.rope_scaling.type == RopeScalingType::llama3
            ? join(" stretched ", m.rope_scaling.factor, "x beyond ", m.rope_scaling.original_context_length, " tokens")
            : "";
    text += line("attention: causal, %s%s, %ld query / %ld kv heads of %ld, documents %s", describe(m.position),
                 stretched.c_str(), heads, kv_heads, static_cast<long>(m.head_dim),
                 config.data.mask_documents ? "masked" : "not masked");
    const AttentionChoice attention = choose_attention(device, model.dtype(), m.head_dim, t.attention_options());
    text += line("attention kernel: %s, since %s%s", name_of(attention.kernel), attention.reason.c_str(),
                 attention.kernel != AttentionKernel::sm80 && attention.kernel != AttentionKernel::sm90 ? ""
                 : t.deterministic ? "; gradients of queries in one order"
                                   : "; gradients of queries in any order");
    text += line("optimizer: AdamW, lr %.3g (warm-up %ld steps, then %s to %.3g), betas %g and %g, weight decay %g, %s",
                 o.lr, static_cast<long>(*s.warmup_steps), name_of_choice(s.type),
                 s.type == ScheduleType::constant ? o.lr : o.lr * s.final_lr_fraction, o.beta1, o.beta2, o.weight_decay,
                 o.grad_clip > 0 ? join("gradients clipped at ", o.grad_clip).c_str() : "no clipping");
    text +=
        line("step: %ld micro-batch%s of %ld x %ld tokens, %s, recompute %s", static_cast<long>(plan.num_micro_steps()),
             plan.num_micro_steps() == 1 ? "" : "es", static_cast<long>(t.micro_batch_size),
             static_cast<long>(m.context_length), name_of(model.dtype()), name_of_choice(t.recompute));
    text += line("checkpoints: every %ld steps, the newest %ld kept%s, %s", static_cast<long>(config.checkpoint.every),
                 static_cast<long>(config.checkpoint.keep),
                 config.checkpoint.keep_every > 0
                     ? join(" and those of every ", config.checkpoint.keep_every, " steps").c_str()
                     : "",
                 plan.writer.describe().c_str());
    if (!device.is_cpu()) text += line("device: %s", device.name().c_str());
    if (device.is_cpu()) text += line("device: CPU, %d threads, %s", omp_get_max_threads(), blas_description());
    return text;
}

}  // namespace ingot
