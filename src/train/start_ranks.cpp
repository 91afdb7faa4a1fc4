#include "src/train/start_ranks.h"

#include <filesystem>

#include "kernels/core/device.h"
#include "kernels/cuda/nccl.h"
#include "src/base/own_file.h"
#include "src/base/text.h"
#include "src/model/device_choice.h"
#include "src/parallel/control_plane.h"
#include "src/parallel/gpu_ranks.h"
#include "src/parallel/launcher.h"
#include "src/parallel/tcp_ranks.h"

namespace ingot {

namespace {

int64_t num_gpus() {
    std::string why;
    return Device::num_cuda_devices(&why);
}

}  // namespace

int64_t num_ranks_of_run(const TrainOptions& options, const Config& config, const std::optional<World>& world) {
    const std::optional<int64_t>& wanted = options.num_ranks;
    if (world) {
        REQUIRE(!wanted || *wanted == world->size, "--gpus is ", wanted.value_or(0), ", but ", world->launcher,
                " started ", counted(world->size, "rank"), ": leave --gpus out");
        return world->size;
    }
    if (config.training.device == DeviceChoice::cpu) return wanted.value_or(1);
    if (wanted == 1 || (!wanted && !has_nccl())) return 1;
    // The driver must not be open in a process that starts the ranks.
    const int64_t num_found = count_in_child(num_gpus);
    if (num_found == 0) {
        if (config.training.device == DeviceChoice::cuda && !options.is_dry_run)
            require_cuda("training.device is \"cuda\"");
        return wanted.value_or(1);
    }
    REQUIRE(!wanted || *wanted <= num_found || options.is_dry_run, "--gpus is ", wanted.value_or(0),
            ", but this machine has ", counted(num_found, "GPU"), ": ask for at most as many");
    REQUIRE(!wanted || *wanted == 1 || has_nccl() || options.is_dry_run,
            "--gpus: this build has no NCCL, which several GPUs need: configure with -DINGOT_NCCL_ROOT=DIR");
    return wanted.value_or(num_found);
}

int start_ranks(const TrainOptions& options, const Config& config, int64_t num_ranks) {
    REQUIRE(std::filesystem::is_regular_file(options.config_file), "--config ",
            excerpt(options.config_file, kLongestMessage / 2),
            " is no file that each rank can read again: save it as one");
    const std::string program = own_file();
    REQUIRE(!program.empty(),
            "this program cannot start itself without /proc: start its ranks with torchrun or mpirun");
    return launch_ranks({.program = program,
                         .arguments = options.arguments,
                         .num_ranks = num_ranks,
                         .timeout_seconds = static_cast<double>(config.distributed.timeout_seconds)});
}

std::unique_ptr<Ranks> join_ranks(const Config& config, const std::optional<World>& world) {
    if (!world || world->size == 1) return one_rank();
    const bool is_cpu = config.training.device == DeviceChoice::cpu ||
                        (config.training.device == DeviceChoice::automatic && num_gpus() == 0);
    const std::string bound = is_cpu ? "" : prepare_for_gpu(*world, config.training.deterministic);
    auto control = std::make_shared<ControlPlane>(*world, config_to_json(config).dump(),
                                                  static_cast<double>(config.distributed.timeout_seconds));
    const std::vector<std::string> devices = control->exchange(is_cpu ? "no GPU" : "a GPU", 0);
    for (size_t rank = 0; rank < devices.size(); ++rank)
        REQUIRE(devices[rank] == devices[0], "rank 0 has ", devices[0], ", and rank ", rank, " has ", devices[rank],
                ": set training.device to cpu, or start ranks only where there are GPUs");
    if (is_cpu) return cpu_ranks(*world, std::move(control));
    REQUIRE(has_nccl(), "this build has no NCCL, which several GPUs need: configure with -DINGOT_NCCL_ROOT=DIR");
    return gpu_ranks(*world, std::move(control), bound);
}

}  // namespace ingot
