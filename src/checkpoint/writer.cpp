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
                           const Device& device, int64_t num_ranks) {
    ordered_json manifest;
    manifest["format_version"] = num_ranks == 1 ? kCheckpointFormatVersion : kSeveralRanksFormatVersion;
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
    if (!training.fp8_recent.empty()) manifest["fp8"] = {{"recent", training.fp8_recent}};
    manifest["report"] = report_to_json(training.report);
    for (const char* found_anew : {"val_loss", "hellaswag", "mfu"}) manifest["report"].erase(found_anew);
    manifest["world_size"] = num_ranks;
    manifest["environment"] = environment(device, config, num_ranks);
    if (!device.is_cpu()) manifest["matmul_choices"] = matmul_choices_to_json(matmul_choices(device));
    manifest["config"] = config_to_json(config);
    return manifest;
}

namespace {

uint64_t bytes_of(const std::vector<OptimizerState>& state) {
    uint64_t bytes = 0;
    for (const OptimizerState& part : state)
        for (const StatePiece& piece : part.pieces) bytes += static_cast<uint64_t>(piece.tensor.bytes());
    return bytes;
}

// Checks before anything is written, so that a full disk costs no time and leaves nothing behind. Headers and the
// manifest take less than the margin.
void check_free_space(const Folder& folder, uint64_t bytes) {
    constexpr uint64_t kMargin = 1 << 20;
    const uint64_t available = folder.available_bytes();
    if (available >= bytes + kMargin) return;
    throw Error(kExitAllocation,
                join("cannot save to ", folder.path(), ": a checkpoint needs ", format_bytes(bytes + kMargin), ", ",
                     format_bytes(available), " are free: free some space, or set a lower checkpoint.keep"));
}

// The pieces of the state in a tensor that has one after the other.
std::vector<StatePiece> pieces_in(const Tensor& all, std::vector<StatePiece> pieces) {
    int64_t at = 0;
    for (StatePiece& piece : pieces) {
        const int64_t count = piece.tensor.numel();
        piece.tensor = all.slice(0, at, at + count);
        at += count;
    }
    return pieces;
}

void write_text(const Folder& folder, const std::string& name, const std::string& text) {
    OutputFile file = folder.create(name);
    file.write(text.data(), text.size());
    file.sync_and_close();
}

// The draft's path as the system reports it, which holds after the run folder was renamed; and as run_dir says, which
// holds on another machine, whose links may lead elsewhere.
std::string paths_of(const Folder& draft) {
    return draft.place() + '\0' + draft.path();
}

// Nobody else's folder has the name of the draft.
Folder open_draft(const std::string& paths) {
    const size_t end = paths.find('\0');
    try {
        return Folder(paths.substr(0, end));
    } catch (const Error&) {}
    try {
        return Folder(paths.substr(end + 1));
    } catch (const Error& fault) {
        throw Error(fault.exit_code, join(fault.what(), ", or set run_dir to a folder that all ranks share"));
    }
}

// Another rank may have written its files where this one cannot see them.
void require_files(const Folder& folder, const ordered_json& files) {
    for (const ordered_json& file : files) {
        const std::string name = file.at("name");
        const std::optional<struct stat> info = folder.look_at(name);
        if (!info || static_cast<uint64_t>(info->st_size) != file.at("bytes").get<uint64_t>())
            throw Error(kExitAllocation,
                        join(folder.path_of(name), " was written by its rank, and the first rank does not find it: ",
                             "set run_dir to a folder that all ranks share"));
    }
}

// The first letter of what a rank tells the others.
constexpr char kDone = 'd', kFault = 'f';

}  // namespace

CheckpointWriter::CheckpointWriter(const Config& config, const Model& model, const Optimizer& optimizer, Ranks* ranks,
                                   MemoryPlan* host_plan)
    : model_(model),
      optimizer_(optimizer),
      ranks_(*ranks),
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
        for (size_t i = 0; i < state.size(); ++i) {
            if (!snapshot_[i]) continue;
            const std::vector<StatePiece> copies = pieces_in(snapshot_[i], state[i].pieces);
            for (size_t j = 0; j < copies.size(); ++j)
                device.start_copy(copies[j].tensor, state[i].pieces[j].tensor, Stream::download);
        }
        downloaded_.record(Stream::download);
    }
    std::promise<void> copied;
    copied_ = copied.get_future();
    Job job{store, config.checkpoint, training,
            manifest_head(store != nullptr ? store->run_id() : "", config, training, device, ranks_.size()),
            tokenizer_json};
    auto run = [this, job = std::move(job), copied = std::move(copied)]() mutable {
        const auto end_copying = [&] {  // a save that failed early holds nobody up
            try {
                copied.set_value();
            } catch (const std::future_error&) {}
        };
        Result result{job.training.step, "", ""};
        try {
            result.set_aside = write(job, &copied);
        } catch (const PeerError&) {  // for wait(): no rank can go on
            end_copying();
            throw;
        } catch (const std::exception& error) {
            result.fault = error.what();
        }
        end_copying();
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

// Every rank does its part of the work. Returns what each has to tell. The fault of one is thrown on all.
std::vector<std::string> CheckpointWriter::together(const std::function<std::string()>& work) const {
    std::string own;
    try {
        own = kDone + work();
    } catch (const std::exception& fault) {
        own = kFault + std::string(fault.what());
    }
    std::vector<std::string> all = ranks_.exchange(own, Ranks::Channel::save);
    for (size_t rank = 0; rank < all.size(); ++rank) {
        const bool is_fault = all[rank][0] == kFault;
        all[rank].erase(0, 1);
        if (is_fault) throw Error(kExitAllocation, (all.size() > 1 ? join("rank ", rank, ": ") : "") + all[rank]);
    }
    return all;
}

// The state that this rank saves, in the snapshot as far as there is one.
std::vector<OptimizerState> CheckpointWriter::copied_state(std::promise<void>* copied) const {
    const Device& device = model_.device();
    downloaded_.wait();
    std::vector<OptimizerState> state = optimizer_.owned_state();
    for (size_t i = 0; i < state.size(); ++i) {
        if (!snapshot_[i]) continue;
        std::vector<StatePiece> copies = pieces_in(snapshot_[i], state[i].pieces);
        for (size_t j = 0; device.is_cpu() && j < copies.size(); ++j)
            device.copy(copies[j].tensor, state[i].pieces[j].tensor);
        state[i].pieces = std::move(copies);
    }
    if (snapshots_weights_) copied->set_value();
    return state;
}

// Writes and syncs the files of this rank. Returns what the manifest says of them.
ordered_json CheckpointWriter::write_files(const Folder& folder, const std::vector<OptimizerState>& state,
                                           std::promise<void>* copied) const {
    std::vector<NamedTensor> model_tensors, moments;
    for (const OptimizerState& part : state)
        for (const NamedTensor& named : checkpoint_tensors(model_.table(), part.pieces, part.prefix))
            (part.is_weights() ? model_tensors : moments).push_back(named);
    std::vector<FileRecord> files;
    const auto write_tensors = [&](const std::string& name, const std::vector<NamedTensor>& tensors) {
        ChunkedSha256 checksums;
        write_safetensors(folder.create(name), tensors, {{"format", "pt"}}, &checksums, model_.device());
        files.push_back(checksums.finish(name));
    };
    write_tensors(model_file(ranks_.rank(), ranks_.size()), model_tensors);
    if (snapshots_moments_ && !snapshots_weights_) copied->set_value();
    write_tensors(optimizer_file(ranks_.rank(), ranks_.size()), moments);
    if (!snapshots_moments_) copied->set_value();
    return to_json(files);
}

std::string CheckpointWriter::write(const Job& job, std::promise<void>* copied) const {
    std::vector<OptimizerState> state;
    std::optional<CheckpointStore::Draft> draft;  // the first rank's
    const std::string paths = together([&]() -> std::string {
        state = copied_state(copied);
        if (!ranks_.is_first()) return "";
        draft.emplace(job.store->run(), job.training.step);
        const int64_t element_bytes = size_of(accumulation_dtype(model_.dtype()));
        const int64_t bytes = model_.table().num_parameters() * element_bytes * static_cast<int64_t>(state.size());
        check_free_space(draft->folder(), static_cast<uint64_t>(bytes) + job.tokenizer_json.size());
        return paths_of(draft->folder());
    })[0];

    const std::vector<std::string> written = together([&] {
        if (draft) return write_files(draft->folder(), state, copied).dump();
        const Folder folder = open_draft(paths);
        check_free_space(folder, bytes_of(state));
        return write_files(folder, state, copied).dump();
    });

    return together([&]() -> std::string {
        if (!draft) return "";
        ordered_json files = ordered_json::parse(written[0]);
        for (size_t rank = 1; rank < written.size(); ++rank) {
            const ordered_json others = ordered_json::parse(written[rank]);
            require_files(draft->folder(), others);
            files.insert(files.end(), others.begin(), others.end());
        }
        if (!job.tokenizer_json.empty()) {
            write_text(draft->folder(), kTokenizerFile, job.tokenizer_json);
            ChunkedSha256 checksums;
            checksums.update(job.tokenizer_json.data(), job.tokenizer_json.size());
            files.push_back(to_json({checksums.finish(kTokenizerFile)})[0]);
        }
        ordered_json manifest = job.manifest;
        manifest["files"] = files;
        write_text(draft->folder(), "manifest.json", manifest_text(manifest));
        std::string set_aside = job.store->commit(&*draft);
        try {
            job.store->prune(job.training.step, job.config.keep, job.config.keep_every);
        } catch (const Error&) {}  // it costs space, and the checkpoint is committed
        return set_aside;
    })[0];
}

}  // namespace ingot
