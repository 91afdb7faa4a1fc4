#include "src/commands/evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "src/base/checksum.h"
#include "src/base/output.h"
#include "src/base/progress.h"
#include "src/base/signals.h"
#include "src/checkpoint/checkpoint.h"
#include "src/config/dataset_meta.h"
#include "src/data/corpus.h"
#include "src/data/rows.h"
#include "src/model/batch.h"
#include "src/model/device_choice.h"
#include "src/model/device_step.h"
#include "src/train/hellaswag.h"
#include "src/train/training_data.h"

namespace ingot {

namespace {

// Evaluation takes the run's micro-batch, so that the loss has the bits of the run's log, but at most this many
// tokens: a micro-batch made for a GPU would take gigabytes of a laptop's memory.
constexpr int64_t kMaxBatchTokens = 8192, kMaxBatchTokensCuda = 65536;

int64_t batch_rows(const Config& config, const Device& device) {
    const int64_t most = device.is_cpu() ? kMaxBatchTokens : kMaxBatchTokensCuda;
    const int64_t rows = std::max<int64_t>(1, most / config.model.context_length);
    return std::min(std::max<int64_t>(1, config.training.micro_batch_size), rows);
}

// Returns the number of bytes of text for each id of the model; special tokens, including EOT, have none.
std::vector<int64_t> text_bytes(const Tokenizer* tokenizer, const Config& config) {
    std::vector<int64_t> bytes(static_cast<size_t>(config.model.vocab_size));
    if (tokenizer == nullptr) return bytes;
    for (size_t i = 0; i < bytes.size(); ++i) {
        const auto token = static_cast<int32_t>(i);
        if (token != config.data.eot_token && !tokenizer->is_special(token))
            bytes[i] = static_cast<int64_t>(tokenizer->bytes_of(token).size());
    }
    return bytes;
}

}  // namespace

double Evaluation::perplexity() const {
    return std::exp(loss());
}

std::optional<double> Evaluation::bits_per_byte() const {
    if (!bytes || *bytes == 0) return std::nullopt;
    return loss_sum / std::log(2.0) / static_cast<double>(*bytes);
}

std::string evaluation_line(const Evaluation& evaluation) {
    char text[160], bits[48] = "";
    if (const std::optional<double> value = evaluation.bits_per_byte())
        std::snprintf(bits, sizeof bits, " | bits/byte %.2f", *value);
    std::snprintf(text, sizeof text, "loss %.5f | perplexity %.*f%s | targets %ld", evaluation.loss(),
                  evaluation.perplexity() < 1e15 ? 2 : 0, evaluation.perplexity(), bits,
                  static_cast<long>(evaluation.targets));
    return text;
}

nlohmann::ordered_json evaluation_json(const Evaluation& evaluation) {
    nlohmann::ordered_json object;
    object["loss"] = evaluation.loss();
    object["perplexity"] = nullptr;
    if (std::isfinite(evaluation.perplexity())) object["perplexity"] = evaluation.perplexity();
    object["bits_per_byte"] = nullptr;
    if (const std::optional<double> value = evaluation.bits_per_byte()) object["bits_per_byte"] = *value;
    object["targets"] = evaluation.targets;
    return object;
}

namespace {

// A checkpoint's model, ready to evaluate micro-batches of a given number of rows.
struct LoadedModel {
    LoadedModel(const Checkpoint& checkpoint, const Device& device, int64_t micro_batch)
        : LoadedModel(checkpoint.manifest.config, device, micro_batch) {
        step.write(StepBlock{});
        model.initialize_constants();
        load_weights(checkpoint, model);
    }
    MemoryPlan plan;
    Model model;
    BatchBuffers buffers;
    DeviceStep step;
    std::shared_ptr<void> memory;

  private:
    LoadedModel(const Config& config, const Device& device, int64_t micro_batch)
        : model(device, config.model,
                {.dtype = compute_type(config.training.precision, device),
                 .max_tokens = micro_batch * config.model.context_length,
                 .max_positions = config.model.context_length},
                &plan),
          buffers(device, model.max_tokens(), &plan),
          step(device, "step", &plan),
          memory(plan.allocate(device)) {}
};

// Prints what every evaluation reports first, on stderr. `data` is "data: 2 shards, ...".
void print_head(const Checkpoint& checkpoint, const std::string& data, const ChosenDevice& chosen,
                const LoadedModel& loaded) {
    std::fprintf(stderr, "checkpoint: %s (step %ld)\n%s\ndevice: %s%s, %s\n", checkpoint.folder.c_str(),
                 static_cast<long>(checkpoint.manifest.step), data.c_str(), chosen.device.name().c_str(),
                 chosen.reason.empty() ? "" : join(" (", chosen.reason, ")").c_str(),
                 format_bytes(loaded.plan.total_bytes()).c_str());
}

void print_result(const Checkpoint& checkpoint, const std::string& line, nlohmann::ordered_json object, bool is_json) {
    if (!is_json) {
        write_output(line + "\n");
        return;
    }
    object["checkpoint"] = checkpoint.folder;
    object["step"] = checkpoint.manifest.step;
    // A folder's name need not be UTF-8, but JSON must be.
    write_output(object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

int evaluate_hellaswag(const EvaluateOptions& options, const ChosenDevice& chosen, const Checkpoint& checkpoint,
                       Tokenizer* tokenizer) {
    const Config& config = checkpoint.manifest.config;
    const HellaSwag hellaswag(options.hellaswag, "--hellaswag", tokenizer, config.model);
    LoadedModel loaded(checkpoint, chosen.device, batch_rows(config, chosen.device));
    catch_stop_signals();
    print_head(checkpoint, "hellaswag: " + hellaswag.describe(), chosen, loaded);
    const std::optional<HellaSwagResult> result =
        hellaswag.measure(&loaded.model, &loaded.buffers, loaded.step, one_rank().get(), [] { return stop_signal() != 0; });
    if (!result) {
        std::fprintf(stderr, "stopped by signal %d: no result\n", stop_signal());
        return exit_code_of_signal(stop_signal());
    }
    REQUIRE(result->is_finite, "a loss of ", checkpoint.folder,
            " is not finite: this run has diverged; take an earlier checkpoint");
    print_result(checkpoint, hellaswag_line(*result), hellaswag_json(*result), options.is_json);
    return kExitDone;
}

int evaluate_shards(const EvaluateOptions& options, const ChosenDevice& chosen, const Checkpoint& checkpoint,
                    const Tokenizer* tokenizer) {
    const Config& config = checkpoint.manifest.config;
    std::vector<DataEntry> entries;
    for (const std::string& path : options.data) {
        DataEntry& entry = entries.emplace_back();
        entry.path = path;
        entry.format = options.format;
        entry.dtype = options.dtype;
    }
    const std::string& json = checkpoint.tokenizer_json;
    for (const DatasetMeta& meta : dataset_metas(entries)) {
        check_dataset_meta(meta, config, json.empty() ? "" : sha256(json.data(), json.size()));
        if (meta.has_mask)
            std::fprintf(stderr, "note: %s says that its shards have masks; eval counts every target all the same\n",
                         meta.path.c_str());
    }
    const std::vector<int64_t> bytes_of_token = text_bytes(tokenizer, config);
    const Corpus corpus(entries, "--data", corpus_options(config, nullptr));
    const ValidationRows rows(corpus, config.data, config.model.context_length, std::numeric_limits<int64_t>::max());

    const int64_t micro_batch = batch_rows(config, chosen.device);
    LoadedModel loaded(checkpoint, chosen.device, micro_batch);
    catch_stop_signals();
    print_head(checkpoint, "data: " + corpus.describe(), chosen, loaded);
    Evaluation evaluation;
    int64_t bytes = 0;
    Progress progress("evaluating", rows.num_rows(), "rows");
    for (int64_t row = 0; row < rows.num_rows(); row += micro_batch) {
        if (stop_signal() != 0) {
            progress.finish();
            std::fprintf(stderr, "stopped by signal %d after %ld of %ld rows: no result\n", stop_signal(),
                         static_cast<long>(row), static_cast<long>(rows.num_rows()));
            return exit_code_of_signal(stop_signal());
        }
        const int64_t num_rows = std::min(micro_batch, rows.num_rows() - row);
        HostBatch* const host = loaded.buffers.next();
        fill_batch(rows, static_cast<uint64_t>(row), num_rows, micro_batch, host);
        for (const int32_t target : host->targets)
            if (target >= 0) bytes += bytes_of_token[static_cast<size_t>(target)];
        loaded.model.evaluate(loaded.buffers.upload(), loaded.step.get());
        progress.advance(num_rows);
    }
    progress.finish();
    const StepSums sums = loaded.step.read().sums;
    evaluation.loss_sum = sums.loss;
    evaluation.targets = sums.targets;
    if (tokenizer != nullptr) evaluation.bytes = bytes;
    REQUIRE(evaluation.targets > 0, "--data holds nothing to predict: every document in it is a single token");
    REQUIRE(std::isfinite(evaluation.loss()), "the loss of ", checkpoint.folder, " is ", evaluation.loss(),
            ": this run has diverged; take an earlier checkpoint");
    print_result(checkpoint, evaluation_line(evaluation), evaluation_json(evaluation), options.is_json);
    return kExitDone;
}

}  // namespace

int evaluate(const EvaluateOptions& options) {
    const ChosenDevice chosen = choose_device(options.device);
    const Checkpoint checkpoint = open_checkpoint(options.checkpoint);
    const std::unique_ptr<Tokenizer> tokenizer = checkpoint_tokenizer(checkpoint);
    if (!options.hellaswag.empty()) return evaluate_hellaswag(options, chosen, checkpoint, tokenizer.get());
    return evaluate_shards(options, chosen, checkpoint, tokenizer.get());
}

}  // namespace ingot
