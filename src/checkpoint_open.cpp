#include "src/checkpoint_open.h"

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "kernels/core/check.h"
#include "src/checkpoint.h"

namespace ingot {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

namespace {

Checkpoint open_step(const std::string& folder) {
    std::ifstream stream(folder + "/manifest.json");
    REQUIRE(stream, folder, ": no manifest.json");
    try {
        ordered_json manifest = ordered_json::parse(stream);
        REQUIRE(manifest.at("format_version") == 1, folder, ": format version ", manifest.at("format_version").dump(),
                ", this program reads 1");
        for (const auto& file : manifest.at("files")) {
            const std::string path = folder + "/" + file.at("name").get<std::string>();
            std::error_code error;
            const uint64_t size = fs::file_size(path, error);
            REQUIRE(!error && size == file.at("bytes").get<uint64_t>(), path, " is missing or truncated");
        }
        return {.folder = folder,
                .step = manifest.at("step"),
                .manifest = manifest,
                .config = parse_config(manifest.at("config").dump(), folder + "/manifest.json", {}),
                .weights = std::make_shared<SafetensorsFile>(folder + "/model-00000-of-00001.safetensors")};
    } catch (const nlohmann::json::exception& error) {
        throw UserError(join(folder, "/manifest.json: ", error.what()));
    }
}

}  // namespace

Checkpoint open_checkpoint(const std::string& folder) {
    REQUIRE(fs::exists(folder), "there is no folder ", folder, ": name a run's folder (runs/NAME) or one of its ",
            "checkpoints (runs/NAME/checkpoints/step-...)");
    REQUIRE(fs::is_directory(folder), folder, " is a file: name a run's folder (runs/NAME) or one of its checkpoints");
    if (fs::exists(folder + "/manifest.json")) return open_step(folder);
    std::string passed_over;
    // A run that goes on may remove what was just listed: list again.
    for (int attempt = 0; attempt < 5; ++attempt) {
        std::vector<std::string> all = list_checkpoints(folder);
        for (; !all.empty(); all.pop_back()) try {
                return open_step(all.back());
            } catch (const UserError& error) {
                passed_over = error.what();
            }
    }
    REQUIRE(!passed_over.empty(), folder, " holds no checkpoint: name a run's folder (runs/NAME) that has saved one");
    throw UserError(join("no checkpoint in ", folder, " is whole (", passed_over, "): take another run"));
}

void load_weights(const Checkpoint& checkpoint, const Model& model) {
    for (const Parameter& parameter : model.table().parameters())
        for (const OuterPart& part : parameter.parts) {
            const Tensor source = checkpoint.weights->tensor(part.name);
            const Tensor destination = part_view(model.weights(), parameter, part);
            REQUIRE(source.dtype == destination.dtype && source.numel() == destination.numel(), checkpoint.folder, ": ",
                    part.name, " is ", source.describe(), ", the model has ", destination.describe());
            model.device().copy(destination, source.view({source.numel()}));
        }
}

}  // namespace ingot
