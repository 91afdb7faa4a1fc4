// The field lists are the only place that knows a config's keys, their meaning and range, and whether a resumed run
// may change them. Only the files that make up the config include this; others include config.h.
//
// A visitor has four members:
//   required(name, value, field)   must be given
//   field(name, value, field)      has the default that stands in config.h
//   derived(name, value, field)    has a default that depends on other fields; null means that default
//   section(name, value, is_required)
#pragma once

#include <limits>
#include <type_traits>
#include <utility>

#include "src/config/config.h"

namespace ingot {

// ---- Names of enum values ----

template <typename E>
using NamedValue = std::pair<const char*, E>;
// Each enum of a config has a specialization: the array of its names and values.
template <typename E>
constexpr bool enum_names = false;
template <>
inline constexpr NamedValue<Position> enum_names<Position>[] = {
    {"alibi", Position::alibi}, {"rope", Position::rope}, {"none", Position::none}};
template <>
inline constexpr NamedValue<RopeScalingType> enum_names<RopeScalingType>[] = {{"none", RopeScalingType::none},
                                                                              {"llama3", RopeScalingType::llama3}};
template <>
inline constexpr NamedValue<Recompute> enum_names<Recompute>[] = {
    {"none", Recompute::none}, {"light", Recompute::light}, {"block", Recompute::block}};
template <>
inline constexpr NamedValue<ScheduleType> enum_names<ScheduleType>[] = {{"constant", ScheduleType::constant},
                                                                        {"linear", ScheduleType::linear},
                                                                        {"cosine", ScheduleType::cosine},
                                                                        {"wsd", ScheduleType::wsd}};
template <>
inline constexpr NamedValue<EotSide> enum_names<EotSide>[] = {
    {"auto", EotSide::automatic}, {"start", EotSide::start}, {"end", EotSide::end}};
template <>
inline constexpr NamedValue<DataFormat> enum_names<DataFormat>[] = {{"auto", DataFormat::automatic},
                                                                    {"llmc", DataFormat::llmc},
                                                                    {"raw", DataFormat::raw},
                                                                    {"megatron", DataFormat::megatron}};
template <>
inline constexpr NamedValue<RawType> enum_names<RawType>[] = {
    {"auto", RawType::automatic}, {"uint16", RawType::uint16}, {"uint32", RawType::uint32}};
template <>
inline constexpr NamedValue<Packing> enum_names<Packing>[] = {{"stream", Packing::stream},
                                                              {"best_fit", Packing::best_fit}};
template <>
inline constexpr NamedValue<NonFinite> enum_names<NonFinite>[] = {{"skip", NonFinite::skip}, {"stop", NonFinite::stop}};
template <>
inline constexpr NamedValue<DeviceChoice> enum_names<DeviceChoice>[] = {
    {"auto", DeviceChoice::automatic}, {"cpu", DeviceChoice::cpu}, {"cuda", DeviceChoice::cuda}};
template <>
inline constexpr NamedValue<Precision> enum_names<Precision>[] = {{"auto", Precision::automatic},
                                                                  {"fp32", Precision::fp32},
                                                                  {"bf16", Precision::bf16},
                                                                  {"fp16", Precision::fp16},
                                                                  {"fp8", Precision::fp8}};
template <>
inline constexpr NamedValue<AttentionRequest> enum_names<AttentionRequest>[] = {{"auto", AttentionRequest::automatic},
                                                                                {"simt", AttentionRequest::simt},
                                                                                {"sm80", AttentionRequest::sm80},
                                                                                {"sm90", AttentionRequest::sm90}};

// Returns the name that a config uses.
template <typename E>
const char* name_of_choice(E choice) {
    for (const auto& [name, value] : enum_names<E>)
        if (value == choice) return name;
    return "?";
}

// ---- The lists ----

struct Field {
    OnResume on_resume;
    const char* help;  // one sentence, for the schema
    // Bounds of a number, inclusive; low_is_open excludes `low` itself.
    double low = -std::numeric_limits<double>::infinity(), high = std::numeric_limits<double>::infinity();
    bool low_is_open = false;
    bool takes_auto = false;  // "auto" is read as null
};

// A field or section with its path ("optimizer.lr", "optimizer").
struct NamedField {
    std::string path;
    OnResume on_resume;
    bool is_section;
};
std::vector<NamedField> all_fields();

constexpr double kManySteps = 1099511627776.0;  // 2^40
constexpr OnResume kFixed = OnResume::fixed, kFromNow = OnResume::from_now, kFree = OnResume::free;

template <typename Visitor>
void visit_fields(Visitor& v, RopeScaling& c) {
    v.field("type", c.type, {kFixed, "How RoPE's wavelengths are stretched: not at all, or as in Llama 3.1"});
    v.field("factor", c.factor, {kFixed, "llama3: how much the longest wavelengths are stretched", 1, 1e6});
    v.field("low_freq_factor", c.low_freq_factor,
            {kFixed, "llama3: wavelengths above original_context_length / this are stretched in full", 0, 1e6, true});
    v.field("high_freq_factor", c.high_freq_factor,
            {kFixed, "llama3: wavelengths below original_context_length / this stay as they are", 0, 1e6, true});
    v.field("original_context_length", c.original_context_length,
            {kFixed, "llama3: the context that the model was first trained on", 1, 16777216});
}

// The bounds of sizes lie far above any model that fits a machine: products of sizes must stay within 64 bits.
template <typename Visitor>
void visit_fields(Visitor& v, ModelConfig& c) {
    v.required("n_layers", c.n_layers, {kFixed, "Transformer layers (L)", 1, 1000});
    v.required("d_model", c.d_model, {kFixed, "Width of the residual stream (C)", 1, 131072});
    v.required("n_heads", c.n_heads, {kFixed, "Query heads (NH)", 1, 1024});
    v.derived("n_kv_heads", c.n_kv_heads,
              {kFixed, "Key/value heads (NKV), a divisor of n_heads; null: n_heads", 1, 1024});
    v.derived("head_dim", c.head_dim, {kFixed, "Size of a head (HS), even; null: d_model / n_heads", 2, 256});
    v.derived("d_ff", c.d_ff, {kFixed, "Hidden width of the MLP (F); null: 8/3 d_model rounded up to 64", 1, 524288});
    v.required("context_length", c.context_length, {kFixed, "Tokens of a row (T)", 1, 16777216});
    v.derived(
        "vocab_size", c.vocab_size,
        {kFixed, "Size of the tokenizer's vocabulary (V); null: what meta.json beside data.train says", 2, 16777216});
    v.field("position", c.position, {kFixed, "How positions enter: ALiBi (Press 2022), RoPE (Su 2021) or not at all"});
    v.field("rope_theta", c.rope_theta, {kFixed, "Base of RoPE's wavelengths", 1, 1e12});
    v.section("rope_scaling", c.rope_scaling, false);
    v.field("tie_embeddings", c.tie_embeddings, {kFixed, "Whether the head uses the embedding's weights"});
    v.field("qkv_bias", c.qkv_bias, {kFixed, "Whether queries, keys and values have a bias, as in Qwen2"});
    v.field("qk_norm", c.qk_norm, {kFixed, "RMSNorm over each query and key head"});
    v.field("norm_eps", c.norm_eps, {kFixed, "Epsilon of RMSNorm", 0, 0.1, true});
    v.field("init_std", c.init_std, {kFixed, "Standard deviation of initial weights", 0, 10, true});
    v.derived(
        "init_from", c.init_from,
        {kFree, "Folder of a checkpoint whose weights a new run starts from (./train import writes one); null: none"});
}

// An entry is an object in a list, not a section.
template <typename Visitor>
void visit_fields(Visitor& v, DataEntry& c) {
    v.required("path", c.path, {kFromNow, "Path or glob of token files"});
    v.derived(
        "weight", c.weight,
        {kFromNow, "Share of the rows, relative to the other entries; all entries have one or none", 0, 1e9, true});
    v.field("format", c.format, {kFromNow, "auto: megatron beside an .idx, else llmc, which its files say themselves"});
    v.field("dtype", c.dtype, {kFromNow, "Type of raw ids; other formats say it themselves (auto)"});
    v.derived("mask", c.mask, {kFromNow, "Path or glob of mask files: a byte a token, 0: no target; null: none"});
}

template <typename Visitor>
void visit_fields(Visitor& v, DataConfig& c) {
    v.required("train", c.train, {kFromNow, "Tokens to train on: paths, globs, or entries with weight and format"});
    v.field("val", c.val, {kFromNow, "Held-out tokens: paths, globs, or entries; none: no evaluation"});
    v.field("packing", c.packing,
            {kFromNow, "stream: documents one after another, cut into rows; best_fit: whole documents where they fit"});
    v.field("mask_documents", c.mask_documents, {kFromNow, "Whether a token sees its own document alone"});
    v.derived(
        "eot_token", c.eot_token,
        {kFromNow,
         "Id of the end-of-text token; null: what meta.json beside data.train says, else every shard is one document",
         -1, 16777215});
    v.field("eot", c.eot,
            {kFromNow,
             "Whether EOT closes (end) or opens (start) a document; auto: as meta.json says, else by the first token"});
    v.field("shuffle", c.shuffle, {kFromNow, "Whether documents and rows come in another order each epoch"});
    v.derived(
        "tokenizer", c.tokenizer,
        {kFree,
         "\"bytes\", or the path of a tokenizer.json; null: what meta.json beside data.train says, else no text"});
}

template <typename Visitor>
void visit_fields(Visitor& v, TrainingConfig& c) {
    v.field("device", c.device, {kFromNow, "Where to train; auto: a CUDA device if one can train, else the CPU"});
    v.field("precision", c.precision,
            {kFromNow,
             "Type of activations and products; auto: bf16 on CUDA, fp32 on the CPU; fp8: bf16, but for the layers' "
             "products in training (GPUs of sm_89 and up)"});
    v.derived("steps", c.steps, {kFromNow, "Optimizer steps of the whole run; or give epochs", 1, kManySteps});
    v.derived("epochs", c.epochs, {kFromNow, "Times to read the training data, instead of steps", 0, 1e6, true});
    v.derived("batch_tokens", c.batch_tokens,
              {kFromNow, "Tokens of an optimizer step; null: 32 rows", 1, 2147483648.0});
    v.derived("micro_batch_size", c.micro_batch_size,
              {.on_resume = kFromNow,
               .help = "Rows computed at a time; auto: what fits and divides the step (CPU: up to 8)",
               .low = 1,
               .high = 1048576,
               .takes_auto = true});
    v.field("recompute", c.recompute,
            {kFree, "What backward computes again to save memory: none, light (norms and SwiGLU), block"});
    v.field(
        "tune", c.tune,
        {kFromNow, "CUDA: whether products take the fastest algorithm that was timed, or the library's first choice"});
    v.field("attention", c.attention,
            {kFromNow,
             "CUDA: kernel of attention; auto: sm90 for bf16 and fp16 on Hopper with heads of 64 or 128, else sm80 "
             "(tensor cores of any GPU), simt for fp32"});
    v.field("deterministic", c.deterministic,
            {kFromNow, "Whether all sums have one order, so that the same run gives the same bits"});
    v.field("z_loss", c.z_loss, {kFromNow, "Weight of the squared log-normaliser in the loss", 0, 1});
    v.field("on_nonfinite", c.on_nonfinite, {kFree, "What a step with a non-finite loss or gradient does"});
    v.field("max_skipped_steps", c.max_skipped_steps,
            {kFree, "Skipped steps in a row that end the run", 0, 1073741824});
    v.derived("max_minutes", c.max_minutes,
              {kFree, "Minutes after which this process saves and stops with code 75", 0, 1e7, true});
}

template <typename Visitor>
void visit_fields(Visitor& v, OptimizerConfig& c) {
    v.field("lr", c.lr, {kFromNow, "Peak learning rate", 0, 10});
    v.field("beta1", c.beta1, {kFromNow, "AdamW: decay of the first moment", 0, 0.99999});
    v.field("beta2", c.beta2, {kFromNow, "AdamW: decay of the second moment", 0, 0.9999999});
    v.field("eps", c.eps, {kFromNow, "AdamW: epsilon", 0, 1, true});
    v.field("weight_decay", c.weight_decay,
            {kFromNow, "AdamW: decay of all matrices, times the learning rate", 0, 100});
    v.field("grad_clip", c.grad_clip, {kFromNow, "Largest norm of the gradient; 0: no clipping", 0, 1e6});
}

template <typename Visitor>
void visit_fields(Visitor& v, ScheduleConfig& c) {
    v.field("type", c.type, {kFromNow, "Shape of the learning rate after the warm-up"});
    v.derived("warmup_steps", c.warmup_steps,
              {kFromNow, "Steps of linear warm-up; null: steps / 20, at most 700", 0, kManySteps});
    v.field("final_lr_fraction", c.final_lr_fraction,
            {kFromNow, "Learning rate of the last step, as a part of the peak", 0, 1});
    v.derived("decay_steps", c.decay_steps,
              {kFromNow, "wsd: how many of the last steps decay; null: steps / 5", 0, kManySteps});
}

template <typename Visitor>
void visit_fields(Visitor& v, EvalConfig& c) {
    v.field("every", c.every, {kFree, "Steps between evaluations; 0: at the end alone", 0, kManySteps});
    v.field("tokens", c.tokens, {kFromNow, "Tokens of an evaluation, at most those of data.val", 1, kManySteps});
    v.derived("hellaswag", c.hellaswag,
              {kFree, "HellaSwag, as JSONL or in llm.c's binary format: its accuracy is measured too; null: none"});
}

template <typename Visitor>
void visit_fields(Visitor& v, SampleConfig& c) {
    v.field("every", c.every, {kFree, "Steps between samples of text; 0: never", 0, kManySteps});
    v.field("prompts", c.prompts, {kFree, "What the samples begin with"});
    v.field("tokens", c.tokens, {kFree, "Tokens of a sample", 1, 1048576});
    v.field("temperature", c.temperature, {kFree, "0: always the likeliest token; 1: as the model says", 0, 100});
}

template <typename Visitor>
void visit_fields(Visitor& v, CheckpointConfig& c) {
    v.field("every", c.every, {kFree, "Steps between checkpoints", 1, kManySteps});
    v.field("keep", c.keep, {kFree, "How many of the newest are kept", 1, 1048576});
    v.field("keep_every", c.keep_every,
            {kFree, "Those at multiples of this step are kept for good; 0: none", 0, kManySteps});
    v.field("async", c.async, {kFree, "Whether training goes on while a checkpoint is written"});
    v.derived("host_memory", c.host_memory,
              {.on_resume = kFree,
               .help = "Bytes for the snapshot that an asynchronous save is written from; auto: all of it, if it fits",
               .low = 0,
               .high = 1e15,
               .takes_auto = true});
}

template <typename Visitor>
void visit_fields(Visitor& v, DistributedConfig& c) {
    v.field(
        "zero", c.zero,
        {kFree, "Several ranks: 1: each keeps a shard of the optimizer state (ZeRO stage 1); 0: each keeps all", 0, 1});
    v.field("timeout_seconds", c.timeout_seconds,
            {kFree, "Seconds without a sign of life after which a rank counts as dead", 1, 86400});
}

template <typename Visitor>
void visit_fields(Visitor& v, LogConfig& c) {
    v.field("every", c.every, {kFree, "Steps between lines on the terminal", 1, kManySteps});
    v.field("jsonl", c.jsonl, {kFree, "Whether log.jsonl is written, one line a step"});
}

template <typename Visitor>
void visit_fields(Visitor& v, Config& c) {
    v.derived("name", c.name, {kFree, "Name of the run; null: the file's"});
    v.derived("run_dir", c.run_dir, {kFree, "Folder of the run; null: runs/NAME"});
    v.field("seed", c.seed, {kFixed, "Seed of weights, shuffling and samples", 0, 9223372036854775807.0});
    v.section("model", c.model, true);
    v.section("data", c.data, true);
    v.section("training", c.training, true);
    v.section("optimizer", c.optimizer, false);
    v.section("schedule", c.schedule, false);
    v.section("eval", c.eval, false);
    v.section("sample", c.sample, false);
    v.section("checkpoint", c.checkpoint, false);
    v.section("distributed", c.distributed, false);
    v.section("log", c.log, false);
}

}  // namespace ingot
