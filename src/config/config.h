// The configuration of a run. One field list per section (fields.h) drives reading, --set, the unknown-key error,
// ranges, the schema for editors, the resolved config in the run folder, and what a resumed run may change.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"

namespace ingot {

enum class Position { alibi, rope, none };
enum class RopeScalingType { none, llama3 };
enum class Recompute {
    none,
    light,
    block
};  // light: norms and SwiGLU are computed again in backward; block: all of a layer
enum class ScheduleType { constant, linear, cosine, wsd };
enum class EotSide { automatic, start, end };  // whether EOT opens or closes a document
enum class DataFormat { automatic, llmc, raw, megatron };
enum class RawType { automatic, uint16, uint32 };  // automatic: the format determines it
enum class Packing { stream, best_fit };
enum class NonFinite { skip, stop };
enum class DeviceChoice { automatic, cpu, cuda };
enum class Precision { automatic, fp32, bf16, fp16, fp8 };

// How RoPE's wavelengths are stretched for contexts longer than the model was trained on (kernels/rope.h).
struct RopeScaling {
    RopeScalingType type = RopeScalingType::none;
    double factor = 1, low_freq_factor = 1, high_freq_factor = 4;
    int64_t original_context_length = 8192;
    bool operator==(const RopeScaling&) const = default;
};

// A field that has no value in some runs is a std::optional. Sizes are plain numbers, since every run has them: they
// are 0 only until read_config() has filled them in, and no size may be 0.
struct ModelConfig {
    int64_t n_layers = 0, d_model = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0, d_ff = 0;
    int64_t context_length = 0, vocab_size = 0;
    Position position = Position::alibi;
    double rope_theta = 10000;
    RopeScaling rope_scaling;
    bool tie_embeddings = true;
    bool qkv_bias = false;
    bool qk_norm = false;
    double norm_eps = 1e-5;
    double init_std = 0.02;
    std::string init_from;  // folder of a checkpoint whose weights a new run starts from; empty: draw them

    int64_t qkv_width() const { return (n_heads + 2 * n_kv_heads) * head_dim; }  // of the fused QKV activation
    // VP: with a multiple of 128 columns every GEMM on the GPU is aligned. Padded logits are never sampled or exported.
    int64_t padded_vocab_size() const { return (vocab_size + 127) / 128 * 128; }
};

// An entry of data.train or data.val, written as an object, or as a string that is the path.
struct DataEntry {
    std::string path;              // or a glob
    std::optional<double> weight;  // share of the rows, relative to the other entries
    DataFormat format = DataFormat::automatic;
    RawType dtype = RawType::automatic;  // only given for raw ids
    std::string mask;                    // path or glob of mask files, one per token file; empty: none
    bool operator==(const DataEntry&) const = default;
};

struct DataConfig {
    std::vector<DataEntry> train, val;
    Packing packing = Packing::stream;
    bool mask_documents = true;
    std::optional<int64_t> eot_token;  // without one, every shard is one document
    EotSide eot = EotSide::automatic;
    bool shuffle = true;
    std::string tokenizer;  // "bytes", the path of a tokenizer.json, or empty: no text
};

struct TrainingConfig {
    DeviceChoice device = DeviceChoice::automatic;
    Precision precision = Precision::automatic;
    std::optional<int64_t> steps;  // resolve_steps() computes them from epochs
    std::optional<double> epochs;  // instead of steps
    int64_t batch_tokens = 0;
    int64_t micro_batch_size = 0;      // rows
    bool micro_batch_is_auto = false;  // the config has "auto" or nothing: a GPU may take more than the default
    Recompute recompute = Recompute::none;
    bool tune = true;  // CUDA: time the GEMM algorithms
    AttentionRequest attention = AttentionRequest::automatic;
    bool deterministic = true;  // the order of additions never depends on which block finishes first
    double z_loss = 0;
    NonFinite on_nonfinite = NonFinite::skip;
    int64_t max_skipped_steps = 20;
    std::optional<double> max_minutes;

    AttentionOptions attention_options() const { return {attention, deterministic}; }
};

struct OptimizerConfig {
    double lr = 6e-4, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1, grad_clip = 1.0;
};

struct ScheduleConfig {
    ScheduleType type = ScheduleType::cosine;
    std::optional<int64_t> warmup_steps = {};  // set once the number of steps is known
    double final_lr_fraction = 0.1;
    std::optional<int64_t> decay_steps = {};  // wsd: how many of the last steps decay; set as warmup_steps is
};

struct EvalConfig {
    int64_t every = 0;  // 0: only at the end
    int64_t tokens = 10485760;
    std::string hellaswag;  // a file (hellaswag.h); empty: none
};

struct SampleConfig {
    int64_t every = 0;  // 0: never
    std::vector<std::string> prompts;
    int64_t tokens = 64;
    double temperature = 0.8;
};

struct CheckpointConfig {
    int64_t every = 1000;
    int64_t keep = 3;
    int64_t keep_every = 0;  // checkpoints at multiples of it are never removed; 0: none
    bool async = true;
    std::optional<int64_t> host_memory;  // bytes for the snapshot of an asynchronous save; not set: auto
};

struct DistributedConfig {
    int64_t zero = 1;  // 0: every rank keeps the whole optimizer state; 1: each a shard (ZeRO stage 1)
    int64_t timeout_seconds = 300;
};

struct LogConfig {
    int64_t every = 1;
    bool jsonl = true;
};

struct Config {
    std::string name, run_dir;
    int64_t seed = 1337;
    ModelConfig model;
    DataConfig data;
    TrainingConfig training;
    OptimizerConfig optimizer;
    ScheduleConfig schedule;
    EvalConfig eval;
    SampleConfig sample;
    CheckpointConfig checkpoint;
    DistributedConfig distributed;
    LogConfig log;
    // The paths of the fields that the user chose ("eval.every"), by --set or in a file. A resolved config spells out
    // every field, so its fields are not chosen.
    std::set<std::string> chosen;
};

// Reads FILE (JSON, comments allowed), applies overrides ("optimizer.lr=3e-4"; the value is JSON, or a bare string),
// fills in defaults and the values in the meta.json beside the shards (dataset_meta.h), and checks every rule. Throws
// UserError with the file or key path, and a remedy.
Config read_config(const std::string& file, const std::vector<std::string>& overrides);

// Does the same for JSON text, which errors call `source`. Reads no meta.json: a resolved config spells everything
// out.
Config parse_config(const std::string& text, const std::string& source, const std::vector<std::string>& overrides);

// Does the same for a JSON value: a config within another file.
Config config_from_json(const nlohmann::json& value, const std::string& source);

// Returns whether config_to_json(), also of an older version, wrote this JSON: all sections exist, and the fields that
// users leave to Ingot are filled in. It stays so when a user edits the file.
bool is_resolved_config(const nlohmann::json& value);

// Computes training.steps from training.epochs once the number of training tokens is known, and fills the defaults
// that depend on it. Does nothing if steps are given. Throws UserError as read_config() does.
void resolve_steps(Config* config, int64_t train_tokens);

// Returns the resolved config with every field spelled out. It reads back as the same config.
nlohmann::ordered_json config_to_json(const Config& config);

// Returns the JSON schema of a config file (draft 7) for editors: configs/schema.json.
nlohmann::ordered_json config_schema();

// Tells what a resumed run does if a field was changed.
enum class OnResume {
    fixed,     // it refuses: the checkpoint would mean something else
    from_now,  // it uses the new value, and says so
    free       // takes no notice: the computation does not depend on it
};
struct ConfigChange {
    std::string path, then, now;  // "optimizer.lr", and both values as JSON
    OnResume on_resume;
};
// Returns the fields in which `now` differs from an earlier resolved config, as config_to_json() wrote it.
std::vector<ConfigChange> config_changes(const nlohmann::ordered_json& then, const Config& now);

}  // namespace ingot
