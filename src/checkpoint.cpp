#include "src/checkpoint.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "src/manifest.h"
#include "src/safetensors.h"

namespace ingot {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

namespace {

void load_tensors(const Device& device, const SafetensorsFile& file, const ParameterTable& table, const Tensor& flat,
                  const std::string& prefix) {
    for (const NamedTensor& slot : outer_tensors(table, flat, prefix)) {
        const Tensor source = file.tensor(slot.name);
        bool is_equal = source.dtype == slot.tensor.dtype && source.rank == slot.tensor.rank;
        for (int axis = 0; is_equal && axis < source.rank; ++axis)
            is_equal = source.shape[axis] == slot.tensor.shape[axis];
        REQUIRE(is_equal, slot.name, " is ", source.describe(), ", this model has ", slot.tensor.describe(),
                ": was the checkpoint put together from two?");
        device.copy(slot.tensor, source);
    }
}

std::string folder_of(const std::string& run_dir) {
    return run_dir + "/checkpoints";
}

constexpr const char* kStepPrefix = "step-";

// Names alone; step-00001000.tmp-... is no checkpoint.
bool is_step_name(const std::string& name) {
    return name.size() >= 13 && name.rfind(kStepPrefix, 0) == 0 &&
           name.find_first_not_of("0123456789", 5) == std::string::npos;
}

int64_t step_of(const std::string& folder) {
    return std::strtoll(fs::path(folder).filename().c_str() + 5, nullptr, 10);
}

// Throws DamagedCheckpoint if anything in it is not what was written.
Checkpoint verified_checkpoint(const std::string& folder) {
    Checkpoint checkpoint;
    checkpoint.folder = folder;
    checkpoint.manifest = read_manifest(folder);
    verify_files(folder, checkpoint.manifest);
    try {
        checkpoint.step = checkpoint.manifest.at("step");
        checkpoint.config = parse_config(checkpoint.manifest.at("config").dump(), folder + "/manifest.json", {});
        checkpoint.weights = std::make_shared<SafetensorsFile>(folder + "/" + kModelFile);
        checkpoint.moments = std::make_shared<SafetensorsFile>(folder + "/" + kOptimizerFile);
        const std::string& tokenizer = checkpoint.config.data.tokenizer;
        if (!tokenizer.empty() && tokenizer != kBytesTokenizer)
            checkpoint.tokenizer_json = read_tokenizer_file(folder + "/" + kTokenizerFile);
    } catch (const nlohmann::json::exception& error) {
        throw UserError(join(folder, "/manifest.json: ", error.what(), ": was it written by another version?"));
    }
    return checkpoint;
}

}  // namespace

std::vector<NamedTensor> outer_tensors(const ParameterTable& table, const Tensor& flat, const std::string& prefix) {
    std::vector<NamedTensor> tensors;
    for (const Parameter& parameter : table.parameters())
        for (const OuterPart& part : parameter.parts)
            tensors.push_back({prefix + part.name, part_view(flat, parameter, part)});
    return tensors;
}

std::string checkpoint_folder(const std::string& run_dir, int64_t step) {
    char name[32];
    std::snprintf(name, sizeof name, "%s%08ld", kStepPrefix, static_cast<long>(step));
    return folder_of(run_dir) + "/" + name;
}

std::vector<std::string> list_checkpoints(const std::string& run_dir) {
    std::vector<std::string> result;
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(folder_of(run_dir), error))
        if (entry.is_directory(error) && is_step_name(entry.path().filename().string()))
            result.push_back(entry.path().string());
    // Numbers of more than eight digits are longer, and later.
    std::sort(result.begin(), result.end(), [](const std::string& a, const std::string& b) {
        return a.size() != b.size() ? a.size() < b.size() : a < b;
    });
    return result;
}

Checkpoint open_checkpoint(const std::string& folder) {
    std::error_code error;
    const bool exists = fs::exists(folder, error);
    REQUIRE(exists, "there is no checkpoint ", folder, ": name a run folder, or a step folder in its checkpoints/");
    REQUIRE(fs::is_directory(folder, error), folder,
            " is a file: name the folder of a run, or a step folder in its checkpoints/");
    fs::path path = fs::absolute(folder).lexically_normal();
    if (path.filename().empty()) path = path.parent_path();  // a slash at the end
    if (is_step_name(path.filename().string()) || fs::exists(folder + "/manifest.json", error))
        return verified_checkpoint(folder);
    std::vector<std::string> all = list_checkpoints(folder);
    REQUIRE(!all.empty(), folder,
            " holds no checkpoint: name a run folder with some in its checkpoints/, or a step folder");
    const size_t count = all.size();
    while (!all.empty()) {
        try {
            return verified_checkpoint(all.back());
        } catch (const UserError& fault) {
            // Gone: a run that goes on has removed it, and written a newer one before.
            const bool is_gone = !fs::exists(all.back(), error);
            if (!is_gone && dynamic_cast<const DamagedCheckpoint*>(&fault) == nullptr) throw;
            if (is_gone) {
                all = list_checkpoints(folder);
                continue;
            }
            std::fprintf(stderr, "WARNING: passing over a damaged checkpoint: %s\n", fault.what());
        }
        all.pop_back();
    }
    throw UserError(join("none of the ", count, " checkpoints in ", folder_of(folder),
                         " is whole: move the folder away, or start anew with another name"));
}

std::unique_ptr<Tokenizer> checkpoint_tokenizer(const Checkpoint& checkpoint) {
    const std::string& name = checkpoint.config.data.tokenizer;
    if (name.empty()) return nullptr;
    if (name == kBytesTokenizer) return bytes_tokenizer();
    return parse_tokenizer(checkpoint.tokenizer_json, checkpoint.folder + "/" + kTokenizerFile);
}

void load_weights(const Checkpoint& checkpoint, Model* model) {
    load_tensors(model->device(), *checkpoint.weights, model->table(), model->weights(), "");
    model->refresh_compute_weights();
}

TrainingState load_training(const Checkpoint& checkpoint, Model* model, const Optimizer& optimizer) {
    load_weights(checkpoint, model);
    load_tensors(model->device(), *checkpoint.moments, model->table(), optimizer.m(), "m.");
    load_tensors(model->device(), *checkpoint.moments, model->table(), optimizer.v(), "v.");
    const ordered_json& manifest = checkpoint.manifest;
    try {
        TrainingState training;
        training.step = manifest.at("step");
        training.rows_consumed = manifest.at("rows_consumed");
        training.data = manifest.value("data", nlohmann::ordered_json::object());
        const ordered_json& state = manifest.at("step_state");
        training.state.updates_applied = state.at("updates_applied");
        training.state.loss_scale = state.at("loss_scale");
        training.state.good_steps = state.at("good_steps");
        training.state.consecutive_skips = state.at("consecutive_skips");
        training.report = report_from_json(manifest.at("report"));
        return training;
    } catch (const nlohmann::json::exception& error) {
        throw UserError(
            join(checkpoint.folder, "/manifest.json: ", error.what(), ": was it written by another version?"));
    }
}

void remove_unfinished_checkpoints(const std::string& run_dir) {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(folder_of(run_dir), error)) {
        const std::string name = entry.path().filename().string();
        if (name.rfind(kStepPrefix, 0) != 0 || name.find(".tmp-") == std::string::npos) continue;
        std::error_code ignored;
        fs::remove_all(entry.path(), ignored);
    }
}

void prune_checkpoints(const std::string& run_dir, int64_t keep, int64_t keep_every) {
    const std::vector<std::string> all = list_checkpoints(run_dir);
    for (size_t i = 0; i + static_cast<size_t>(keep) < all.size(); ++i) {
        if (keep_every > 0 && step_of(all[i]) % keep_every == 0) continue;
        // One that cannot be removed costs space, not the run. Renamed first: a kill must not leave half of one.
        std::error_code ignored;
        const std::string doomed = join(all[i], ".tmp-removed-", getpid());
        fs::rename(all[i], doomed, ignored);
        fs::remove_all(doomed, ignored);
    }
}

std::vector<std::string> set_aside_checkpoints_after(const std::string& run_dir, int64_t step) {
    std::vector<std::string> moved;
    const auto nonce = std::chrono::system_clock::now().time_since_epoch().count();
    for (const std::string& folder : list_checkpoints(run_dir)) {
        if (step_of(folder) <= step) continue;
        moved.push_back(join(folder, ".set-aside-", nonce));
        std::error_code error;
        fs::rename(folder, moved.back(), error);
        REQUIRE(!error, "cannot rename ", folder, ": ", error.message(), ": move it away yourself");
    }
    return moved;
}

}  // namespace ingot
