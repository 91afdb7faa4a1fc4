// ./bench: measures this machine. See `./bench --help`.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "kernels/core/check.h"
#include "src/base/spinning.h"
#include "src/base/text.h"
#include "src/bench/attention.h"
#include "src/bench/data.h"
#include "src/bench/gemm.h"
#include "src/bench/kernels.h"
#include "src/bench/step.h"

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

}  // namespace

int main(int argc, char** argv) {
    ingot::limit_spinning(argv);
    CLI::App app("Measures Ingot on this machine: its kernels, its attention, its products, its training step.",
                 "bench");
    app.require_subcommand(1);
    app.set_version_flag("--version", "ingot " INGOT_VERSION, "The version");

    ingot::BenchKernelsOptions kernels;
    CLI::App* const kernels_command =
        app.add_subcommand("kernels", "Each op against the rate at which memory is copied, each product in TFLOP/s");
    kernels_command->add_option("--device", kernels.device, "cuda or cpu")->capture_default_str();
    kernels_command->add_option("--rows", kernels.rows, "Tokens in a micro-batch (N)")->capture_default_str();
    kernels_command->add_option("--width", kernels.widths, "Model widths (C), separated by commas")
        ->delimiter(',')
        ->capture_default_str();
    kernels_command->add_option("--dtype", kernels.dtype, "fp32, bf16 or fp16 (default: bf16, on the CPU fp32)");
    kernels_command->add_option("--seconds", kernels.seconds, "Time for each measurement")->capture_default_str();

    ingot::BenchGemmOptions gemm;
    CLI::App* const gemm_command = app.add_subcommand(
        "gemm", "The products of a model's micro-step: the library's first choice of an algorithm against ours");
    CLI::Option* const config =
        gemm_command->add_option("--config", gemm.config, "Take shape and dtype from this file");
    const std::pair<CLI::Option*, const char*> shape[] = {
        {gemm_command->add_option("--tokens", gemm.tokens), "Tokens in a micro-batch (N)"},
        {gemm_command->add_option("--layers", gemm.layers), "Layers (L)"},
        {gemm_command->add_option("--width", gemm.width), "Model width (C)"},
        {gemm_command->add_option("--heads", gemm.heads), "Query heads (NH)"},
        {gemm_command->add_option("--kv-heads", gemm.kv_heads), "Key and value heads (NKV)"},
        {gemm_command->add_option("--head-dim", gemm.head_dim), "Head size (HS)"},
        {gemm_command->add_option("--hidden", gemm.hidden), "MLP width (F)"},
        {gemm_command->add_option("--vocab", gemm.vocab), "Vocabulary (V)"}};
    for (const auto& [option, text] : shape) option->description(text)->capture_default_str()->excludes(config);
    gemm_command->add_option("--chunk", gemm.chunk, "Tokens whose logits exist at a time (default: as the model does)");
    gemm_command->add_option("--dtype", gemm.dtype, "fp32, bf16 or fp16 (default: the config's, else bf16)");
    gemm_command->add_option("--seconds", gemm.seconds, "Time for each product")->capture_default_str();
    gemm_command->add_flag("--full", gemm.full, "Search through all algorithms too, and compare with the best");
    gemm_command->add_option("--search-seconds", gemm.search_seconds, "Limit of each product's full search")
        ->capture_default_str();

    ingot::BenchStepOptions step;
    CLI::App* const step_command =
        app.add_subcommand("step", "The training step of a config on random tokens, and the time of each of its parts");
    step_command->add_option("--config", step.config, "The run's config; its data need not be there")->required();
    step_command->add_option("--set", step.overrides, "Override one field, section.key=value; may be repeated")
        ->allow_extra_args(false);
    step_command->add_flag("--no-attention", step.no_attention, "Everything but attention, RoPE and QK-norm");
    step_command->add_option("--seconds", step.seconds, "Time for the measured steps")->capture_default_str();
    step_command->add_option("--settle", step.settle_seconds, "Time for steps before them (default: a fifth of it)");
    step_command->add_option("--documents", step.document_tokens,
                             "Tokens of a document (default: a quarter of the context)");
    step_command->add_option("--gemm-rate", step.gemm_rate, "TFLOP/s of the products' floor: what ./bench gemm says");
    step_command->add_flag("--no-parts", step.no_parts, "No table of the parts");
    step_command->add_option("--trace", step.trace, "Write a Chrome trace of some steps to this file (needs CUPTI)");
    step_command->add_option("--json", step.json, "Write all figures to this file");

    ingot::BenchAttentionOptions attention;
    CLI::App* const attention_command =
        app.add_subcommand("attention", "Attention forward and backward: time, TFLOP/s, memory, error");
    const auto lengths = [&](const char* name, std::vector<int64_t>& values, const char* text) {
        return attention_command->add_option(name, values, text)->delimiter(',');
    };
    CLI::Option* const batch =
        attention_command->add_option("--batch", attention.batch, "Sequences (B)")->capture_default_str();
    CLI::Option* const seq =
        lengths("--seq", attention.seq, "Tokens of a sequence (T), separated by commas")->capture_default_str();
    CLI::Option* const tokens =
        attention_command->add_option("--tokens", attention.tokens, "Tokens in all: the batch is this / seq");
    tokens->excludes(batch);
    lengths("--docs", attention.docs, "Lengths of documents packed into one row, separated by commas")
        ->excludes(batch)
        ->excludes(seq)
        ->excludes(tokens);
    attention_command->add_option("--heads", attention.heads, "Query heads (NH)")->capture_default_str();
    attention_command->add_option("--kv-heads", attention.kv_heads, "Key and value heads (NKV; default: NH)");
    lengths("--head-dim", attention.head_dim, "Head sizes (HS), separated by commas")->capture_default_str();
    attention_command->add_flag("--alibi", attention.alibi, "With ALiBi");
    attention_command->add_option("--mask", attention.mask, "causal or full")->capture_default_str();
    attention_command->add_option("--dtype", attention.dtype, "fp32, bf16 or fp16")->capture_default_str();
    attention_command->add_option("--kernel", attention.kernel, "auto, plain, sm80 or sm90")->capture_default_str();
    attention_command->add_option(
        "--against", attention.against,
        "Beside naive (a matrix of all pairs), plain (the kernel without tensor cores), or no-alibi (the "
        "same without ALiBi), in turns");
    attention_command->add_flag("--any-order", attention.any_order, "As training.deterministic = false");
    attention_command->add_flag("--check", attention.check, "Errors against the plain kernel in fp32");
    attention_command->add_option("--seconds", attention.seconds, "Time for each measurement")->capture_default_str();
    attention_command->add_option("--load-seconds", attention.load_seconds, "Load before each shape's measurements")
        ->capture_default_str();
    attention_command->add_option("--json", attention.json, "Write all figures to this file");

    ingot::BenchDataOptions data;
    CLI::App* const data_command =
        app.add_subcommand("data", "How fast one thread finds documents, and reads and packs the rows of a config");
    data_command->add_option("--config", data.config, "The run's config")->required();
    data_command->add_option("--set", data.overrides, "Override one field, section.key=value; may be repeated")
        ->allow_extra_args(false);
    data_command->add_option("--seconds", data.seconds, "Time for each measurement")->capture_default_str();

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
