#include "src/train/run_start.h"

#include <omp.h>

#include <cstdio>
#include <filesystem>
#include <functional>

#include "kernels/core/blas.h"
#include "kernels/core/check.h"
#include "kernels/fp8.h"
#include "src/base/text.h"
#include "src/config/fields.h"
#include "src/config/notes.h"
#include "src/model/device_choice.h"
#include "src/model/generator.h"

namespace ingot {

namespace fs = std::filesystem;

namespace {

// What the first rank finds out alone. Its error is not the others': they wait here, until its end is a PeerError.
std::string of_first(Ranks* ranks, const std::function<std::string()>& work) {
    return ranks->from_first(ranks->is_first() ? work() : "");
}

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

// Says what is really active, one line each: model, FLOPs, attention, optimizer, step, checkpoints, device.
std::string describe_features(const Config& config, const TrainingPlan& plan) {
    const Model& model = plan.model;
    const Device& device = plan.device();
    const ModelConfig& m = config.model;
    const TrainingConfig& t = config.training;
    const OptimizerConfig& o = config.optimizer;
    const ScheduleConfig& s = config.schedule;
    const double parameters = static_cast<double>(model.table().num_parameters());
    const long heads = static_cast<long>(m.n_heads), kv_heads = static_cast<long>(m.n_kv_heads);
    // Forward and backward: 6 FLOPs per parameter of a GEMM, and 6 per query, visible key and element of a head
    // twice (scores, values), half of the keys being visible to a causal row of one document.
    const double gemm_flops = 6.0 * static_cast<double>(model.table().num_matmul_parameters());
    const double attention_flops =
        6.0 * static_cast<double>(m.n_layers * m.n_heads * m.head_dim) * static_cast<double>(m.context_length + 1);

    std::string text =
        line("model: %.2fM parameters, %ld layers, width %ld, MLP %ld, context %ld, vocabulary %ld%s%s%s",
             parameters / 1e6, static_cast<long>(m.n_layers), static_cast<long>(m.d_model), static_cast<long>(m.d_ff),
             static_cast<long>(m.context_length), static_cast<long>(m.vocab_size),
             m.tie_embeddings ? ", tied embeddings" : "", m.qkv_bias ? ", QKV bias" : "", m.qk_norm ? ", QK-norm" : "");
    text += line("compute: %.3g MFLOPs per token in GEMMs, up to %.3g in attention", gemm_flops / 1e6,
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

// From this width on fp8 was measured to be faster than bf16 (docs/lab/fp8.md).
constexpr int64_t kFp8Width = 512;

void check_fp8(const Config& config, const Device& device, const Ranks& ranks) {
    if (config.training.precision != Precision::fp8) return;
    REQUIRE(supports_fp8(device), "training.precision is \"fp8\", which needs a GPU of compute capability 8.9 or more ",
            "(Ada, Hopper, Blackwell), and this is ", device.name(), ": set training.precision to \"bf16\"");
    REQUIRE(ranks.size() == 1, "training.precision \"fp8\" trains on one GPU, and this run has ", ranks.size(),
            " ranks: set training.precision to \"bf16\", or use --gpus 1");
}

}  // namespace

Device training_device(const Config& config, const Ranks& ranks, const Console& console) {
    const DeviceChoice wanted = config.training.device;
    const auto [device, reason] = choose_device(wanted == DeviceChoice::cuda  ? "cuda"
                                                : wanted == DeviceChoice::cpu ? "cpu"
                                                                              : "auto",
                                                ranks.local_rank());
    if (!reason.empty()) console.line("device: ", device.name(), ", since ", reason);
    REQUIRE(!device.is_cpu() || config.training.precision == Precision::automatic ||
                config.training.precision == Precision::fp32,
            "training.precision is \"", name_of_choice(config.training.precision),
            "\", but the CPU computes in fp32: set training.precision to \"auto\"");
    check_fp8(config, device, ranks);
    return device;
}

std::optional<Checkpoint> checkpoint_to_resume(const std::string& run_dir, CheckpointStore* store,
                                               const std::string& resume, Ranks* ranks) {
    const bool takes_path = resume != "none" && resume != "auto";
    std::vector<std::string> existing;
    const std::string from = of_first(ranks, [&]() -> std::string {
        store->remove_unfinished();
        existing = list_checkpoints(run_dir);
        REQUIRE(existing.empty() || resume != "none", run_dir, " holds a checkpoint (", existing.back(),
                "): go on with --resume auto, or start anew with another name or run_dir");
        if (takes_path) return resume;
        return existing.empty() ? "" : run_dir;
    });
    if (from.empty()) return std::nullopt;
    Checkpoint checkpoint = open_checkpoint(from, true, ranks);
    of_first(ranks, [&] {
        REQUIRE(checkpoint.moments != nullptr, checkpoint.folder,
                " has weights alone, no optimizer state to go on with: start a new run from it, with --set "
                "model.init_from=",
                checkpoint.folder);
        const bool is_own = store->holds(checkpoint.folder);
        REQUIRE(existing.empty() || is_own, run_dir, " holds checkpoints of its own, and ", resume,
                " belongs to another run: start with another name or run_dir");
        if (is_own) store->go_on_from(checkpoint.folder, checkpoint.manifest);
        return "";
    });
    return checkpoint;
}

std::optional<Checkpoint> checkpoint_to_start_from(const Config& config, Ranks* ranks) {
    const std::string& folder = config.model.init_from;
    if (folder.empty()) return std::nullopt;
    of_first(ranks, [&] {
        std::error_code error;
        const bool is_checkpoint = fs::exists(folder + "/manifest.json", error) || !list_checkpoints(folder).empty();
        const bool is_huggingface = fs::exists(folder + "/model.safetensors", error) ||
                                    fs::exists(folder + "/model.safetensors.index.json", error);
        REQUIRE(is_checkpoint || !is_huggingface, "model.init_from is ", folder,
                ", a model of Hugging Face: import it with ./train import --from ", folder,
                " --output DIR, and give that DIR");
        return "";
    });
    Checkpoint checkpoint;
    try {
        checkpoint = open_checkpoint(folder, false, ranks);
    } catch (const UserError& fault) {
        throw UserError(join("model.init_from: ", fault.what()));
    }
    of_first(ranks, [&] {
        for (const ConfigChange& change : config_changes(config_to_json(checkpoint.manifest.config), config)) {
            const bool is_of_model = change.path.rfind("model.", 0) == 0 && change.path != "model.context_length" &&
                                     change.path != "model.init_from" && change.path != "model.init_std";
            REQUIRE(!is_of_model, "model.init_from: ", checkpoint.folder, " has ", change.path, " = ",
                    excerpt(change.then, 200), ", the config says ", excerpt(change.now, 200),
                    ": a run that starts from its weights computes as it does, set ", change.path, " to ",
                    excerpt(change.then, 200));
        }
        return "";
    });
    return checkpoint;
}

void print_start(const Checkpoint& initial, const Config& config, const Tokenizer* tokenizer, const Console& console) {
    const Manifest& manifest = initial.manifest;
    console.line("model.init_from: the weights of ", printable_line(initial.folder), " (step ", manifest.step,
                 "), with a new optimizer");
    const int64_t then = manifest.config.model.context_length, now = config.model.context_length;
    if (then != now) console.line("model.init_from: context_length is ", now, ", the checkpoint has ", then);
    const bool is_bytes = manifest.config.data.tokenizer == kBytesTokenizer;
    if (tokenizer != nullptr && (is_bytes || !initial.tokenizer_json.empty()) &&
        tokenizer->source() != initial.tokenizer_json)
        print_warning(join("model.init_from: data.tokenizer is another than that of ", initial.folder,
                           ": its ids may mean other text than those that the weights have learnt"));
}

void print_notes(const Config& config, const Device& device, const Console& console) {
    for (const std::string& note : settings_without_effect(config, device.is_cpu())) console.line("note: ", note);
    if (config.training.precision == Precision::fp8 && config.model.d_model < kFp8Width)
        console.line("note: training.precision \"fp8\" may be slower than \"bf16\" here: model.d_model is ",
                     config.model.d_model, ", and it was measured to be faster from ", kFp8Width, " on");
}

void print_plan(const Config& config, const TrainingPlan& plan, const Console& console) {
    console.text(describe_features(config, plan) + plan.memory_table());
}

void print_data(const TrainingData& data, const HellaSwag* hellaswag, const Console& console) {
    console.text(data.describe());
    if (hellaswag != nullptr) console.line("hellaswag: ", hellaswag->describe());
}

std::unique_ptr<Tokenizer> training_tokenizer(const Config& config) {
    if (config.data.tokenizer.empty()) return nullptr;
    std::unique_ptr<Tokenizer> tokenizer = open_tokenizer(config.data.tokenizer);
    check_tokenizer(*tokenizer, config);
    return tokenizer;
}

std::unique_ptr<HellaSwag> training_hellaswag(const Config& config, Tokenizer* tokenizer) {
    if (config.eval.hellaswag.empty()) return nullptr;
    return std::make_unique<HellaSwag>(config.eval.hellaswag, "eval.hellaswag", tokenizer, config.model);
}

int dry_run(Config config, Ranks* ranks, const Console& console) {
    std::string why;
    const bool is_planned = config.training.device == DeviceChoice::cuda && Device::num_cuda_devices(&why) == 0;
    const Device device = is_planned ? Device::planned_cuda() : training_device(config, *ranks, console);
    check_fp8(config, device, *ranks);
    print_notes(config, device, console);
    if (const std::optional<Checkpoint> initial = checkpoint_to_start_from(config, ranks))
        print_start(*initial, config, nullptr, console);
    try {
        const std::unique_ptr<Tokenizer> tokenizer = training_tokenizer(config);
        const std::unique_ptr<HellaSwag> hellaswag = training_hellaswag(config, tokenizer.get());
        const TrainingData data(config);
        data.require_targets();
        print_data(data, hellaswag.get(), console);
        if (!config.training.steps) resolve_steps(&config, data.epoch_tokens());
    } catch (const UserError& error) {
        if (!config.training.steps)
            throw UserError(join(error.what(), " (training.epochs needs the data; training.steps would not)"));
        console.line("data: a run would stop here: ", error.what());
    }
    resolve_micro_batch(&config, device, ranks);
    const TrainingPlan plan(config, device, ranks);
    print_plan(config, plan, console);
    if (!device.is_cpu())
        console.line("CUDA itself and cuBLASLt take about 0.6 GiB more",
                     ranks->size() > 1 ? ", and NCCL its own buffers" : "");
    plan.check_memory();
    console.line("nothing was started: this was --dry-run");
    return kExitDone;
}

}  // namespace ingot
