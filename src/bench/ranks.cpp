// Method: bus bandwidth is the bytes that each rank must at least send, (R - 1) / R of the bucket, over the time from
// the first to the last of many calls in a row, so that what other work costs them is left out. The exposed
// communication of a step is its time less that of the same step without collectives: the ranks then train apart, on
// the same amount of work.
#include "src/bench/ranks.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "kernels/core/measure.h"
#include "kernels/cuda/trace.h"
#include "src/base/console.h"
#include "src/bench/synthetic_run.h"
#include "src/config/config.h"
#include "src/parallel/alone.h"

namespace ingot {

namespace {

using nlohmann::ordered_json;

// The ranks of a run that leaves its collectives out. They still agree, so that all do the same work.
class WithoutCollectives final : public Alone {
  public:
    explicit WithoutCollectives(Ranks* ranks) : ranks_(*ranks) {}
    int64_t size() const override { return ranks_.size(); }
    int64_t rank() const override { return ranks_.rank(); }
    int local_rank() const override { return ranks_.local_rank(); }
    std::vector<std::string> exchange(const std::string& text, Channel channel) override {
        return ranks_.exchange(text, channel);
    }

  private:
    Ranks& ranks_;
};

class Bench {
  public:
    Bench(const BenchRanksOptions& options, const Config& config, const Device& device, Ranks* ranks)
        : options_(options), config_(config), device_(device), ranks_(*ranks), console_(ranks->is_first()) {}

    void run() {
        resolve_micro_batch(&config_, device_, &ranks_);
        measure_steps();
        if (!options_.trace.empty()) trace();
        if (options_.json.empty() || !ranks_.is_first()) return;
        std::ofstream file(options_.json);
        file << result_.dump(1) << "\n";
        REQUIRE(file.flush(), "cannot write ", options_.json, ": give another file, or leave --json out");
    }

  private:
    // Returns the seconds of a step, the slowest rank's.
    double step_seconds(Ranks* ranks, bool measures_collectives) {
        SyntheticRun run(config_, device_, {}, ranks);
        if (measures_collectives) measure_collectives(run.plan());
        run.run_to(3);
        // All ranks run the same number of steps: it follows from the first one's time.
        const double each = largest(run.seconds());
        const auto steps = static_cast<int64_t>(std::max(5.0, options_.seconds / each));
        run.run_to(run.step() + steps / 5);
        const double began = seconds_now();
        run.run_to(run.step() + steps);
        const double seconds = (seconds_now() - began) / static_cast<double>(steps);
        run.run_to(run.step() + 1, true);
        return largest(seconds);
    }

    // A trace of some steps, the first rank's: collectives stand in a stream of their own.
    void trace() {
        constexpr int64_t kSteps = 4;
        start_trace(false);
        {
            SyntheticRun run(config_, device_, {}, &ranks_);
            run.run_to(kSteps, true);
        }
        const std::vector<TraceRecord> records = stop_trace();
        if (!ranks_.is_first()) return;
        std::ofstream file(options_.trace);
        write_chrome_trace(records, file);
        REQUIRE(file.flush(), "cannot write ", options_.trace, ": give another file, or leave --trace out");
    }

    double largest(double seconds) {
        constexpr double kNano = 1e9;
        return static_cast<double>(ranks_.agree(static_cast<int64_t>(seconds * kNano))) / kNano;
    }

    void measure_steps() {
        WithoutCollectives apart(&ranks_);
        double with = 0, without = 0;
        for (int64_t round = 0; round < options_.rounds; ++round) {
            with += step_seconds(&ranks_, round == 0) / static_cast<double>(options_.rounds);
            without += step_seconds(&apart, false) / static_cast<double>(options_.rounds);
        }
        const double tokens = static_cast<double>(config_.training.batch_tokens) / static_cast<double>(ranks_.size());
        console_.line("step of ", config_.training.batch_tokens, " tokens: ", with * 1e3, " ms, ", without * 1e3,
                      " ms without collectives: ", (with - without) * 1e3, " ms of communication are exposed, ",
                      100 * (with - without) / with, "%");
        console_.line(tokens / with, " tokens/s per rank");
        result_["ranks"] = ranks_.size();
        result_["batch_tokens"] = config_.training.batch_tokens;
        result_["step_seconds"] = with;
        result_["step_seconds_without_collectives"] = without;
        result_["tokens_per_second_per_rank"] = tokens / with;
    }

    void measure_collectives(const TrainingPlan& plan) {
        const Model& model = plan.model;
        const Partition partition(model.table(), ranks_.size());
        console_.line("buckets of ", config_.name, " over ", ranks_.size(), " ranks");
        console_.line("  reduce-scatter of gradients           all-gather of weights");
        std::map<int64_t, int64_t> bucket_of_size;
        for (int64_t bucket = 0; bucket < partition.num_buckets(); ++bucket) {
            int64_t elements = 0;
            for (const OwnedRange& range : partition.bucket(bucket)) elements += range.numel();
            bucket_of_size.emplace(elements, bucket);
        }
        for (const auto& [elements, index] : bucket_of_size) {
            const std::span<const OwnedRange> bucket = partition.bucket(index);
            const double reduce = time([&] { ranks_.start_reduce_scatter(device_, bucket, model.gradients()); },
                                       [&] { ranks_.finish_reduce(device_); });
            const double gather = time([&] { ranks_.start_all_gather(device_, bucket, model.weights()); },
                                       [&] { ranks_.finish_all_gather(device_, bucket); });
            const double share = static_cast<double>(ranks_.size() - 1) / static_cast<double>(ranks_.size());
            const double reduce_bytes = static_cast<double>(elements * size_of(model.gradients().dtype));
            const double gather_bytes = static_cast<double>(elements * size_of(model.weights().dtype));
            char text[160];
            std::snprintf(text, sizeof text, "  %8.2f MB %8.1f us %7.1f GB/s    %8.2f MB %8.1f us %7.1f GB/s",
                          reduce_bytes * 1e-6, reduce * 1e6, share * reduce_bytes / reduce * 1e-9, gather_bytes * 1e-6,
                          gather * 1e6, share * gather_bytes / gather * 1e-9);
            console_.line(text);
            result_["collectives"].push_back({{"elements", elements},
                                              {"reduce_scatter_bytes", reduce_bytes},
                                              {"reduce_scatter_seconds", reduce},
                                              {"all_gather_bytes", gather_bytes},
                                              {"all_gather_seconds", gather}});
        }
    }

    // Returns the seconds of one call, the slowest rank's.
    double time(const std::function<void()>& start, const std::function<void()>& finish) {
        constexpr int kCalls = 20;
        DeviceEvent begin(device_), end(device_);
        for (int sample = 0; sample < 2; ++sample) {  // the first one connects and warms up
            (void)ranks_.exchange("");
            begin.record();
            for (int call = 0; call < kCalls; ++call) start();
            finish();
            end.record();
            end.wait();
        }
        return largest(end.seconds_since(begin)) / kCalls;
    }

    const BenchRanksOptions options_;
    Config config_;
    const Device device_;
    Ranks& ranks_;
    const Console console_;
    ordered_json result_ = ordered_json::object();
};

}  // namespace

void bench_ranks(const BenchRanksOptions& options, const Device& device, Ranks* ranks) {
    REQUIRE(ranks->size() > 1,
            "./bench ranks measures what several ranks cost each other, and there is one: give "
            "--gpus 2, or start it with torchrun, srun or mpirun");
    Config config = read_config(options.config, options.overrides);
    resolve_steps(&config, int64_t{1} << 40);
    Bench(options, config, device, ranks).run();
}

}  // namespace ingot
