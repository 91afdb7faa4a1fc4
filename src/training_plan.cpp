#include "src/training_plan.h"

#include <omp.h>

#include <cstdio>
#include <new>

#include "kernels/core/blas.h"
#include "src/config_fields.h"
#include "src/environment.h"

namespace ingot {

namespace {

DType compute_type(const Config& config, const Device& device) {
    switch (config.training.precision) {
        case Precision::automatic:
            return device.is_cpu() ? DType::f32 : DType::bf16;
        case Precision::fp32:
            return DType::f32;
        case Precision::bf16:
            return DType::bf16;
        case Precision::fp16:
            return DType::f16;
    }
    return DType::f32;
}

template <typename E>
const char* name_of_choice(E choice) {
    for (const auto& [name, value] : EnumNames<E>::values)
        if (value == choice) return name;
    return "?";
}

template <typename... Values>
std::string line(const char* format, Values... values) {
    char text[512];
    std::snprintf(text, sizeof text, format, values...);
    return std::string(text) + "\n";
}

}  // namespace

TrainingPlan::TrainingPlan(const Config& config, const Device& device)
    : config_(config),
      device_(device),
      model(device, config.model, compute_type(config, device),
            config.training.micro_batch_size * config.model.context_length, config.model.context_length,
            config.training.recompute, config.training.z_loss, true, &memory_),
      optimizer(model, &memory_),
      batch(model.max_tokens(), &memory_),
      writer(config, model, optimizer, device.is_cpu() ? &memory_ : &host_memory_) {
    memory_.add("step", DType::u8, {sizeof(StepBlock)}, &step_tensor_);
    memory_.add("eval_step", DType::u8, {sizeof(StepBlock)}, &eval_tensor_);
    if (config.sample.every > 0)
        generator = std::make_unique<Generator>(model, batch, config.model.context_length, &memory_);
}

void TrainingPlan::check_memory() const {
    const uint64_t available = available_memory();
    const uint64_t host_bytes = device_.is_cpu() ? memory_.total_bytes() : host_memory_.total_bytes();
    REQUIRE(available == 0 || host_bytes <= available, "the plan needs ", format_bytes(host_bytes), " of memory, ",
            format_bytes(available),
            " are free: use a smaller training.micro_batch_size, training.recompute = \"block\", or a smaller model");
}

void TrainingPlan::allocate() {
    check_memory();
    allocation_ = memory_.allocate(device_);
    if (!device_.is_cpu()) host_allocation_ = host_memory_.allocate(Device::cpu());
    step = new (step_tensor_.data) StepBlock{};
    eval_step = new (eval_tensor_.data) StepBlock{};
    model.initialize_constants();
}

int64_t TrainingPlan::num_micro_steps() const {
    return config_.training.batch_tokens / model.max_tokens();
}

std::string TrainingPlan::features() const {
    const ModelConfig& m = config_.model;
    const TrainingConfig& t = config_.training;
    const OptimizerConfig& o = config_.optimizer;
    const ScheduleConfig& s = config_.schedule;
    const double parameters = static_cast<double>(model.table().num_parameters());
    const long heads = static_cast<long>(m.n_heads), kv_heads = static_cast<long>(m.n_kv_heads);
    const char* const positions[] = {"ALiBi", "RoPE", "no positions"};
    // Forward and backward: 6 FLOPs per parameter of a product, and 6 per query, visible key and element of a head
    // twice (scores, values), half of the keys being visible to a causal row of one document.
    const double product_flops = 6.0 * static_cast<double>(model.table().num_matmul_parameters());
    const double attention_flops =
        6.0 * static_cast<double>(m.n_layers * m.n_heads * m.head_dim) * static_cast<double>(m.context_length + 1);

    std::string text =
        line("model: %.2fM parameters, %ld layers, width %ld, MLP %ld, context %ld, vocabulary %ld%s%s",
             parameters / 1e6, static_cast<long>(m.n_layers), static_cast<long>(m.d_model), static_cast<long>(m.d_ff),
             static_cast<long>(m.context_length), static_cast<long>(m.vocab_size),
             m.tie_embeddings ? ", tied embeddings" : "", m.qk_norm ? ", QK-norm" : "");
    text += line("compute: %.3g MFLOPs per token in products, up to %.3g in attention", product_flops / 1e6,
                 attention_flops / 1e6);
    text += line("attention: causal, %s, %ld query / %ld kv heads of %ld, documents %s",
                 positions[static_cast<int>(m.position)], heads, kv_heads, static_cast<long>(m.head_dim),
                 config_.data.mask_documents ? "masked" : "not masked");
    text += line("optimizer: AdamW, lr %.3g (warm-up %ld steps, then %s to %.3g), betas %g and %g, weight decay %g, %s",
                 o.lr, static_cast<long>(s.warmup_steps), name_of_choice(s.type),
                 s.type == ScheduleType::constant ? o.lr : o.lr * s.final_lr_fraction, o.beta1, o.beta2, o.weight_decay,
                 o.grad_clip > 0 ? join("gradients clipped at ", o.grad_clip).c_str() : "no clipping");
    text += line("step: %ld micro-batches of %ld x %ld tokens, %s, recompute %s", static_cast<long>(num_micro_steps()),
                 static_cast<long>(t.micro_batch_size), static_cast<long>(m.context_length), name_of(model.dtype()),
                 name_of_choice(t.recompute));
    text += line("checkpoints: every %ld steps, the newest %ld kept%s, %s", static_cast<long>(config_.checkpoint.every),
                 static_cast<long>(config_.checkpoint.keep),
                 config_.checkpoint.keep_every > 0
                     ? join(" and those of every ", config_.checkpoint.keep_every, " steps").c_str()
                     : "",
                 writer.describe().c_str());
    if (device_.is_cpu()) text += line("device: CPU, %d threads, %s", omp_get_max_threads(), blas_description());
    return text;
}

std::string TrainingPlan::memory_table() const {
    std::string text = "memory plan:\n" + memory_.table();
    if (!device_.is_cpu() && host_memory_.total_bytes() > 0) text += "host memory plan:\n" + host_memory_.table();
    return text;
}

}  // namespace ingot
