#include "src/checkpoint.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "kernels/core/blas.h"
#include "src/files.h"
#include "src/safetensors.h"

namespace ingot {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

namespace {

constexpr int kFormatVersion = 1;
constexpr const char* kModelFile = "model-00000-of-00001.safetensors";
constexpr const char* kOptimizerFile = "optimizer-00000-of-00001.safetensors";

// All outer tensors of a flat space, under `prefix`. Flat spaces on the host for now: the CPU device's own memory.
void append_tensors(const ParameterTable& table, const Tensor& flat, const std::string& prefix,
                    std::vector<NamedTensor>* out) {
    for (const Parameter& parameter : table.parameters())
        for (const OuterPart& part : parameter.parts)
            out->push_back({prefix + part.name, part_view(flat, parameter, part)});
}

void load_tensors(const SafetensorsFile& file, const ParameterTable& table, const Tensor& flat,
                  const std::string& prefix) {
    std::vector<NamedTensor> slots;
    append_tensors(table, flat, prefix, &slots);
    for (const NamedTensor& slot : slots) {
        const Tensor source = file.tensor(slot.name);
        bool is_equal = source.dtype == slot.tensor.dtype && source.rank == slot.tensor.rank;
        for (int axis = 0; is_equal && axis < source.rank; ++axis)
            is_equal = source.shape[axis] == slot.tensor.shape[axis];
        REQUIRE(is_equal, slot.name, " is ", source.describe(), ", this model has ", slot.tensor.describe());
        Device::cpu().copy(slot.tensor, source);
    }
}

std::string folder_of(const std::string& run_dir) {
    return run_dir + "/checkpoints";
}

std::string step_name(int64_t step) {
    char name[32];
    std::snprintf(name, sizeof name, "step-%08ld", static_cast<long>(step));
    return name;
}

// Names alone; step-00001000.tmp-... is no checkpoint.
bool is_step_name(const std::string& name) {
    return name.size() >= 13 && name.rfind("step-", 0) == 0 &&
           name.find_first_not_of("0123456789", 5) == std::string::npos;
}

ordered_json read_manifest(const std::string& checkpoint) {
    std::ifstream stream(checkpoint + "/manifest.json");
    REQUIRE(stream, checkpoint, ": no manifest.json");
    const ordered_json manifest = ordered_json::parse(stream, nullptr, false);
    REQUIRE(manifest.is_object(), checkpoint, ": manifest.json is not JSON");
    REQUIRE(manifest.value("format_version", 0) == kFormatVersion, checkpoint, ": format version ",
            manifest.value("format_version", 0), ", this program reads ", kFormatVersion);
    for (const auto& file : manifest.at("files")) {
        const std::string path = checkpoint + "/" + file.at("name").get<std::string>();
        std::error_code error;
        const uint64_t size = fs::file_size(path, error);
        REQUIRE(!error && size == file.at("bytes").get<uint64_t>(), path, " is missing or truncated");
    }
    return manifest;
}

// The fields that a resumed run may not change.
void check_same_run(const ordered_json& manifest, const Config& config, const std::string& checkpoint) {
    const ordered_json now = config_to_json(config), &then = manifest.at("config");
    for (const auto& [key, value] : now.at("model").items())
        REQUIRE(then.at("model").contains(key) && then.at("model").at(key) == value, checkpoint,
                " was trained with model.", key, " = ", then.at("model").value(key, ordered_json()).dump(),
                ", the config says ", value.dump(),
                ": a resumed run cannot change the model; use another name or run_dir");
    REQUIRE(then.at("seed") == now.at("seed"), checkpoint, " was trained with seed ", then.at("seed").dump(),
            ", the config says ", now.at("seed").dump(), ": a resumed run cannot change the seed");
}

TrainingState load_checkpoint(const std::string& checkpoint, const ordered_json& manifest, const Model& model,
                              const Optimizer& optimizer) {
    const SafetensorsFile weights(checkpoint + "/" + kModelFile), moments(checkpoint + "/" + kOptimizerFile);
    load_tensors(weights, model.table(), model.weights(), "");
    load_tensors(moments, model.table(), optimizer.m(), "m.");
    load_tensors(moments, model.table(), optimizer.v(), "v.");
    TrainingState training;
    training.step = manifest.at("step");
    training.rows_consumed = manifest.at("rows_consumed");
    const ordered_json& state = manifest.at("step_state");
    training.state.updates_applied = state.at("updates_applied");
    training.state.loss_scale = state.at("loss_scale");
    training.state.good_steps = state.at("good_steps");
    training.state.consecutive_skips = state.at("consecutive_skips");
    training.report = report_from_json(manifest.at("report"));
    return training;
}

}  // namespace

void save_checkpoint(const std::string& run_dir, const Config& config, const TrainingState& training,
                     const Model& model, const Optimizer& optimizer) {
    const std::string folder = folder_of(run_dir), name = step_name(training.step);
    const auto nonce = std::chrono::system_clock::now().time_since_epoch().count();
    const std::string temporary = join(folder, "/", name, ".tmp-", nonce, "-", getpid());
    try {
        fs::create_directories(temporary);
        std::vector<NamedTensor> weights, moments;
        append_tensors(model.table(), model.weights(), "", &weights);
        append_tensors(model.table(), optimizer.m(), "m.", &moments);
        append_tensors(model.table(), optimizer.v(), "v.", &moments);
        write_safetensors(temporary + "/" + kModelFile, weights, {{"format", "pt"}});
        write_safetensors(temporary + "/" + kOptimizerFile, moments, {{"format", "pt"}});

        ordered_json manifest;
        manifest["format_version"] = kFormatVersion;
        manifest["step"] = training.step;
        manifest["tokens"] = training.report.tokens;
        manifest["rows_consumed"] = training.rows_consumed;
        manifest["seed"] = config.seed;
        manifest["step_state"] = {{"updates_applied", training.state.updates_applied},
                                  {"loss_scale", training.state.loss_scale},
                                  {"good_steps", training.state.good_steps},
                                  {"consecutive_skips", training.state.consecutive_skips}};
        manifest["report"] = report_to_json(training.report);
        manifest["world_size"] = 1;
        manifest["versions"] = {
            {"ingot", INGOT_VERSION}, {"blas", blas_description()}, {"device", model.device().name()}};
        manifest["config"] = config_to_json(config);
        manifest["files"] = ordered_json::array();
        for (const char* file : {kModelFile, kOptimizerFile})
            manifest["files"].push_back({{"name", file}, {"bytes", fs::file_size(temporary + "/" + file)}});
        const std::string text = manifest.dump(2) + "\n";
        OutputFile file(temporary + "/manifest.json");
        file.write(text.data(), text.size());
        file.sync_and_close();
        sync_folder(temporary);
        // A checkpoint of this step that is there already was found damaged, or belongs to a run that was taken back.
        fs::remove_all(folder + "/" + name);
        fs::rename(temporary, folder + "/" + name);
        sync_folder(folder);
    } catch (const fs::filesystem_error& error) {
        std::error_code ignored;
        fs::remove_all(temporary, ignored);
        throw Error(kExitAllocation, join("cannot save ", folder, "/", name, ": ", error.what()));
    } catch (...) {
        std::error_code ignored;
        fs::remove_all(temporary, ignored);
        throw;
    }
    const std::vector<std::string> all = list_checkpoints(run_dir);
    for (size_t i = 0; i + static_cast<size_t>(config.checkpoint.keep) < all.size(); ++i) {
        std::error_code ignored;  // one that cannot be removed costs space, not the run
        fs::remove_all(all[i], ignored);
    }
}

std::vector<std::string> list_checkpoints(const std::string& run_dir) {
    std::vector<std::string> result;
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(folder_of(run_dir), error))
        if (entry.is_directory() && is_step_name(entry.path().filename().string()))
            result.push_back(entry.path().string());
    // Numbers of more than eight digits are longer, and later.
    std::sort(result.begin(), result.end(), [](const std::string& a, const std::string& b) {
        return a.size() != b.size() ? a.size() < b.size() : a < b;
    });
    return result;
}

TrainingState load_newest_checkpoint(const std::string& run_dir, const Config& config, const Model& model,
                                     const Optimizer& optimizer) {
    const std::vector<std::string> all = list_checkpoints(run_dir);
    const auto pass_over = [](const std::string& what) {
        std::fprintf(stderr, "WARNING: passing over a damaged checkpoint: %s\n", what.c_str());
    };
    for (size_t i = all.size(); i-- > 0;) {
        ordered_json manifest;
        try {
            manifest = read_manifest(all[i]);
        } catch (const UserError& error) {
            pass_over(error.what());
            continue;
        } catch (const nlohmann::json::exception& error) {
            pass_over(all[i] + ": " + error.what());
            continue;
        }
        check_same_run(manifest, config, all[i]);  // what the user changed is no damage: this throws
        try {
            return load_checkpoint(all[i], manifest, model, optimizer);
        } catch (const UserError& error) {
            pass_over(error.what());
        } catch (const nlohmann::json::exception& error) {
            pass_over(all[i] + ": " + error.what());
        }
    }
    throw UserError(join("no checkpoint in ", folder_of(run_dir),
                         " is whole: move the folder away, or start anew with another name"));
}

void remove_unfinished_checkpoints(const std::string& run_dir) {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(folder_of(run_dir), error)) {
        const std::string name = entry.path().filename().string();
        if (name.rfind("step-", 0) != 0 || name.find(".tmp-") == std::string::npos) continue;
        std::error_code ignored;
        fs::remove_all(entry.path(), ignored);
    }
}

}  // namespace ingot
