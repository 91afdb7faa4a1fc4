// Method: inputs are random token ids in documents of one length, the same in every run. The host launches one step
// ahead, as in training; after a settling time, wall-clock time over whole steps is measured. A separate run on its own
// plan then measures the parts, so that tracing does not affect the figures above: its graphs are recorded while
// tracing runs.
#include "src/bench/step.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "kernels/core/measure.h"
#include "kernels/cuda/timing.h"
#include "kernels/fill.h"
#include "src/base/text.h"
#include "src/bench/memory.h"
#include "src/bench/step_parts.h"
#include "src/bench/synthetic_run.h"
#include "src/config/config.h"
#include "src/train/peak_rate.h"

namespace ingot {

namespace {

Config config_of(const BenchStepOptions& options) {
    Config config = read_config(options.config, options.overrides);
    resolve_steps(&config, int64_t{1} << 40);  // with epochs, any number of steps will do
    return config;
}

constexpr int64_t kFirstSteps = 3;    // load, record graphs, and fill the stream
constexpr int64_t kTracedSteps = 10;  // the most steps that are traced

double unix_seconds() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Returns the bytes per second that a copy kernel reads and writes.
double copy_rate(const Device& device) {
    constexpr int64_t kBytes = int64_t{1} << 29;
    constexpr int kCopies = 10, kSamples = 41,
                  kWarmUp = 500;  // some tenths of a second, since an idle GPU has low clocks
    BenchMemory memory(device);
    const Tensor source = memory.tensor(DType::f32, {kBytes / 4}),
                 destination = memory.tensor(DType::f32, {kBytes / 4});
    fill_normal(device, {.out = source, .seed = 1, .stream = 0, .std = 1});
    for (int i = 0; i < kWarmUp; ++i) copy_kernel_cuda(device, destination, source);
    DeviceTimer timer(device);
    std::vector<double> seconds;
    for (int sample = 0; sample < kSamples; ++sample) {
        timer.start();
        for (int i = 0; i < kCopies; ++i) copy_kernel_cuda(device, destination, source);
        seconds.push_back(timer.stop() / kCopies);
    }
    return 2.0 * static_cast<double>(kBytes) / median(std::move(seconds));
}

class Bench {
  public:
    Bench(const BenchStepOptions& options, const Config& config, const Device& device)
        : options_(options), config_(config), device_(device) {}

    void run() {
        std::printf("%s\n", describe_cuda(device_).c_str());
        copy_rate_ = copy_rate(device_);
        std::printf("copy rate: %.1f GB/s, read + written\n", copy_rate_ * 1e-9);
        resolve_micro_batch(&config_, device_, one_rank().get());
        measure();
        std::string why;
        if (!options_.no_parts || !options_.trace.empty()) {
            if (can_trace(&why))
                trace();
            else
                std::printf("\nno table of the parts: %s\n", why.c_str());
        }
        if (!options_.json.empty()) write(options_.json, [&](std::ostream& out) { out << result_.dump(1) << "\n"; });
    }

  private:
    SyntheticOptions run_options() const {
        return {.document_tokens = options_.document_tokens, .leaves_out_attention = options_.no_attention};
    }

    void measure() {
        SyntheticRun run(config_, device_, run_options());
        TrainingPlan& plan = run.plan();
        const ModelConfig& m = config_.model;
        const double batch_tokens = static_cast<double>(config_.training.batch_tokens);
        // FLOPs are counted as for PyTorch (scripts/peers/bench_torch_gpu.py).
        const double flops = plan.model.flops(1, options_.no_attention ? 0 : run.visible_pairs_per_token());
        std::printf("%s: %s, width %ld, %s, %ld micro-batch%s of %ld x %ld tokens, %.4g GFLOP a token, %s\n",
                    config_.name.c_str(), counted(m.n_layers, "layer").c_str(), static_cast<long>(m.d_model),
                    name_of(plan.model.dtype()), static_cast<long>(plan.num_micro_steps()),
                    plan.num_micro_steps() == 1 ? "" : "es", static_cast<long>(config_.training.micro_batch_size),
                    static_cast<long>(m.context_length), flops * 1e-9,
                    options_.no_attention ? "attention left out" : "with attention");

        run.run_to(kFirstSteps);
        const double settling_began = seconds_now();
        const double settling = options_.settle_seconds >= 0 ? options_.settle_seconds : options_.seconds / 5;
        while (seconds_now() - settling_began < settling) run.run_to(run.step() + 1);
        const int64_t first_step = run.step(), first_skipped = run.num_skipped();
        std::vector<double> seconds;
        const double began = seconds_now(), began_unix = unix_seconds();
        double wall = 0;
        while (wall < options_.seconds || seconds.size() < 5) {
            run.run_to(run.step() + 1);
            seconds.push_back(run.seconds());
            wall = seconds_now() - began;
        }
        const double ended_unix = unix_seconds();
        const double median_step = median(seconds);
        const double rate = static_cast<double>(run.step() - first_step) * batch_tokens / wall;
        run.run_to(run.step() + 1, true);
        const int64_t num_skipped = run.num_skipped() - first_skipped;
        step_seconds_ = wall / static_cast<double>(seconds.size());

        const std::optional<PeakRate> peak = peak_rate(device_.name(), plan.model.dtype());
        std::printf("%.0f tokens/s, %.3f ms a step (median %.3f, %zu steps)", rate, step_seconds_ * 1e3,
                    median_step * 1e3, seconds.size());
        if (peak)
            std::printf(", %.1f%% MFU of the %s's %.4g TFLOP/s\n", 100 * flops * rate / peak->flops, peak->name,
                        peak->flops * 1e-12);
        else
            std::printf(", no MFU: no peak in %s is known of this GPU (src/train/peak_rate.cpp)\n",
                        name_of(plan.model.dtype()));
        std::printf("loss %.4f after %ld steps\n", run.decision().loss, static_cast<long>(run.step()));
        if (num_skipped > 0)
            std::printf("NOTE: %ld of these steps were skipped, since they were not finite\n",
                        static_cast<long>(num_skipped));
        using nlohmann::ordered_json;
        result_ = {{"device", describe_cuda(device_)},
                   {"config", config_to_json(config_)},
                   {"dtype", name_of(plan.model.dtype())},
                   {"attention", !options_.no_attention},
                   {"visible_pairs_per_token", run.visible_pairs_per_token()},
                   {"flops_per_token", flops},
                   {"peak", peak ? ordered_json(peak->flops) : ordered_json()},
                   {"steps", seconds.size()},
                   {"window", {began_unix, ended_unix}},
                   {"tokens_per_second", rate},
                   {"step_seconds", step_seconds_},
                   {"median_step_seconds", median_step},
                   {"mfu", peak ? ordered_json(flops * rate / peak->flops) : ordered_json()},
                   {"loss", run.decision().loss},
                   {"skipped", num_skipped},
                   {"memory_bytes", plan.total_bytes()},
                   {"copy_rate", copy_rate_}};
    }

    void trace() {
        SyntheticRun run(config_, device_, run_options());
        const int64_t num_steps =
            std::clamp(static_cast<int64_t>(options_.seconds / step_seconds_), int64_t{2}, kTracedSteps);
        start_trace(!options_.trace.empty());
        // The last traced step ends where the step after it begins.
        run.run_to(kFirstSteps + num_steps + 1, true);
        device_.synchronize();
        const std::vector<TraceRecord> records = stop_trace();
        if (!options_.trace.empty())
            write(options_.trace, [&](std::ostream& out) { write_chrome_trace(records, out); });
        if (options_.no_parts) return;
        const TrainingPlan& plan = run.plan();
        report(step_times(records, kFirstSteps), step_work({.model = plan.model.config(),
                                                            .dtype = plan.model.dtype(),
                                                            .recompute = config_.training.recompute,
                                                            .tokens = plan.model.max_tokens(),
                                                            .num_micro_steps = plan.num_micro_steps(),
                                                            .is_attention_left_out = options_.no_attention},
                                                           plan.model.table()));
    }

    void report(const StepTimes& times, const std::array<StepWork, kNumStepParts>& work) {
        std::printf("\nparts of a step, mean of %ld traced ones of %.3f ms (without tracing %.3f ms)\n",
                    static_cast<long>(times.num_steps), times.seconds * 1e3, step_seconds_ * 1e3);
        std::printf("%-20s %9s %10s %7s %10s %9s\n", "part", "calls", "ms", "share", "floor ms", "ms/floor");
        nlohmann::ordered_json parts = nlohmann::ordered_json::array();
        double total = 0, total_floor = 0;
        for (size_t i = 0; i < kNumStepParts; ++i) {
            const StepTimes::Entry& entry = times.parts[i];
            if (entry.calls == 0) continue;
            const char* const name = name_of(static_cast<StepPart>(i));
            const double by_flops = options_.gemm_rate > 0 ? work[i].flops / (options_.gemm_rate * 1e12) : 0;
            const double floor = std::max(work[i].bytes / copy_rate_, by_flops);
            std::printf("%-20s %9.1f %10.4f %6.1f%%", name, entry.calls, entry.seconds * 1e3,
                        100 * entry.seconds / times.seconds);
            if (floor > 0) std::printf(" %10.4f %9.2f", floor * 1e3, entry.seconds / floor);
            std::printf("\n");
            total += entry.seconds;
            total_floor += floor > 0 ? floor : entry.seconds;
            nlohmann::ordered_json part = {{"part", key_of(static_cast<StepPart>(i))},
                                           {"calls", entry.calls},
                                           {"seconds", entry.seconds},
                                           {"bytes", work[i].bytes},
                                           {"flops", work[i].flops},
                                           {"floor_seconds", nullptr}};
            if (floor > 0) part["floor_seconds"] = floor;
            parts.push_back(std::move(part));
        }
        std::printf("%-20s %9s %10.4f %6.1f%%\n", "gaps", "", times.gap_seconds * 1e3,
                    100 * times.gap_seconds / times.seconds);
        std::printf("%-20s %9s %10.4f %6.1f%% %10.4f %9.2f\n", "all parts", "", total * 1e3,
                    100 * total / times.seconds, total_floor * 1e3, total / total_floor);
        std::printf(
            "floor: bytes over the copy rate%s; gaps: nothing ran, neither kernel nor copy; a copy may run "
            "beside kernels. Where there is no floor, all parts count the time itself.\n",
            options_.gemm_rate > 0 ? ", FLOPs of GEMMs over --gemm-rate"
                                   : " (of GEMMs: give --gemm-rate, the tuned rate of ./bench gemm)");
        nlohmann::ordered_json kernels = nlohmann::ordered_json::array();
        for (const auto& [symbol, entry] : times.kernels)
            kernels.push_back({{"kernel", demangled(symbol)},
                               {"symbol", symbol},
                               {"part", key_of(part_of_kernel(symbol))},
                               {"calls", entry.calls},
                               {"seconds", entry.seconds}});
        result_["traced_step_seconds"] = times.seconds;
        result_["gap_seconds"] = times.gap_seconds;
        result_["gemm_rate"] = options_.gemm_rate * 1e12;
        result_["parts"] = std::move(parts);
        result_["kernels"] = std::move(kernels);
    }

    template <typename Writer>
    static void write(const std::string& path, Writer&& writer) {
        std::ofstream out(path);
        writer(out);
        out.close();
        REQUIRE(out.good(), "cannot write ", path, ": check the folder and the space on the disk");
        std::printf("written: %s\n", path.c_str());
    }

    BenchStepOptions options_;
    Config config_;
    Device device_;
    double copy_rate_ = 0, step_seconds_ = 0;
    nlohmann::ordered_json result_;
};

}  // namespace

void bench_step(const BenchStepOptions& options) {
    REQUIRE(options.seconds > 0, "--seconds must be above 0");
    REQUIRE(options.settle_seconds >= 0 || options.settle_seconds == -1, "--settle must not be negative");
    REQUIRE(options.document_tokens >= 0, "--documents is a number of tokens, not ", options.document_tokens);
    REQUIRE(options.gemm_rate >= 0, "--gemm-rate must be above 0");
    const Config config = config_of(options);
    REQUIRE(config.training.device != DeviceChoice::cpu,
            "./bench step measures a GPU, training.device is cpu: set it to \"auto\" or \"cuda\"");
    std::string why;
    REQUIRE(Device::num_cuda_devices(&why) > 0, "./bench step measures a GPU: ", why,
            ": use a machine with a GPU, and for the CPU ./train, which prints tokens/s");
    if (!options.trace.empty()) REQUIRE(can_trace(&why), "--trace: ", why);
    for (const std::string& path : {options.trace, options.json})  // fails now, not after the measurement
        REQUIRE(path.empty() || std::ofstream(path).good(), "cannot write ", path, ": check its folder");
    Bench(options, config, Device::cuda(0)).run();
}

}  // namespace ingot
