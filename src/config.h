// The configuration of a run. One field list per section (visit_fields below) drives reading, --set, the unknown-key
// error and the resolved config that is written to the run folder.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace ingot {

enum class Position { alibi, rope, none };
enum class Recompute {
    none,
    light,
    block
};  // light: norms and SwiGLU are computed again in backward; block: all of a layer
enum class ScheduleType { constant, linear, cosine, wsd };
enum class EotSide { automatic, start, end };  // whether EOT opens or closes a document
enum class NonFinite { skip, stop };

struct ModelConfig {
    int64_t n_layers = 0, d_model = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0, d_ff = 0;
    int64_t context_length = 0, vocab_size = 0;
    Position position = Position::alibi;
    double rope_theta = 10000;
    bool tie_embeddings = true;
    bool qk_norm = false;
    double norm_eps = 1e-5;
    double init_std = 0.02;

    // VP: logits of a multiple of 128 columns keep every product on the GPU aligned; padded ones never leave.
    int64_t padded_vocab_size() const { return (vocab_size + 127) / 128 * 128; }
};

struct DataConfig {
    std::vector<std::string> train, val;  // paths or globs
    bool mask_documents = true;
    int64_t eot_token = -1;  // -1: none, every shard is one document
    EotSide eot = EotSide::automatic;
    bool shuffle = true;
    std::string tokenizer;  // "bytes", or empty: no samples
};

struct TrainingConfig {
    std::string device = "auto";  // auto, cpu
    int64_t steps = 0;
    int64_t batch_tokens = 0;
    int64_t micro_batch_size = 0;  // rows
    Recompute recompute = Recompute::none;
    double z_loss = 0;
    NonFinite on_nonfinite = NonFinite::skip;
    int64_t max_skipped_steps = 20;
};

struct OptimizerConfig {
    double lr = 6e-4, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1, grad_clip = 1.0;
};

struct ScheduleConfig {
    ScheduleType type = ScheduleType::cosine;
    int64_t warmup_steps = 0;
    double final_lr_fraction = 0.1;
    int64_t decay_steps = 0;  // wsd: how many of the last steps decay
};

struct EvalConfig {
    int64_t every = 0;  // 0: at the end alone
    int64_t tokens = 10485760;
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
};

struct LogConfig {
    int64_t every = 1;
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
    LogConfig log;
};

// Reads FILE (JSON, comments allowed), applies overrides ("optimizer.lr=3e-4"; the value is JSON, or a bare string),
// fills defaults and checks every rule. Throws UserError with the file or key path, and what would work.
Config read_config(const std::string& file, const std::vector<std::string>& overrides);

// The same from JSON text; `source` names it in errors.
Config parse_config(const std::string& text, const std::string& source, const std::vector<std::string>& overrides);

// The resolved config, every field spelled out.
nlohmann::ordered_json config_to_json(const Config& config);

}  // namespace ingot
