// The search for a GEMM's fastest algorithm.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/core/measure.h"
#include "kernels/fill.h"
#include "kernels/matmul/plan.h"

namespace ingot {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

constexpr double kScreenMargin = 0.3;    // the error of a single run, at a clock that has not settled
constexpr double kCompareMargin = 0.03;  // the error of the medians of a few rounds
constexpr double kTie = 0.005;     // below that the library's own order decides: no later run would see the difference
constexpr double kSlowTie = 0.05;  // the same where there is time for a single run of each
constexpr size_t kNumCompared = 8;
// GEMMs whose run takes a millisecond get more time than small ones, so that more candidates are timed.
constexpr double kExtraRuns = 300, kMostExtraSeconds = 0.25;
constexpr int kMinRounds = 5;
constexpr double kSampleSeconds = 100e-6;  // an event itself costs a microsecond or two
constexpr double kBatchSeconds = 20e-3;    // runs that are launched without a wait take so long

// Up to `count` events in a stream. A batch of runs has one before each run and one after the last.
class Marks {
  public:
    Marks(cudaStream_t stream, size_t count) : stream_(stream), events_(count, nullptr) {
        for (cudaEvent_t& event : events_) CUDA_CHECK(cudaEventCreate(&event));
    }
    ~Marks() {
        for (cudaEvent_t event : events_) (void)cudaEventDestroy(event);
    }
    Marks(const Marks&) = delete;
    Marks& operator=(const Marks&) = delete;

    void clear() { used_ = 0; }
    void set() {
        CHECK(used_ < events_.size(), "more than ", events_.size(), " marks");
        CUDA_CHECK(cudaEventRecord(events_[used_++], stream_));
    }
    void wait() const { CUDA_CHECK(cudaEventSynchronize(events_[used_ - 1])); }
    // Seconds between mark i and the next.
    double seconds(size_t i) const {
        float milliseconds = 0;
        CUDA_CHECK(cudaEventElapsedTime(&milliseconds, events_[i], events_[i + 1]));
        return milliseconds * 1e-3;
    }

  private:
    cudaStream_t stream_;
    std::vector<cudaEvent_t> events_;
    size_t used_ = 0;
};

// A weight gradient of a small model has too few tiles for a whole GPU, and a sum over very many tokens. Appends the
// best few kernels with that sum split into as many parts as fill the GPU about once or twice.
void add_split_sums(const CudaContext& context, const MatmulPlan& plan, std::vector<LtAlgorithm>* algorithms) {
    constexpr size_t kNumBases = 8;
    std::vector<LtAlgorithm> bases;
    for (size_t i = 0; i < algorithms->size() && bases.size() < kNumBases; ++i) {
        LtAlgorithm base = (*algorithms)[i];
        if (split_sums(&base, 1)) add_algorithm(&bases, base);
    }
    for (const LtAlgorithm& base : bases) {
        float waves = 0;
        if (!is_usable(context, plan, base, &waves)) continue;
        for (const int32_t splits : split_counts(waves, plan.key.K, 0.6f, 2.1f)) {
            LtAlgorithm variant = base;
            if (split_sums(&variant, splits) && is_usable(context, plan, variant)) add_algorithm(algorithms, variant);
        }
    }
}

}  // namespace

std::vector<int32_t> split_counts(float waves, int64_t K, float least_filled, float most_filled) {
    constexpr int64_t kMinPart = 512;  // below that the second step dominates
    std::vector<int32_t> counts;
    if (!(waves > 0 && waves <= 1)) return counts;
    for (const int32_t splits : {2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16}) {
        const float filled = waves * static_cast<float>(splits);
        if (filled >= least_filled && filled <= most_filled && K / splits >= kMinPart) counts.push_back(splits);
    }
    return counts;
}

void add_algorithm(std::vector<LtAlgorithm>* algorithms, const LtAlgorithm& algorithm) {
    if (std::find(algorithms->begin(), algorithms->end(), algorithm) == algorithms->end())
        algorithms->push_back(algorithm);
}

void fill_operands(const Device& device, const Gemm& p) {
    const int64_t K = p.a.shape[p.a_transposed ? 0 : 1];
    fill_normal(device, {.out = p.a, .seed = 1, .stream = 0, .std = 1});
    // With this scale one run adds elements of size 1, and a thousand runs in place stay within fp16.
    fill_normal(device, {.out = p.b, .seed = 2, .stream = 0, .std = 1 / std::sqrt(static_cast<double>(K))});
    fill_normal(device, {.out = p.out, .seed = 3, .stream = 0, .std = 1});
    if (p.addend && p.addend.data != p.out.data)
        fill_normal(device, {.out = p.addend, .seed = 4, .stream = 0, .std = 1});
    if (p.bias) fill_normal(device, {.out = p.bias, .seed = 5, .stream = 0, .std = 1});
}

std::vector<LtAlgorithm> tuning_candidates(const CudaContext& context, const MatmulPlan& plan, const Gemm& p) {
    std::vector<LtAlgorithm> algorithms = heuristic_algorithms(context, plan, p, 1);
    for (const LtAlgorithm& algorithm : heuristic_algorithms(context, plan, p, kMostHeuristics))
        add_algorithm(&algorithms, algorithm);
    add_split_sums(context, plan, &algorithms);
    return algorithms;
}

std::vector<double> screen(const Device& device, const MatmulPlan& plan, const Gemm& p,
                           const std::vector<LtAlgorithm>& candidates, double seconds) {
    const CudaContext& context = device.context();
    std::vector<double> result(candidates.size(), kInfinity);
    Marks marks(context.stream, 2);
    const double begin = seconds_now();
    for (size_t i = 0; i < candidates.size(); ++i) {
        if (i > 0 && seconds_now() - begin > seconds) break;
        if (launch(context, plan, p, candidates[i]) != CUBLAS_STATUS_SUCCESS) {
            (void)cudaGetLastError();
            continue;
        }
        marks.clear();
        marks.set();
        if (launch(context, plan, p, candidates[i]) != CUBLAS_STATUS_SUCCESS) continue;
        marks.set();
        marks.wait();
        result[i] = marks.seconds(0);
    }
    return result;
}

std::vector<double> compare(const Device& device, const MatmulPlan& plan, const Gemm& p,
                            const std::vector<LtAlgorithm>& candidates, double seconds, double margin) {
    const CudaContext& context = device.context();
    const auto run = [&](size_t candidate) { CUBLAS_CHECK(launch(context, plan, p, candidates[candidate])); };
    Marks marks(context.stream, kMinRounds * candidates.size() + 1);
    std::vector<size_t> left(candidates.size());
    std::iota(left.begin(), left.end(), size_t{0});
    std::vector<std::vector<double>> samples(candidates.size());
    std::vector<double> distance(candidates.size(), 1);  // of dropped candidates to the best
    // The first mark stands behind a run and is reached when that ends: by then the host is ahead of the GPU.
    const auto measure = [&](int rounds, int repeats, size_t first_round) {
        marks.clear();
        run(left[0]);
        marks.set();
        std::vector<size_t> order;
        for (int round = 0; round < rounds; ++round)
            for (size_t i = 0; i < left.size(); ++i) {
                order.push_back(left[(i + first_round + static_cast<size_t>(round)) % left.size()]);
                for (int repeat = 0; repeat < repeats; ++repeat) run(order.back());
                marks.set();
            }
        marks.wait();
        for (size_t i = 0; i < order.size(); ++i) samples[order[i]].push_back(marks.seconds(i) / repeats);
    };
    const double begin = seconds_now();
    measure(1, 1, 0);
    double round_seconds = 0, shortest = kInfinity;
    for (std::vector<double>& sample : samples) {
        round_seconds += sample[0];
        shortest = std::min(shortest, sample[0]);
        sample.clear();
    }
    const int repeats = std::clamp(static_cast<int>(std::ceil(kSampleSeconds / std::max(shortest, 1e-6))), 1, 50);
    const int rounds =
        std::clamp(static_cast<int>(kBatchSeconds / std::max(round_seconds * repeats, 1e-6)), 1, kMinRounds);
    const auto best_median = [&] {
        double best = kInfinity;
        for (const size_t candidate : left) best = std::min(best, median(samples[candidate]));
        return best;
    };
    for (size_t num_rounds = 0;
         num_rounds < kMinRounds || (seconds_now() - begin < seconds && (left.size() > 1 || candidates.size() == 1));) {
        measure(rounds, repeats, num_rounds);
        num_rounds += static_cast<size_t>(rounds);
        if (num_rounds < kMinRounds) continue;
        const double best = best_median();
        std::vector<size_t> still;
        for (const size_t candidate : left) {
            distance[candidate] = median(samples[candidate]) / best;
            if (distance[candidate] <= 1 + margin) still.push_back(candidate);
        }
        left = still;
    }
    const double best = best_median();
    std::vector<double> result;
    for (const double ratio : distance) result.push_back(ratio * best);
    return result;
}

std::vector<size_t> best_of(const std::vector<double>& seconds, size_t count, double margin) {
    std::vector<size_t> order(seconds.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return seconds[a] < seconds[b]; });
    std::vector<size_t> result;
    for (const size_t i : order)
        if (result.size() < count && std::isfinite(seconds[i]) && seconds[i] <= seconds[order[0]] * (1 + margin))
            result.push_back(i);
    return result;
}

LtAlgorithm fastest_algorithm(const Device& device, const MatmulPlan& plan, const Gemm& p, double seconds) {
    const double begin = seconds_now();
    const std::vector<LtAlgorithm> all = tuning_candidates(device.context(), plan, p);
    if (all.size() == 1) return all[0];
    const double first_seconds = screen(device, plan, p, {all[0]}, 0)[0];
    if (std::isfinite(first_seconds)) seconds += std::min(kExtraRuns * first_seconds, kMostExtraSeconds);
    const std::vector<double> screened = screen(device, plan, p, all, seconds / 2);
    std::vector<size_t> places = best_of(screened, kNumCompared, kScreenMargin);
    CHECK(!places.empty(), "matmul: no algorithm of cuBLASLt runs for ", describe(p));
    // Compare as many as the rest of the time allows.
    const double left = seconds - (seconds_now() - begin);
    double round_seconds = 0;
    size_t num_compared = 0;
    for (; num_compared < places.size(); ++num_compared) {
        round_seconds += screened[places[num_compared]];
        if (round_seconds * (kMinRounds + 1) > left) break;
    }
    // Restores the library's order, which decides ties.
    if (num_compared < 2) {
        places = best_of(screened, places.size(), kSlowTie);
        return all[*std::min_element(places.begin(), places.end())];
    }
    places.resize(num_compared);
    std::sort(places.begin(), places.end());
    std::vector<LtAlgorithm> candidates;
    for (const size_t place : places) candidates.push_back(all[place]);
    const std::vector<double> medians = compare(device, plan, p, candidates, left, kCompareMargin);
    const double best = *std::min_element(medians.begin(), medians.end());
    size_t chosen = 0;
    while (medians[chosen] > best * (1 + kTie)) ++chosen;
    return candidates[chosen];
}

}  // namespace ingot
