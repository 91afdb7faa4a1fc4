#include "src/train/run_start.h"

#include <filesystem>

#include "kernels/core/check.h"
#include "src/base/text.h"
#include "src/config/notes.h"
#include "src/model/device_choice.h"
#include "src/model/generator.h"
#include "src/train/features.h"

namespace ingot {

namespace fs = std::filesystem;

Device training_device(const Config& config, const Ranks& ranks, const Console& console) {
    const DeviceChoice wanted = config.training.device;
    const auto [device, reason] = choose_device(wanted == DeviceChoice::cuda  ? "cuda"
                                                : wanted == DeviceChoice::cpu ? "cpu"
                                                                              : "auto",
                                                ranks.local_rank());
    if (!reason.empty()) console.line("device: ", device.name(), ", since ", reason);
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
    REQUIRE(
        checkpoint.moments != nullptr, checkpoint.folder,
        " has weights alone, no optimizer state to go on with: start a new run from it, with --set model.init_from=",
        checkpoint.folder);
    const bool is_own = store->holds(checkpoint.folder);
    REQUIRE(existing.empty() || is_own, run_dir, " holds checkpoints of its own, and ", resume,
            " belongs to another run: start with another name or run_dir");
    if (is_own) store->go_on_from(checkpoint.folder, checkpoint.manifest);
    return checkpoint;
}

std::optional<Checkpoint> checkpoint_to_start_from(const Config& config) {
    const std::string& folder = config.model.init_from;
    if (folder.empty()) return std::nullopt;
    std::error_code error;
    const bool is_checkpoint = fs::exists(folder + "/manifest.json", error) || !list_checkpoints(folder).empty();
    const bool is_huggingface =
        fs::exists(folder + "/model.safetensors", error) || fs::exists(folder + "/model.safetensors.index.json", error);
    REQUIRE(is_checkpoint || !is_huggingface, "model.init_from is ", folder,
            ", a model of Hugging Face: import it with ./train import --from ", folder,
            " --output DIR, and give that DIR");
    Checkpoint checkpoint;
    try {
        checkpoint = open_checkpoint(folder, false);
    } catch (const UserError& fault) {
        throw UserError(join("model.init_from: ", fault.what()));
    }
    for (const ConfigChange& change : config_changes(config_to_json(checkpoint.manifest.config), config)) {
        const bool is_of_model = change.path.rfind("model.", 0) == 0 && change.path != "model.context_length" &&
                                 change.path != "model.init_from" && change.path != "model.init_std";
        REQUIRE(!is_of_model, "model.init_from: ", checkpoint.folder, " has ", change.path, " = ",
                excerpt(change.then, 200), ", the config says ", excerpt(change.now, 200),
                ": a run that starts from its weights computes as it does, set ", change.path, " to ",
                excerpt(change.then, 200));
    }
    return checkpoint;
}

void print_start(const Checkpoint& initial, const Config& config, const Tokenizer* tokenizer, const Console& console) {
    const Manifest& manifest = initial.manifest;
    console.line("model.init_from: the weights of ", printable_line(initial.folder), " (step ", manifest.step,
                 "), with a new optimizer");
    const int64_t then = manifest.config.model.context_length, now = config.model.context_length;
    if (then != now) console.line("model.init_from: context_length is ", now, ", the checkpoint has ", then);
    const bool is_bytes = manifest.config.data.tokenizer == kBytesTokenizer;
    if (tokenizer != nullptr && (is_bytes || !initial.tokenizer_json.empty()) &&
        tokenizer->source() != initial.tokenizer_json)
        print_warning(join("model.init_from: data.tokenizer is another than that of ", initial.folder,
                           ": its ids may mean other text than those that the weights have learnt"));
}

void print_notes(const Config& config, const Device& device, const Console& console) {
    for (const std::string& note : settings_without_effect(config, device.is_cpu())) console.line("note: ", note);
}

void print_plan(const Config& config, const TrainingPlan& plan, const Console& console) {
    console.text(describe_features(config, plan) + plan.memory_table());
}

void print_data(const TrainingData& data, const HellaSwag* hellaswag, const Console& console) {
    console.text(data.describe());
    if (hellaswag != nullptr) console.line("hellaswag: ", hellaswag->describe());
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

int dry_run(Config config, const Ranks& ranks, const Console& console) {
    std::string why;
    const bool is_planned = config.training.device == DeviceChoice::cuda && Device::num_cuda_devices(&why) == 0;
    const Device device = is_planned ? Device::planned_cuda() : training_device(config, ranks, console);
    print_notes(config, device, console);
    if (const std::optional<Checkpoint> initial = checkpoint_to_start_from(config))
        print_start(*initial, config, nullptr, console);
    try {
        const std::unique_ptr<Tokenizer> tokenizer = training_tokenizer(config);
        const std::unique_ptr<HellaSwag> hellaswag = training_hellaswag(config, tokenizer.get());
        const TrainingData data(config);
        data.require_targets();
        print_data(data, hellaswag.get(), console);
        if (!config.training.steps) resolve_steps(&config, data.epoch_tokens());
    } catch (const UserError& error) {
        if (!config.training.steps)
            throw UserError(join(error.what(), " (training.epochs needs the data; training.steps would not)"));
        console.line("data: a run would stop here: ", error.what());
    }
    resolve_micro_batch(&config, device, ranks.size());
    const TrainingPlan plan(config, device, ranks.size());
    print_plan(config, plan, console);
    if (!device.is_cpu()) console.line("CUDA itself and cuBLASLt take about 0.6 GiB more");
    plan.check_memory();
    console.line("nothing was started: this was --dry-run");
    return kExitDone;
}

}  // namespace ingot
