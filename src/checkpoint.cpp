#include "src/checkpoint.h"

#include <cstdio>
#include <filesystem>

#include "src/checkpoint_store.h"
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
        try {
            device.copy(slot.tensor, source);
        } catch (const CudaError&) {  // a page that is gone fails in the driver, without a signal
            file.require_intact();
            throw;
        }
    }
    file.require_intact();
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

Checkpoint open_checkpoint(const std::string& folder) {
    std::error_code error;
    const bool exists = fs::exists(folder, error);
    REQUIRE(exists, "there is no checkpoint ", folder, ": name a run folder, or a step folder in its checkpoints/");
    REQUIRE(fs::is_directory(folder, error), folder,
            " is a file: name the folder of a run, or a step folder in its checkpoints/");
    const fs::path absolute = fs::absolute(folder, error);  // fails where the current folder is gone
    fs::path path = (error ? fs::path(folder) : absolute).lexically_normal();
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
    throw UserError(join("none of the ", count, " checkpoints in ", checkpoints_of(folder),
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

}  // namespace ingot
