// ./bench: measures this machine. See `./bench --help`.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <optional>

#include "kernels/core/check.h"
#include "src/base/spinning.h"
#include "src/base/text.h"
#include "src/bench/attention.h"
#include "src/bench/data.h"
#include "src/bench/gemm.h"
#include "src/bench/kernels.h"
#include "src/bench/ranks.h"
#include "src/bench/step.h"
#include "src/config/config.h"
#include "src/parallel/control_plane.h"
#include "src/parallel/gpu_ranks.h"
#include "src/parallel/world.h"

namespace {

int fail(const std::string& why, int exit_code) {
    std::fflush(stdout);
    std::fprintf(stderr, "error: %s\n", ingot::printable_line(why).c_str());
    return exit_code;
}

// Returns why the command line was refused. An unknown argument comes first, with the name that was probably meant:
// the option that CLI11 misses may only be misspelt.
std::string why_refused(const CLI::App& app, const CLI::ParseError& error) {
    const std::vector<CLI::App*> parsed = app.get_subcommands();
    const CLI::App& command = parsed.empty() ? app : *parsed.front();
    const std::string help = (parsed.empty() ? "./bench" : "./bench " + command.get_name()) + " --help";
    const std::vector<std::string> unknown = app.remaining(true);
    if (unknown.empty()) return ingot::join(error.what(), ": see ", help);
    std::vector<std::string> names;
    for (const CLI::App* const known : command.get_subcommands({})) names.push_back(known->get_name());
    for (const CLI::Option* const option : command.get_options()) names.push_back(option->get_name());
    const std::string name = unknown.front().substr(0, unknown.front().find('='));
    const std::string nearest = ingot::nearest_word(name, names);
    return ingot::join("unknown argument ", name, ": ", nearest.empty() ? "" : "did you mean " + nearest + "? ", "see ",
                       help);
}

// Each of these adds a command with its options, and returns it.

CLI::App* add_kernels(CLI::App* app, ingot::BenchKernelsOptions* options) {
    CLI::App* const command =
        app->add_subcommand("kernels", "Each op against the rate at which memory is copied, each GEMM in TFLOP/s");
    command->add_option("--device", options->device, "cuda or cpu")->capture_default_str();
    command->add_option("--rows", options->rows, "Tokens in a micro-batch (N)")->capture_default_str();
    command->add_option("--width", options->widths, "Model widths (C), separated by commas")
        ->delimiter(',')
        ->capture_default_str();
    command->add_option("--dtype", options->dtype, "fp32, bf16 or fp16 (default: bf16, on the CPU fp32)");
    command->add_option("--seconds", options->seconds, "Time for each measurement")->capture_default_str();
    return command;
}

CLI::App* add_gemm(CLI::App* app, ingot::BenchGemmOptions* options) {
    CLI::App* const command = app->add_subcommand(
        "gemm", "The GEMMs of a model's micro-step: the library's first choice of an algorithm against ours");
    CLI::Option* const config = command->add_option("--config", options->config, "Take shape and dtype from this file");
    const std::pair<CLI::Option*, const char*> shape[] = {
        {command->add_option("--tokens", options->tokens), "Tokens in a micro-batch (N)"},
        {command->add_option("--layers", options->layers), "Layers (L)"},
        {command->add_option("--width", options->width), "Model width (C)"},
        {command->add_option("--heads", options->heads), "Query heads (NH)"},
        {command->add_option("--kv-heads", options->kv_heads), "Key and value heads (NKV)"},
        {command->add_option("--head-dim", options->head_dim), "Head size (HS)"},
        {command->add_option("--hidden", options->hidden), "MLP width (F)"},
        {command->add_option("--vocab", options->vocab), "Vocabulary (V)"}};
    for (const auto& [option, text] : shape) option->description(text)->capture_default_str()->excludes(config);
    command->add_option("--chunk", options->chunk, "Tokens whose logits exist at a time (default: as the model does)");
    command->add_option("--dtype", options->dtype, "fp32, bf16 or fp16 (default: the config's, else bf16)");
    command->add_option("--seconds", options->seconds, "Time for each GEMM")->capture_default_str();
    command->add_flag("--full", options->full, "Search through all algorithms too, and compare with the best");
    command->add_option("--search-seconds", options->search_seconds, "Limit of each GEMM's full search")
        ->capture_default_str();
    return command;
}

CLI::App* add_step(CLI::App* app, ingot::BenchStepOptions* options) {
    CLI::App* const command = app->add_subcommand(
        "step", "The training step of a config on random tokens, and the time of each of its parts");
    command->add_option("--config", options->config, "The run's config; its data need not be there")->required();
    command->add_option("--set", options->overrides, "Override one field, section.key=value; may be repeated")
        ->allow_extra_args(false);
    command->add_flag("--no-attention", options->no_attention, "Everything but attention, RoPE and QK-norm");
    command->add_option("--seconds", options->seconds, "Time for the measured steps")->capture_default_str();
    command->add_option("--settle", options->settle_seconds, "Time for steps before them (default: a fifth of it)");
    command->add_option("--documents", options->document_tokens,
                        "Tokens of a document (default: a quarter of the context)");
    command->add_option("--gemm-rate", options->gemm_rate, "TFLOP/s of the GEMMs' floor: what ./bench gemm says");
    command->add_flag("--no-parts", options->no_parts, "No table of the parts");
    command->add_option("--trace", options->trace, "Write a Chrome trace of some steps to this file (needs CUPTI)");
    command->add_option("--json", options->json, "Write all figures to this file");
    return command;
}

CLI::App* add_attention(CLI::App* app, ingot::BenchAttentionOptions* options) {
    CLI::App* const command =
        app->add_subcommand("attention", "Attention forward and backward: time, TFLOP/s, memory, error");
    const auto lengths = [&](const char* name, std::vector<int64_t>& values, const char* text) {
        return command->add_option(name, values, text)->delimiter(',');
    };
    CLI::Option* const batch = command->add_option("--batch", options->batch, "Sequences (B)")->capture_default_str();
    CLI::Option* const seq =
        lengths("--seq", options->seq, "Tokens of a sequence (T), separated by commas")->capture_default_str();
    CLI::Option* const tokens =
        command->add_option("--tokens", options->tokens, "Tokens in all: the batch is this / seq");
    tokens->excludes(batch);
    lengths("--docs", options->docs, "Lengths of documents packed into one row, separated by commas")
        ->excludes(batch)
        ->excludes(seq)
        ->excludes(tokens);
    command->add_option("--heads", options->heads, "Query heads (NH)")->capture_default_str();
    command->add_option("--kv-heads", options->kv_heads, "Key and value heads (NKV; default: NH)");
    lengths("--head-dim", options->head_dim, "Head sizes (HS), separated by commas")->capture_default_str();
    command->add_flag("--alibi", options->alibi, "With ALiBi");
    command->add_option("--mask", options->mask, "causal or full")->capture_default_str();
    command->add_option("--dtype", options->dtype, "fp32, bf16 or fp16")->capture_default_str();
    command->add_option("--kernel", options->kernel, "auto, simt, sm80 or sm90")->capture_default_str();
    command->add_option(
        "--against", options->against,
        "Beside materialized (a matrix of all pairs), simt (the kernel without tensor cores), or no-alibi (the "
        "same without ALiBi), in turns");
    command->add_flag("--any-order", options->any_order, "As training.deterministic = false");
    command->add_flag("--check", options->check, "Errors against the SIMT kernel in fp32");
    command->add_option("--seconds", options->seconds, "Time for each measurement")->capture_default_str();
    command->add_option("--load-seconds", options->load_seconds, "Load before each shape's measurements")
        ->capture_default_str();
    command->add_option("--json", options->json, "Write all figures to this file");
    return command;
}

CLI::App* add_data(CLI::App* app, ingot::BenchDataOptions* options) {
    CLI::App* const command =
        app->add_subcommand("data", "How fast one thread finds documents, and reads and packs the rows of a config");
    command->add_option("--config", options->config, "The run's config")->required();
    command->add_option("--set", options->overrides, "Override one field, section.key=value; may be repeated")
        ->allow_extra_args(false);
    command->add_option("--seconds", options->seconds, "Time for each measurement")->capture_default_str();
    return command;
}

CLI::App* add_ranks(CLI::App* app, ingot::BenchRanksOptions* options) {
    CLI::App* const command = app->add_subcommand(
        "ranks",
        "Several GPUs: the collectives of a step, and what of them a step shows; start it by torchrun or srun");
    command->add_option("--config", options->config, "The run's config; its data need not be there")->required();
    command->add_option("--set", options->overrides, "Override one field, section.key=value; may be repeated")
        ->allow_extra_args(false);
    command->add_option("--seconds", options->seconds, "Time for each measurement of steps")->capture_default_str();
    command->add_option("--rounds", options->rounds, "Measurements with and without collectives, in turns")
        ->capture_default_str();
    command->add_option("--trace", options->trace, "Write a Chrome trace of the first rank's steps to this file");
    command->add_option("--json", options->json, "Write all figures to this file");
    return command;
}

// Joins the ranks that the launcher started beside this one.
void run_ranks(const ingot::BenchRanksOptions& options) {
    const std::optional<ingot::World> world = ingot::world_of_process();
    REQUIRE(world,
            "./bench ranks measures what several ranks cost each other, and this process is alone: start it with "
            "torchrun, srun or mpirun");
    constexpr double kTimeout = 300;
    const bool is_deterministic = ingot::read_config(options.config, options.overrides).training.deterministic;
    const std::string bound = ingot::prepare_for_gpu(*world, is_deterministic);
    const auto control = std::make_shared<ingot::ControlPlane>(*world, options.config, kTimeout);
    const std::unique_ptr<ingot::Ranks> ranks = ingot::gpu_ranks(*world, control, bound);
    bench_ranks(options, ingot::Device::cuda(ranks->local_rank()), ranks.get());
}

}  // namespace

int main(int argc, char** argv) {
    ingot::limit_spinning(argv);
    CLI::App app("Measures Ingot on this machine: its kernels, its attention, its GEMMs, its training step.", "bench");
    app.require_subcommand(1);
    app.set_version_flag("--version", "ingot " INGOT_VERSION, "The version");

    ingot::BenchKernelsOptions kernels;
    ingot::BenchGemmOptions gemm;
    ingot::BenchStepOptions step;
    ingot::BenchAttentionOptions attention;
    ingot::BenchDataOptions data;
    ingot::BenchRanksOptions ranks;
    add_kernels(&app, &kernels);
    const CLI::App* const gemm_command = add_gemm(&app, &gemm);
    const CLI::App* const step_command = add_step(&app, &step);
    const CLI::App* const attention_command = add_attention(&app, &attention);
    const CLI::App* const data_command = add_data(&app, &data);
    const CLI::App* const ranks_command = add_ranks(&app, &ranks);
    try {
        app.parse(argc, argv);
    } catch (const CLI::Success& help) {
        return app.exit(help);
    } catch (const CLI::ParseError& error) {
        return fail(why_refused(app, error), ingot::kExitUsage);
    }
    try {
        if (gemm_command->parsed())
            bench_gemm(gemm);
        else if (data_command->parsed())
            bench_data(data);
        else if (ranks_command->parsed())
            run_ranks(ranks);
        else if (step_command->parsed())
            bench_step(step);
        else if (attention_command->parsed())
            bench_attention(attention);
        else
            bench_kernels(kernels);
    } catch (const ingot::Error& error) {
        return fail(error.what(), error.exit_code);
    } catch (const std::exception& error) {
        return fail(error.what(), ingot::kExitFault);
    }
    return ingot::kExitDone;
}
