#include "src/config/rules.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <sstream>

#include "kernels/core/check.h"
#include "src/config/fields.h"
#include "src/tokenizer/tokenizer.h"

namespace ingot {

namespace {

// Writes 131072 rather than 131072.0, and 1e+12 rather than 1000000000000.
std::string plain_number(double value) {
    std::ostringstream stream;
    if (std::abs(value) < 1e15 && value == std::floor(value))
        stream << static_cast<int64_t>(value);
    else
        stream << value;
    return stream.str();
}

// Checks that every number lies in its range, also those that were filled in.
struct RangeChecker {
    std::string prefix;
    template <typename T>
    void required(const char* name, const T& value, const Field& field) {
        this->field(name, value, field);
    }
    template <typename T>
    void field(const char* name, const T& value, const Field& field) {
        if constexpr (std::is_same_v<T, int64_t> || std::is_same_v<T, double>)
            check_range(prefix + name, static_cast<double>(value), field.low, field.high, field.low_is_open);
    }
    template <typename T>
    void derived(const char* name, const T& value, const Field& field) {
        this->field(name, value, field);
    }
    template <typename T>
    void derived(const char* name, const std::optional<T>& value, const Field& field) {
        if (value) this->field(name, *value, field);
    }
    template <typename T>
    void section(const char* name, T& value, bool) {
        RangeChecker inner{prefix + name + "."};
        visit_fields(inner, value);
    }
};

// Both functions wait for the number of steps: where the config gives epochs, resolve_steps() calls them again.
void fill_step_defaults(Config* config) {
    if (!config->training.steps) return;
    const int64_t steps = *config->training.steps;
    if (!config->schedule.warmup_steps) config->schedule.warmup_steps = std::min<int64_t>(steps / 20, 700);
    if (!config->schedule.decay_steps) config->schedule.decay_steps = steps / 5;
}

void check_step_rules(const Config& c) {
    if (!c.training.steps) return;
    const int64_t steps = *c.training.steps, warmup = *c.schedule.warmup_steps, decay = *c.schedule.decay_steps;
    REQUIRE(warmup <= steps, "schedule.warmup_steps ", warmup, " is more than training.steps ", steps, ": use at most ",
            steps);
    REQUIRE(c.schedule.type != ScheduleType::wsd || warmup + decay <= steps,
            "schedule.warmup_steps + schedule.decay_steps is more than training.steps ", steps,
            ": use schedule.decay_steps of at most ", steps - warmup);
}

void check_entries(const Config& c) {
    REQUIRE(!c.data.train.empty(), "data.train is empty: name at least one shard or glob");
    for (const bool is_train : {true, false}) {
        const std::vector<DataEntry>& entries = is_train ? c.data.train : c.data.val;
        const char* const key = is_train ? "data.train" : "data.val";
        for (size_t i = 0; i < entries.size(); ++i) {
            const DataEntry& entry = entries[i];
            REQUIRE(entry.format != DataFormat::raw || entry.dtype != RawType::automatic, key, "[", i,
                    "] has format \"raw\", but no dtype: add \"dtype\": \"uint16\" or \"uint32\"");
            REQUIRE(entry.format == DataFormat::raw || entry.dtype == RawType::automatic, key, "[", i,
                    "] has a dtype, which belongs to raw ids alone: remove it, or add \"format\": \"raw\"");
            REQUIRE(is_train || !entry.weight, key, "[", i,
                    "] has a weight, but validation reads everything once: remove it");
        }
    }
    const auto num_weights = std::count_if(c.data.train.begin(), c.data.train.end(),
                                           [](const DataEntry& entry) { return entry.weight.has_value(); });
    REQUIRE(num_weights == 0 || num_weights == static_cast<int64_t>(c.data.train.size()), "data.train has ",
            num_weights, " entries with a weight and ", static_cast<int64_t>(c.data.train.size()) - num_weights,
            " without: give all of them a weight, or none");
    REQUIRE(num_weights <= 1 || !c.training.epochs,
            "training.epochs does not go with weights in data.train, since each dataset then has epochs of its own: "
            "set training.steps");
}

}  // namespace

void check_range(const std::string& path, double value, double low, double high, bool low_is_open) {
    const bool fits = (low_is_open ? value > low : value >= low) && value <= high;
    REQUIRE(fits, path, " is ", plain_number(value), ", it must lie in ", low_is_open ? "(" : "[", plain_number(low),
            ", ", plain_number(high), "]");
}

void fill_defaults(Config* config, const std::string& source) {
    Config& c = *config;
    if (c.name.empty()) c.name = std::filesystem::path(source).stem().string();
    if (c.run_dir.empty()) c.run_dir = "runs/" + c.name;
    ModelConfig& m = c.model;
    REQUIRE(m.vocab_size > 0, source,
            ": model.vocab_size is missing, and no meta.json beside data.train says it: prepare the data first "
            "(scripts/prepare.py), or add it");
    if (m.n_kv_heads == 0) m.n_kv_heads = m.n_heads;
    if (m.d_ff == 0) m.d_ff = (m.d_model * 8 / 3 + 63) / 64 * 64;
    if (m.head_dim == 0) {
        REQUIRE(m.d_model % m.n_heads == 0, "model.d_model ", m.d_model, " is not divisible by model.n_heads ",
                m.n_heads, ": try ", std::max<int64_t>(1, m.d_model / m.n_heads) * m.n_heads,
                ", or set model.head_dim");
        m.head_dim = m.d_model / m.n_heads;
    }
    TrainingConfig& t = c.training;
    if (t.batch_tokens == 0) t.batch_tokens = 32 * m.context_length;
    if (t.micro_batch_size == 0) {
        // Takes the largest of 8, 4, 2, 1 rows that divides the step; more rows gain nothing on the CPU. For a GPU,
        // resolve_micro_batch() chooses again.
        t.micro_batch_is_auto = true;
        t.micro_batch_size = 8;
        while (t.micro_batch_size > 1 && t.batch_tokens % (t.micro_batch_size * m.context_length) != 0)
            t.micro_batch_size /= 2;
    }
    fill_step_defaults(config);
}

namespace {

// cuBLASLt multiplies in fp8 only where all extents are multiples of 16.
void check_fp8_sizes(const Config& c) {
    const ModelConfig& m = c.model;
    const std::pair<const char*, int64_t> sizes[] = {
        {"model.d_model", m.d_model},
        {"model.d_ff", m.d_ff},
        {"model.n_heads x model.head_dim", m.n_heads * m.head_dim},
        {"(model.n_heads + 2 x model.n_kv_heads) x model.head_dim", m.qkv_width()},
        {"training.micro_batch_size x model.context_length", c.training.micro_batch_size * m.context_length}};
    for (const auto& [name, size] : sizes)
        REQUIRE(size % 16 == 0, "training.precision \"fp8\" asks for multiples of 16, and ", name, " is ", size,
                ": change it, or set training.precision to \"bf16\"");
}

}  // namespace

void check_rules(const Config& c) {
    RangeChecker ranges;
    Config copy = c;
    visit_fields(ranges, copy);
    const ModelConfig& m = c.model;
    REQUIRE(m.n_heads % m.n_kv_heads == 0, "model.n_heads ", m.n_heads, " is not divisible by model.n_kv_heads ",
            m.n_kv_heads, ": each key/value head serves the same number of query heads; try n_kv_heads ",
            m.n_heads % 2 == 0 ? m.n_heads / 2 : 1);
    REQUIRE(m.rope_scaling.type == RopeScalingType::none || m.position == Position::rope,
            "model.rope_scaling.type is \"", name_of_choice(m.rope_scaling.type), "\", but model.position is \"",
            name_of_choice(m.position), "\": set it to \"none\", or model.position to \"rope\"");
    REQUIRE(m.rope_scaling.type == RopeScalingType::none ||
                m.rope_scaling.low_freq_factor < m.rope_scaling.high_freq_factor,
            "model.rope_scaling.low_freq_factor ", m.rope_scaling.low_freq_factor, " is not below high_freq_factor ",
            m.rope_scaling.high_freq_factor, ": Llama 3.1 has 1 and 4");
    REQUIRE(m.head_dim % 2 == 0, "model.head_dim ", m.head_dim, " is odd: use an even one up to 256");
    const int64_t eot = c.data.eot_token.value_or(-1);
    REQUIRE(eot < m.vocab_size, "data.eot_token is ", eot, ", it must lie in [-1, ", m.vocab_size - 1,
            "]: model.vocab_size is ", m.vocab_size);
    const int64_t micro_batch_tokens = c.training.micro_batch_size * m.context_length;
    REQUIRE(micro_batch_tokens < (int64_t{1} << 31), "training.micro_batch_size ", c.training.micro_batch_size,
            " x model.context_length ", m.context_length, " is more than 2^31 tokens: use a smaller micro-batch");
    REQUIRE(c.training.batch_tokens % micro_batch_tokens == 0, "training.batch_tokens ", c.training.batch_tokens,
            " is not a multiple of training.micro_batch_size ", c.training.micro_batch_size, " x model.context_length ",
            m.context_length, ": try ",
            std::max<int64_t>(1, c.training.batch_tokens / micro_batch_tokens) * micro_batch_tokens);
    check_entries(c);
    REQUIRE(c.training.steps || c.training.epochs,
            "training.steps is missing: add it, or training.epochs (see configs/tiny.json)");
    REQUIRE(!c.training.steps || !c.training.epochs,
            "training.steps and training.epochs are both given: keep one of them");
    check_step_rules(c);
    REQUIRE(c.training.device != DeviceChoice::cpu || c.training.precision == Precision::automatic ||
                c.training.precision == Precision::fp32,
            "training.precision is \"", name_of_choice(c.training.precision),
            "\", but training.device is \"cpu\", which computes in fp32: set training.precision to \"auto\"");
    if (c.training.precision == Precision::fp8) check_fp8_sizes(c);
    const AttentionRequest attention = c.training.attention;
    REQUIRE(c.training.device != DeviceChoice::cpu || attention == AttentionRequest::automatic,
            "training.attention is \"", name_of_choice(attention),
            "\", a kernel of the GPU, but training.device is \"cpu\": set "
            "training.attention to \"auto\"");
    REQUIRE(c.training.precision != Precision::fp32 || attention == AttentionRequest::automatic ||
                attention == AttentionRequest::simt,
            "training.attention is \"", name_of_choice(attention),
            "\", which multiplies in bf16 or fp16, but training.precision is \"fp32\": set "
            "training.attention to \"auto\" or \"simt\", or training.precision to \"bf16\"");
    const bool is_bytes = c.data.tokenizer == kBytesTokenizer;
    REQUIRE(is_bytes || c.data.tokenizer.empty() || std::filesystem::path(c.data.tokenizer).extension() == ".json",
            "data.tokenizer is \"", c.data.tokenizer,
            "\", it must be \"bytes\", the path of a tokenizer.json, or null");
    REQUIRE(!is_bytes || m.vocab_size >= 256, "model.vocab_size ", m.vocab_size,
            " is too small for data.tokenizer \"bytes\": use 257");
    REQUIRE(
        c.sample.every == 0 || (!c.data.tokenizer.empty() && !c.sample.prompts.empty()),
        "sample.every is set, but there is no data.tokenizer or no sample.prompts: add them, or set sample.every to 0");
}

void resolve_steps(Config* config, int64_t train_tokens) {
    TrainingConfig& t = config->training;
    if (t.steps) return;
    // The quotient is rounded up, so that every token is seen at least that often.
    const double steps = std::ceil(*t.epochs * static_cast<double>(train_tokens) / static_cast<double>(t.batch_tokens));
    check_range("training.epochs x the training tokens / training.batch_tokens", steps, 1, kManySteps, false);
    t.steps = static_cast<int64_t>(steps);
    t.epochs.reset();
    fill_step_defaults(config);
    check_step_rules(*config);
}

}  // namespace ingot
