#include "src/run_start.h"

#include <cstdio>

#include "kernels/core/check.h"
#include "src/config_notes.h"
#include "src/device_choice.h"
#include "src/generate.h"

namespace ingot {

Device training_device(const Config& config) {
    const DeviceChoice wanted = config.training.device;
    const auto [device, reason] = choose_device(wanted == DeviceChoice::cuda  ? "cuda"
                                                : wanted == DeviceChoice::cpu ? "cpu"
                                                                              : "auto");
    if (!reason.empty()) std::printf("device: %s, since %s\n", device.name().c_str(), reason.c_str());
    REQUIRE(!device.is_cpu() || config.training.precision == Precision::automatic ||
                config.training.precision == Precision::fp32,
            "training.precision is a 16-bit type, but the CPU computes in fp32: set training.precision to \"auto\"");
    return device;
}

std::optional<Checkpoint> checkpoint_to_resume(const std::string& run_dir, CheckpointStore* store,
                                               const std::string& resume) {
    store->remove_unfinished();
    const std::vector<std::string> existing = list_checkpoints(run_dir);
    const bool takes_path = resume != "none" && resume != "auto";
    REQUIRE(existing.empty() || resume != "none", run_dir, " holds a checkpoint (", existing.back(),
            "): go on with --resume auto, or start anew with another name or run_dir");
    if (!takes_path && existing.empty()) return std::nullopt;
    Checkpoint checkpoint = open_checkpoint(takes_path ? resume : run_dir);
    const bool is_own = store->holds(checkpoint.folder);
    REQUIRE(existing.empty() || is_own, run_dir, " holds checkpoints of its own, and ", resume,
            " belongs to another run: start with another name or run_dir");
    if (is_own) store->go_on_from(checkpoint.folder, checkpoint.manifest);
    return checkpoint;
}

void print_notes(const Config& config, const Device& device) {
    for (const std::string& note : settings_without_effect(config, device.is_cpu()))
        std::printf("note: %s\n", note.c_str());
}

void print_plan(const TrainingPlan& plan) {
    std::printf("%s%s", plan.features().c_str(), plan.memory_table().c_str());
}

void print_data(const TrainingData& data, const HellaSwag* hellaswag) {
    std::printf("%s", data.describe().c_str());
    if (hellaswag != nullptr) std::printf("hellaswag: %s\n", hellaswag->describe().c_str());
}

std::unique_ptr<Tokenizer> training_tokenizer(const Config& config) {
    if (config.data.tokenizer.empty()) return nullptr;
    std::unique_ptr<Tokenizer> tokenizer = open_tokenizer(config.data.tokenizer);
    check_tokenizer(*tokenizer, config);
    return tokenizer;
}

std::unique_ptr<HellaSwag> training_hellaswag(const Config& config, Tokenizer* tokenizer) {
    if (config.eval.hellaswag.empty()) return nullptr;
    return std::make_unique<HellaSwag>(config.eval.hellaswag, "eval.hellaswag", tokenizer, config.model);
}

int dry_run(Config config) {
    std::string why;
    const bool is_planned = config.training.device == DeviceChoice::cuda && Device::num_cuda_devices(&why) == 0;
    const Device device = is_planned ? Device::planned_cuda() : training_device(config);
    print_notes(config, device);
    try {
        const std::unique_ptr<Tokenizer> tokenizer = training_tokenizer(config);
        const std::unique_ptr<HellaSwag> hellaswag = training_hellaswag(config, tokenizer.get());
        const TrainingData data(config);
        data.require_targets();
        print_data(data, hellaswag.get());
        if (config.training.steps == 0) resolve_steps(&config, data.epoch_tokens());
    } catch (const UserError& error) {
        if (config.training.steps == 0)
            throw UserError(join(error.what(), " (training.epochs needs the data; training.steps would not)"));
        std::printf("data: a run would stop here: %s\n", error.what());
    }
    resolve_micro_batch(&config, device);
    const TrainingPlan plan(config, device);
    print_plan(plan);
    if (!device.is_cpu()) std::printf("CUDA itself and cuBLASLt take about 0.6 GiB more\n");
    plan.check_memory();
    std::printf("nothing was started: this was --dry-run\n");
    return kExitDone;
}

}  // namespace ingot
