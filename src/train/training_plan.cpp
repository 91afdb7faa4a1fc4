#include "src/train/training_plan.h"

#include <omp.h>

#include <algorithm>
#include <cstdio>

#include "kernels/core/blas.h"
#include "kernels/step.h"
#include "src/config/fields.h"
#include "src/model/device_choice.h"
#include "src/model/matmul_cache.h"

namespace ingot {

namespace {

// What CUDA itself takes while a run goes on: code of kernels, cuBLASLt's workspace, graphs.
constexpr size_t kCudaReserve = size_t{640} << 20;
// For a plan without a GPU: one of 80 GB, as an H100 shows it.
constexpr size_t kPlannedMemory = size_t{79} << 30;

// What a plan may take of the device.
size_t memory_budget(const Device& device) {
    const size_t free = device.is_planned() ? kPlannedMemory : device.free_memory();
    return free - std::min(free, kCudaReserve);
}

// The largest micro-batch of at most `most` rows that divides the step and fits `budget`; 0 if none does.
int64_t largest_micro_batch(Config config, const Device& device, int64_t most, size_t budget) {
    const int64_t rows = config.training.batch_tokens / config.model.context_length;
    for (int64_t size = std::min(rows, most); size >= 1; --size) {
        if (rows % size != 0 || size * config.model.context_length > INT32_MAX) continue;
        config.training.micro_batch_size = size;
        if (TrainingPlan(config, device).total_bytes() <= budget) return size;
    }
    return 0;
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
      micro_step_{{{DeviceGraph(device), DeviceGraph(device)}, {DeviceGraph(device), DeviceGraph(device)}}},
      update_(device),
      model(device, config.model, compute_type(config.training.precision, device),
            config.training.micro_batch_size * config.model.context_length, config.model.context_length,
            config.training.recompute, config.training.z_loss, true, &memory_, config.training.attention_options()),
      optimizer(model, &memory_),
      // Evaluation and samples fill them; training's batches are the loader's.
      batch(
          device, model.max_tokens(), &memory_,
          config.data.val.empty() && config.eval.hellaswag.empty() && config.sample.every == 0 ? nullptr : host_plan()),
      loader_ring(Loader::kBatches),
      step(device, "step", &memory_),
      eval_step(device, "eval_step", &memory_),
      writer(config, model, optimizer, host_plan()) {
    for (size_t i = 0; i < loader_ring.size(); ++i)
        loader_ring[i].plan(join("loader.", i), model.max_tokens(), host_plan());
    if (config.sample.every > 0)
        generator = std::make_unique<Generator>(model, batch, config.model.context_length, &memory_);
}

void TrainingPlan::check_host_memory(const AvailableMemory& available) const {
    const size_t bytes = device_.is_cpu() ? memory_.total_bytes() : host_memory_.total_bytes();
    REQUIRE(bytes <= available.bytes, "the plan needs ", format_bytes(bytes),
            device_.is_cpu() ? " of memory, " : " of page-locked host memory, ", available.describe(),
            device_.is_cpu()
                ? ": use a smaller training.micro_batch_size, training.recompute = \"block\", or a smaller model"
                : ": set a lower checkpoint.host_memory (0: none)");
}

void TrainingPlan::check_memory() const {
    check_host_memory(available_memory());
    if (device_.is_cpu()) return;
    const size_t budget = memory_budget(device_);
    if (total_bytes() <= budget) return;
    const int64_t fits = largest_micro_batch(config_, device_, config_.training.micro_batch_size - 1, budget);
    throw UserError(join("the plan needs ", format_bytes(total_bytes()), " of ", device_.name(), "'s memory, ",
                         format_bytes(budget), " can be used: ",
                         fits > 0 ? join("use training.micro_batch_size ", fits, ", the largest that fits")
                                  : "use training.recompute = \"block\", or a smaller model"));
}

void TrainingPlan::allocate() {
    check_memory();
    allocation_ = memory_.allocate(device_);
    if (!device_.is_cpu()) host_allocation_ = host_memory_.allocate_host(device_);
}

void TrainingPlan::warm_up(const std::vector<MatmulChoice>& record) {
    if (device_.is_cpu()) return;
    const std::string machine = matmul_machine(device_);
    std::string note;
    prefer_matmul_choices(device_, record, MatmulSource::record);
    if (config_.training.tune) prefer_matmul_choices(device_, read_matmul_cache(machine, &note), MatmulSource::cache);
    if (!note.empty()) std::printf("note: %s\n", note.c_str());
    set_matmul_tuning(device_, config_.training.tune ? MatmulTuning::timed : MatmulTuning::first_choice);

    batch.next();
    HostBatch& blank = loader_ring[0];
    blank.resize(model.max_tokens());
    Device::cpu().zero(blank.all());
    const MicroBatch micro_batch = batch.upload(blank);
    // A step's first micro-batch and, if there are more, one that adds: their products are not the same.
    for (const bool accumulate : {false, true}) {
        if (accumulate && num_micro_steps() == 1) break;
        model.forward(micro_batch, step.get(), accumulate);
        model.backward(micro_batch, accumulate);
    }
    optimizer.update(model, step.get());
    device_.zero(Tensor::contiguous(allocation_.get(), DType::u8, {static_cast<int64_t>(memory_.total_bytes())},
                                    device_.kind()));
    device_.synchronize();

    set_matmul_tuning(device_, MatmulTuning::first_choice);
    const MatmulCounts counts = matmul_counts(device_);
    std::printf(
        "products: algorithms of %ld from the run's record, %ld from the machine's cache, %ld timed in %.1f s, "
        "%ld of the library's choice\n",
        static_cast<long>(counts.from_record), static_cast<long>(counts.from_cache), static_cast<long>(counts.timed),
        counts.tuning_seconds, static_cast<long>(counts.first_choice));
    if (counts.timed == 0) return;
    write_matmul_cache(machine, matmul_choices(device_), &note);
    if (!note.empty()) std::printf("note: %s\n", note.c_str());
}

void TrainingPlan::begin_step(const StepSettings& settings) {
    step_begin(device_, step.get(), settings);
    accumulates_ = false;
}

void TrainingPlan::run(DeviceGraph* graph, const std::function<void()>& work) {
    if (uses_graphs_)
        graph->run(work);
    else
        work();
}

void TrainingPlan::micro_step(const HostBatch& host) {
    const MicroBatch micro_batch = batch.upload(host);
    run(&micro_step_[static_cast<size_t>(batch.slot())][accumulates_ ? 1 : 0], [&] {
        model.forward(micro_batch, step.get(), accumulates_);
        model.backward(micro_batch, accumulates_);
    });
    accumulates_ = true;
}

void TrainingPlan::update() {
    writer.wait_until_copied();
    run(&update_, [&] { optimizer.update(model, step.get()); });
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
    text += line("attention: causal, %s%s, %ld query / %ld kv heads of %ld, documents %s",
                 positions[static_cast<int>(m.position)], stretched.c_str(), heads, kv_heads,
                 static_cast<long>(m.head_dim), config_.data.mask_documents ? "masked" : "not masked");
    const AttentionChoice attention = choose_attention(device_, model.dtype(), m.head_dim, t.attention_options());
    text += line("attention kernel: %s, since %s%s", name_of(attention.kernel), attention.reason.c_str(),
                 attention.kernel != AttentionKernel::sm80 && attention.kernel != AttentionKernel::sm90 ? ""
                 : t.deterministic ? "; gradients of queries in one order"
                                   : "; gradients of queries in any order");
    text += line("optimizer: AdamW, lr %.3g (warm-up %ld steps, then %s to %.3g), betas %g and %g, weight decay %g, %s",
                 o.lr, static_cast<long>(s.warmup_steps), name_of_choice(s.type),
                 s.type == ScheduleType::constant ? o.lr : o.lr * s.final_lr_fraction, o.beta1, o.beta2, o.weight_decay,
                 o.grad_clip > 0 ? join("gradients clipped at ", o.grad_clip).c_str() : "no clipping");
    text += line("step: %ld micro-batch%s of %ld x %ld tokens, %s, recompute %s", static_cast<long>(num_micro_steps()),
                 num_micro_steps() == 1 ? "" : "es", static_cast<long>(t.micro_batch_size),
                 static_cast<long>(m.context_length), name_of(model.dtype()), name_of_choice(t.recompute));
    text += line("checkpoints: every %ld steps, the newest %ld kept%s, %s", static_cast<long>(config_.checkpoint.every),
                 static_cast<long>(config_.checkpoint.keep),
                 config_.checkpoint.keep_every > 0
                     ? join(" and those of every ", config_.checkpoint.keep_every, " steps").c_str()
                     : "",
                 writer.describe().c_str());
    if (!device_.is_cpu()) text += line("device: %s", device_.name().c_str());
    if (device_.is_cpu()) text += line("device: CPU, %d threads, %s", omp_get_max_threads(), blas_description());
    return text;
}

std::string TrainingPlan::memory_table() const {
    std::string text = "memory plan:\n" + memory_.table();
    if (!device_.is_cpu() && host_memory_.total_bytes() > 0) text += "host memory plan:\n" + host_memory_.table();
    return text;
}

void resolve_micro_batch(Config* config, const Device& device) {
    if (device.is_cpu() || !config->training.micro_batch_is_auto) return;
    const size_t budget = memory_budget(device);
    const int64_t size = largest_micro_batch(*config, device, INT64_MAX, budget);
    if (size == 0) {
        config->training.micro_batch_size = 1;
        throw UserError(join("a micro-batch of one row needs ",
                             format_bytes(TrainingPlan(*config, device).total_bytes()), " of ", device.name(),
                             "'s memory, ", format_bytes(budget),
                             " can be used: use training.recompute = \"block\", or a smaller model"));
    }
    config->training.micro_batch_size = size;
}

}  // namespace ingot
