// ./bench: measures this machine. See `./bench --help`.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "kernels/core/check.h"
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

    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? ingot::kExitDone : ingot::kExitUsage;
    }
    try {
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
