// ./bench: measures this machine. See `./bench --help`.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "kernels/core/check.h"
#include "src/bench_gemm.h"
#include "src/bench_kernels.h"

int main(int argc, char** argv) {
    CLI::App app("Measures Ingot's kernels on this machine.", "bench");
    app.require_subcommand(1);

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

    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? ingot::kExitDone : ingot::kExitUsage;
    }
    try {
        if (gemm_command->parsed())
            bench_gemm(gemm);
        else
            bench_kernels(kernels);
    } catch (const ingot::Error& error) {
        std::fprintf(stderr, "bench: %s\n", error.what());
        return error.exit_code;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "bench: %s\n", error.what());
        return ingot::kExitFault;
    }
    return ingot::kExitDone;
}
