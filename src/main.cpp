#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "kernels/core/check.h"
#include "kernels/core/device.h"
#include "src/train.h"

namespace {

int run(int argc, char** argv) {
    CLI::App app{
        "Ingot pretrains GPTs: ./train --config FILE\n\n"
        "  python3 scripts/prepare.py --machine-text --output data/tiny      text -> token shards\n"
        "  ./train --config configs/tiny.json                                train on them\n"
        "  ./train --config configs/tiny.json --resume auto                  go on where it stopped\n"
        "  ./train --config configs/tiny.json --set optimizer.lr=1e-3 --set name=faster"};
    app.set_version_flag("--version", "ingot " INGOT_VERSION);
    ingot::TrainOptions options;
    std::string device;
    app.add_option("--config", options.config_file, "The run's configuration (JSON, comments allowed)")->required();
    app.add_option("--set", options.overrides, "Override one field: section.key=value (repeatable)")
        ->take_all()
        ->allow_extra_args(false);
    app.add_option("--resume", options.resume,
                   "auto: go on from the newest whole checkpoint, or start anew where there is none")
        ->capture_default_str();
    app.add_flag("--dry-run", options.is_dry_run, "Print the plan and stop");
    app.add_option("--device", device, "auto or cpu; overrides training.device");
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        const bool is_help = error.get_exit_code() == 0;
        app.exit(error);
        return is_help ? ingot::kExitDone : ingot::kExitUsage;
    }
    if (!device.empty()) {
        options.overrides.push_back("training.device=" + device);
    }
    return ingot::train(options);
}

}  // namespace

int main(int argc, char** argv) {
    try {
        return run(argc, argv);
    } catch (const ingot::Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return error.exit_code;
    } catch (const std::bad_alloc&) {
        std::fprintf(stderr, "error: out of memory: use a smaller model or training.micro_batch_size\n");
        return ingot::kExitAllocation;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return ingot::kExitFault;
    }
}
