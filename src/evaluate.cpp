#include "src/evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "src/batch.h"
#include "src/checkpoint.h"
#include "src/checksum.h"
#include "src/data/corpus.h"
#include "src/data/rows.h"
#include "src/dataset_meta.h"
#include "src/device_choice.h"
#include "src/device_step.h"
#include "src/output.h"
#include "src/progress.h"
#include "src/signals.h"
#include "src/training_data.h"

namespace ingot {

namespace {

// The run's own micro-batch, so that the loss has the bits of the run's log; but no more tokens than this, since a
// micro-batch made for a GPU would take gigabytes of a laptop for nothing.
constexpr int64_t kMaxBatchTokens = 8192, kMaxBatchTokensCuda = 65536;

int64_t batch_rows(const Config& config, const Device& device) {
    const int64_t most = device.is_cpu() ? kMaxBatchTokens : kMaxBatchTokensCuda;
    const int64_t rows = std::max<int64_t>(1, most / config.model.context_length);
    return std::min(std::max<int64_t>(1, config.training.micro_batch_size), rows);
}

// How many bytes of text each id of the model stands for: special tokens, EOT among them, for none.
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

int evaluate(const EvaluateOptions& options) {
    const auto [device, reason] = choose_device(options.device);
    const Checkpoint checkpoint = open_checkpoint(options.checkpoint);
    const Config& config = checkpoint.manifest.config;
    std::vector<DataEntry> entries;
    for (const std::string& path : options.data) {
        DataEntry& entry = entries.emplace_back();
        entry.path = path;
        entry.format = options.format;
        entry.dtype = options.dtype;
    }
    const std::unique_ptr<Tokenizer> tokenizer = checkpoint_tokenizer(checkpoint);
    const std::string& json = checkpoint.tokenizer_json;
    for (const DatasetMeta& meta : dataset_metas(entries)) {
        check_dataset_meta(meta, config, json.empty() ? "" : sha256(json.data(), json.size()));
        if (meta.has_mask)
            std::fprintf(stderr, "note: %s says that its shards have masks; eval counts every target all the same\n",
                         meta.path.c_str());
    }
    const std::vector<int64_t> bytes_of_token = text_bytes(tokenizer.get(), config);
    const Corpus corpus(entries, "--data", corpus_options(config, nullptr));
    const ValidationRows rows(corpus, config.data, config.model.context_length, std::numeric_limits<int64_t>::max());

    const int64_t micro_batch = batch_rows(config, device), max_tokens = micro_batch * config.model.context_length;
    MemoryPlan plan;
    Model model(device, config.model, compute_type(config.training.precision, device), max_tokens,
                config.model.context_length, Recompute::none, 0, false, &plan);
    BatchBuffers buffers(device, max_tokens, &plan);
    const DeviceStep step(device, "step", &plan);
    const std::shared_ptr<void> memory = plan.allocate(device);
    step.write(StepBlock{});
    model.initialize_constants();
    load_weights(checkpoint, &model);
    std::fprintf(stderr, "checkpoint: %s (step %ld)\ndata: %s\ndevice: %s%s, %s\n", checkpoint.folder.c_str(),
                 static_cast<long>(checkpoint.manifest.step), corpus.describe().c_str(), device.name().c_str(),
                 reason.empty() ? "" : join(" (", reason, ")").c_str(), format_bytes(plan.total_bytes()).c_str());

    catch_stop_signals();
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
        HostBatch* const host = buffers.next();
        fill_batch(rows, static_cast<uint64_t>(row), num_rows, micro_batch, host);
        for (const int32_t target : host->targets)
            if (target >= 0) bytes += bytes_of_token[static_cast<size_t>(target)];
        model.evaluate(buffers.upload(), step.get());
        progress.advance(num_rows);
    }
    progress.finish();
    const StepSums sums = step.read().sums;
    evaluation.loss_sum = sums.loss;
    evaluation.targets = sums.targets;
    if (tokenizer) evaluation.bytes = bytes;
    REQUIRE(evaluation.targets > 0, "--data holds nothing to predict: every document in it is a single token");
    REQUIRE(std::isfinite(evaluation.loss()), "the loss of ", checkpoint.folder, " is ", evaluation.loss(),
            ": this run has diverged; take an earlier checkpoint");
    if (options.is_json) {
        nlohmann::ordered_json object = evaluation_json(evaluation);
        object["checkpoint"] = checkpoint.folder;
        object["step"] = checkpoint.manifest.step;
        // A folder name need not be UTF-8, JSON must be.
        write_output(object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
    } else {
        write_output(evaluation_line(evaluation) + "\n");
    }
    return kExitDone;
}

}  // namespace ingot
