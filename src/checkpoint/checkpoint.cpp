#include "src/checkpoint/checkpoint.h"

#include <cstdio>
#include <filesystem>

#include "kernels/fill.h"
#include "src/base/text.h"
#include "src/checkpoint/manifest.h"
#include "src/checkpoint/safetensors.h"
#include "src/checkpoint/store.h"

namespace ingot {

namespace fs = std::filesystem;

namespace {

void load_tensors(const Device& device, const SafetensorsFile& file, const ParameterTable& table, const Tensor& flat,
                  const std::string& prefix) {
    std::vector<uint8_t> rounded;
    for (const NamedTensor& slot : checkpoint_tensors(table, flat, prefix)) {
        Tensor source = file.tensor(slot.name);
        bool is_equal = source.dtype == DType::f32 && source.rank == slot.tensor.rank;
        for (int axis = 0; is_equal && axis < source.rank; ++axis)
            is_equal = source.shape[axis] == slot.tensor.shape[axis];
        REQUIRE(is_equal, slot.name, " is ", source.describe(), ", this model has ", slot.tensor.describe(),
                ": was the checkpoint put together from two?");
        if (slot.tensor.dtype != DType::f32) {
            rounded.resize(static_cast<size_t>(slot.tensor.bytes()));
            Tensor host = slot.tensor;
            host.data = rounded.data();
            host.device = DeviceKind::cpu;
            round_to(Device::cpu(), {.out = host, .in = source});
            source = host;
        }
        try {
            device.copy(slot.tensor, source);
        } catch (const CudaError&) {  // a page that is gone fails in the driver, without a signal
            file.require_intact();
            throw;
        }
    }
    file.require_intact();
}

// The folder's own name, also for "." and with a slash at the end.
std::string name_of_folder(const std::string& folder) {
    std::error_code error;
    const fs::path absolute = fs::absolute(folder, error);  // fails where the current folder is gone
    const fs::path path = (error ? fs::path(folder) : absolute).lexically_normal();
    return (path.filename().empty() ? path.parent_path() : path).filename().string();
}

// The tensors of the file are those of a model of this table, once for each prefix. Before any memory is taken for the
// model: its sizes come from the manifest too.
void check_tensors(const std::string& path, const SafetensorsFile& file, const ParameterTable& table,
                   const std::vector<std::string>& prefixes) {
    size_t count = 0;
    for (const Parameter& parameter : table.parameters())
        for (const CheckpointPart& part : parameter.parts)
            for (const std::string& prefix : prefixes) {
                const Tensor tensor = file.tensor(prefix + part.name);
                const bool fits =
                    parameter.is_matrix
                        ? tensor.rank == 2 && tensor.shape[0] == part.rows && tensor.shape[1] == parameter.columns
                        : tensor.rank == 1 && tensor.shape[0] == part.rows * parameter.columns;
                REQUIRE(fits && tensor.dtype == DType::f32, path, ": ", prefix, part.name, " is ", tensor.describe(),
                        ", the model of its manifest has ", part.rows, " x ", parameter.columns,
                        " in f32: was the checkpoint put together from two?");
                ++count;
            }
    REQUIRE(file.names().size() == count, path, ": has ", file.names().size(),
            " tensors, the model of its manifest has ", count, ": was the checkpoint put together from two?");
}

// Throws DamagedCheckpoint if anything in it is not what was written.
Checkpoint verified_checkpoint(const std::string& folder, bool with_moments) {
    Checkpoint checkpoint;
    checkpoint.folder = folder;
    checkpoint.manifest = read_manifest(folder);
    // Whoever copies a checkpoint elsewhere may call it anything, but not by another step.
    const std::string name = name_of_folder(folder);
    if (is_step_name(name) && name != step_name(checkpoint.manifest.step))
        throw DamagedCheckpoint(join(folder, ": its manifest is that of step ", checkpoint.manifest.step,
                                     ": was the folder renamed? give it its own name again"));
    std::vector<FileRecord> files = checkpoint.manifest.files;
    if (!with_moments) std::erase_if(files, [](const FileRecord& file) { return file.name == kOptimizerFile; });
    verify_files(folder, files);
    const ParameterTable table(checkpoint.manifest.config.model);
    const std::string model = folder + "/" + kModelFile, optimizer = folder + "/" + kOptimizerFile;
    checkpoint.weights = std::make_shared<SafetensorsFile>(model);
    check_tensors(model, *checkpoint.weights, table, {""});
    if (with_moments && checkpoint.manifest.find(kOptimizerFile) != nullptr) {
        checkpoint.moments = std::make_shared<SafetensorsFile>(optimizer);
        check_tensors(optimizer, *checkpoint.moments, table, Optimizer::moment_prefixes());
    }
    if (checkpoint.manifest.find(kTokenizerFile) != nullptr)
        checkpoint.tokenizer_json = read_tokenizer_file(folder + "/" + kTokenizerFile);
    return checkpoint;
}

}  // namespace

std::vector<NamedTensor> checkpoint_tensors(const ParameterTable& table, const Tensor& flat,
                                            const std::string& prefix) {
    std::vector<NamedTensor> tensors;
    for (const Parameter& parameter : table.parameters())
        for (const CheckpointPart& part : parameter.parts)
            tensors.push_back({prefix + part.name, part_view(flat, parameter, part)});
    return tensors;
}

Checkpoint open_checkpoint(const std::string& folder, bool with_moments) {
    std::error_code error;
    const bool exists = fs::exists(folder, error);
    REQUIRE(exists, "there is no checkpoint ", folder, ": name a run folder, or a step folder in its checkpoints/");
    REQUIRE(fs::is_directory(folder, error), folder,
            " is a file: name the folder of a run, or a step folder in its checkpoints/");
    if (is_step_name(name_of_folder(folder)) || fs::exists(folder + "/manifest.json", error))
        return verified_checkpoint(folder, with_moments);
    std::vector<std::string> all = list_checkpoints(folder);
    REQUIRE(!all.empty(), folder,
            " holds no checkpoint: name a run folder with some in its checkpoints/, or a step folder");
    const size_t count = all.size();
    while (!all.empty()) {
        try {
            return verified_checkpoint(all.back(), with_moments);
        } catch (const UserError& fault) {
            // Gone: a run that goes on has removed it, and written a newer one before.
            const bool is_gone = !fs::exists(all.back(), error);
            if (!is_gone && dynamic_cast<const DamagedCheckpoint*>(&fault) == nullptr) throw;
            if (is_gone) {
                all = list_checkpoints(folder);
                continue;
            }
            print_warning(join("passing over a damaged checkpoint: ", fault.what()));
        }
        all.pop_back();
    }
    throw UserError(join("none of the ", count, " checkpoints in ", checkpoints_of(folder),
                         " is whole: move the folder away, or start anew with another name"));
}

std::unique_ptr<Tokenizer> checkpoint_tokenizer(const Checkpoint& checkpoint) {
    const std::string& name = checkpoint.manifest.config.data.tokenizer;
    if (name.empty()) return nullptr;
    if (name == kBytesTokenizer) return bytes_tokenizer();
    REQUIRE(!checkpoint.tokenizer_json.empty(), checkpoint.folder, " holds no ", kTokenizerFile, ", but its run had ",
            name, ": was the checkpoint put together from two?");
    return parse_tokenizer(checkpoint.tokenizer_json, checkpoint.folder + "/" + kTokenizerFile);
}

void load_weights(const Checkpoint& checkpoint, const Model& model) {
    model.device().zero(model.weights());  // the padding between tensors
    load_tensors(model.device(), *checkpoint.weights, model.table(), model.weights(), "");
}

void load_weights(const Checkpoint& checkpoint, const Model& model, Optimizer* optimizer) {
    load_tensors(model.device(), *checkpoint.weights, model.table(), optimizer->state()[0].pieces[0].tensor, "");
    optimizer->refresh_model();
}

TrainingState load_training(const Checkpoint& checkpoint, const Model& model, Optimizer* optimizer) {
    CHECK(checkpoint.moments != nullptr, checkpoint.folder, " has no optimizer state to go on from");
    for (const OptimizerState& state : optimizer->state())
        load_tensors(model.device(), state.is_weights() ? *checkpoint.weights : *checkpoint.moments, model.table(),
                     state.pieces[0].tensor, state.prefix);
    optimizer->refresh_model();
    const Manifest& manifest = checkpoint.manifest;
    return {.step = manifest.step,
            .rows_consumed = manifest.rows_consumed,
            .data = manifest.data,
            .state = manifest.state,
            .report = manifest.report};
}

}  // namespace ingot
