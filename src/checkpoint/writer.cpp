#include "src/checkpoint/writer.h"

#include <chrono>

#include "src/base/available_memory.h"
#include "src/base/files.h"
#include "src/checkpoint/environment.h"
#include "src/checkpoint/manifest.h"
#include "src/checkpoint/safetensors.h"
#include "src/model/matmul_cache.h"

namespace ingot {

using nlohmann::ordered_json;

struct CheckpointWriter::Job {
    CheckpointStore* store;
    CheckpointConfig config;
    TrainingState training;
    ordered_json manifest;  // all but the files
    std::string tokenizer_json;
};

ordered_json manifest_head(const std::string& run_id, const Config& config, const TrainingState& training,
                           const Device& device) {
    ordered_json manifest;
    manifest["format_version"] = kCheckpointFormatVersion;
    if (!run_id.empty()) manifest["run"] = run_id;
    manifest["step"] = training.step;
    manifest["tokens"] = training.report.tokens;
    manifest["rows_consumed"] = training.rows_consumed;
    manifest["data"] = training.data;
    manifest["seed"] = config.seed;
    manifest["step_state"] = {{"updates_applied", training.state.updates_applied},
                              {"loss_scale", training.state.loss_scale},
                              {"good_steps", training.state.good_steps},
                              {"consecutive_skips", training.state.consecutive_skips}};
    manifest["report"] = report_to_json(training.report);
    for (const char* found_anew : {"val_loss", "hellaswag", "mfu"}) manifest["report"].erase(found_anew);
    manifest["world_size"] = 1;
    manifest["environment"] = environment(device, config);
    if (!device.is_cpu()) manifest["matmul_choices"] = matmul_choices_to_json(matmul_choices(device));
    manifest["config"] = config_to_json(config);
    return manifest;
}

namespace {

uint64_t bytes_of(const std::vector<NamedTensor>& tensors) {
    uint64_t bytes = 0;
    for (const NamedTensor& named : tensors) bytes += static_cast<uint64_t>(named.tensor.bytes());
    return bytes;
}

// Checks before anything is written, so that a full disk costs no time and leaves nothing behind. Headers and the
// manifest take less than the margin.
void check_free_space(const CheckpointStore::Draft& draft, uint64_t bytes) {
    constexpr uint64_t kMargin = 1 << 20;
    const uint64_t available = draft.available_bytes();
    if (available >= bytes + kMargin) return;
    throw Error(kExitAllocation,
                join("cannot save to ", draft.folder().path(), ": a checkpoint needs ", format_bytes(bytes + kMargin),
                     ", ", format_bytes(available), " are free: free some space, or set a lower checkpoint.keep"));
}

}  // namespace

CheckpointWriter::CheckpointWriter(const Config& config, const Model& model, const Optimizer& optimizer,
                                   MemoryPlan* host_plan)
    : model_(model),
      optimizer_(optimizer),
      is_async_(config.checkpoint.async),
      snapshot_(optimizer.owned_state().size()),
      updated_(model.device()),
      downloaded_(model.device()) {
    if (!is_async_) return;
    const DType dtype = accumulation_dtype(model.dtype());
    const int64_t count = optimizer.num_owned(), bytes = count * size_of(dtype);
    int64_t budget = 0;  // stays so where the system does not say how much memory is free
    if (config.checkpoint.host_memory)
        budget = *config.checkpoint.host_memory;
    else if (const AvailableMemory available = available_memory(); available.is_known())
        budget = static_cast<int64_t>(available.bytes / 4);
    const auto num_tensors = static_cast<int64_t>(snapshot_.size());
    snapshots_weights_ = budget >= num_tensors * bytes;
    snapshots_moments_ = budget >= (num_tensors - 1) * bytes;
    const std::vector<OptimizerState> state = optimizer.owned_state();
    for (size_t i = 0; i < state.size(); ++i)
        if (is_in_snapshot(state[i])) host_plan->add(join("checkpoint_snapshot.", i), dtype, {count}, &snapshot_[i]);
}

CheckpointWriter::~CheckpointWriter() {
    if (writing_.valid()) writing_.wait();
}

std::string CheckpointWriter::describe() const {
    if (!is_async_) return "synchronous";
    size_t bytes = 0;
    for (const Tensor& tensor : snapshot_) bytes += tensor.rank > 0 ? static_cast<size_t>(tensor.bytes()) : 0;
    if (snapshots_weights_) return join("asynchronous, from a snapshot of ", format_bytes(bytes));
    if (snapshots_moments_)
        return join("asynchronous, the moments from a snapshot of ", format_bytes(bytes),
                    ", updates wait until the weights are written");
    return "asynchronous without a snapshot (no memory for one): updates wait until all is written";
}

void CheckpointWriter::start(CheckpointStore* store, const Config& config, const TrainingState& training,
                             const std::string& tokenizer_json) {
    CHECK(!writing_.valid(), "a save was started while another is in flight");
    const Device& device = model_.device();
    if (!device.is_cpu()) {
        updated_.record(Stream::compute);
        updated_.block(Stream::download);
        const std::vector<OptimizerState> state = optimizer_.owned_state();
        for (size_t i = 0; i < state.size(); ++i)
            if (snapshot_[i]) device.start_copy(snapshot_[i], state[i].pieces[0].tensor, Stream::download);
        downloaded_.record(Stream::download);
    }
    std::promise<void> copied;
    copied_ = copied.get_future();
    Job job{store, config.checkpoint, training, manifest_head(store->run_id(), config, training, device),
            tokenizer_json};
    auto run = [this, job = std::move(job), copied = std::move(copied)]() mutable {
        Result result{job.training.step, "", ""};
        try {
            result.set_aside = write(job, &copied);
        } catch (const std::exception& error) {
            result.fault = error.what();
        }
        try {
            copied.set_value();  // a save that failed early holds nobody up
        } catch (const std::future_error&) {}
        return result;
    };
    writing_ = std::async(std::launch::async, std::move(run));
    if (!is_async_) writing_.wait();
}

void CheckpointWriter::wait_until_copied() {
    if (!copied_.valid()) return;
    if (snapshots_weights_ && !model_.device().is_cpu()) {
        downloaded_.block(Stream::compute);
        copied_ = {};
        return;
    }
    copied_.get();
}

std::optional<CheckpointWriter::Result> CheckpointWriter::wait() {
    if (!writing_.valid()) return std::nullopt;
    wait_until_copied();
    return writing_.get();
}

std::optional<CheckpointWriter::Result> CheckpointWriter::poll() {
    if (!writing_.valid() || writing_.wait_for(std::chrono::seconds(0)) != std::future_status::ready)
        return std::nullopt;
    return wait();
}

std::string CheckpointWriter::write(const Job& job, std::promise<void>* copied) const {
    const Device& device = model_.device();
    downloaded_.wait();
    std::vector<OptimizerState> state = optimizer_.owned_state();
    for (size_t i = 0; i < state.size(); ++i) {
        if (!snapshot_[i]) continue;
        if (device.is_cpu()) device.copy(snapshot_[i], state[i].pieces[0].tensor);
        state[i].pieces[0].tensor = snapshot_[i];
    }
    if (snapshots_weights_) copied->set_value();

    CheckpointStore::Draft draft(job.store->run(), job.training.step);
    const Folder& folder = draft.folder();
    std::vector<NamedTensor> model_tensors, moments;
    for (const OptimizerState& part : state)
        for (const NamedTensor& named : checkpoint_tensors(model_.table(), part.pieces[0].tensor, part.prefix))
            (part.is_weights() ? model_tensors : moments).push_back(named);
    check_free_space(draft, bytes_of(model_tensors) + bytes_of(moments) + job.tokenizer_json.size());

    std::vector<FileRecord> files;
    const auto write_tensors = [&](const char* name, const std::vector<NamedTensor>& tensors) {
        ChunkedSha256 checksums;
        write_safetensors(folder.create(name), tensors, {{"format", "pt"}}, &checksums, device);
        files.push_back(checksums.finish(name));
    };
    const auto write_text = [&](const char* name, const std::string& text) {
        OutputFile file = folder.create(name);
        file.write(text.data(), text.size());
        file.sync_and_close();
    };
    write_tensors(kModelFile, model_tensors);
    if (snapshots_moments_ && !snapshots_weights_) copied->set_value();
    write_tensors(kOptimizerFile, moments);
    if (!snapshots_moments_) copied->set_value();
    if (!job.tokenizer_json.empty()) {
        write_text(kTokenizerFile, job.tokenizer_json);
        ChunkedSha256 checksums;
        checksums.update(job.tokenizer_json.data(), job.tokenizer_json.size());
        files.push_back(checksums.finish(kTokenizerFile));
    }
    ordered_json manifest = job.manifest;
    manifest["files"] = to_json(files);
    write_text("manifest.json", manifest_text(manifest));
    const std::string set_aside = job.store->commit(&draft);
    try {
        job.store->prune(job.training.step, job.config.keep, job.config.keep_every);
    } catch (const Error&) {}  // it costs space, and the checkpoint is committed
    return set_aside;
}

}  // namespace ingot
