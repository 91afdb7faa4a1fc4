#include "kernels/matmul/study.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "kernels/core/measure.h"
#include "kernels/matmul/plan.h"

namespace ingot {

namespace {

std::string describe_algorithm(const LtAlgorithm& algorithm) {
    int32_t id = -1, splits = 1;
    uint32_t tile = 0, stages = 0, swizzle = 0, custom = 0;
    uint16_t inner = 0, cluster = 0;
    (void)get_config(algorithm, CUBLASLT_ALGO_CONFIG_ID, &id);
    (void)get_config(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits);
    (void)get_config(algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID, &tile);
    (void)get_config(algorithm, CUBLASLT_ALGO_CONFIG_STAGES_ID, &stages);
    (void)get_config(algorithm, CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, &swizzle);
    (void)get_config(algorithm, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, &custom);
    (void)get_config(algorithm, CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, &inner);
    (void)get_config(algorithm, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, &cluster);
    std::string text = join("id ", id, " tile ", tile, " stages ", stages, " splits ", splits);
    if (swizzle != 0) text += join(" swizzle ", swizzle);
    if (custom != 0) text += join(" custom ", custom);
    if (inner != 0) text += join(" inner ", inner);
    if (cluster != 0) text += join(" cluster ", cluster);
    return text;
}

// Returns the numbers of a list capability, or only `undefined` if the algorithm has no such list.
std::vector<uint32_t> list_capability(const LtAlgorithm& algorithm, cublasLtMatmulAlgoCapAttributes_t attribute) {
    size_t bytes = 0;
    if (cublasLtMatmulAlgoCapGetAttribute(&algorithm.raw, attribute, nullptr, 0, &bytes) != CUBLAS_STATUS_SUCCESS ||
        bytes < sizeof(uint32_t))
        return {0};
    std::vector<uint32_t> values(bytes / sizeof(uint32_t));
    if (cublasLtMatmulAlgoCapGetAttribute(&algorithm.raw, attribute, values.data(), values.size() * sizeof(uint32_t),
                                          &bytes) != CUBLAS_STATUS_SUCCESS)
        return {0};
    return values;
}

// Returns every algorithm with every tile and every number of stages and of parts that the library accepts.
std::vector<LtAlgorithm> all_algorithms(const CudaContext& context, const MatmulPlan& plan) {
    constexpr int kMostIds = 512;
    const cudaDataType_t in = cuda_type(plan.key.dtype), out = cuda_type(plan.key.out_dtype);
    int ids[kMostIds], num_ids = 0;
    CUBLAS_CHECK(cublasLtMatmulAlgoGetIds(context.cublaslt, CUBLAS_COMPUTE_32F, CUDA_R_32F, in, in, out, out, kMostIds,
                                          ids, &num_ids));
    std::vector<LtAlgorithm> result;
    for (int i = 0; i < num_ids; ++i) {
        LtAlgorithm plain;
        if (cublasLtMatmulAlgoInit(context.cublaslt, CUBLAS_COMPUTE_32F, CUDA_R_32F, in, in, out, out, ids[i],
                                   &plain.raw) != CUBLAS_STATUS_SUCCESS)
            continue;
        for (const uint32_t tile : list_capability(plain, CUBLASLT_ALGO_CAP_TILE_IDS))
            for (const uint32_t stages : list_capability(plain, CUBLASLT_ALGO_CAP_STAGES_IDS)) {
                LtAlgorithm algorithm = plain;
                float waves = 0;
                if (!set_config(&algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID, tile) ||
                    !set_config(&algorithm, CUBLASLT_ALGO_CONFIG_STAGES_ID, stages) ||
                    !is_usable(context, plan, algorithm, &waves))
                    continue;
                result.push_back(algorithm);
                for (const int32_t splits : split_counts(waves, plan.key.K, 0.4f, 4.2f)) {
                    LtAlgorithm split = algorithm;
                    if (split_sums(&split, splits) && is_usable(context, plan, split)) result.push_back(split);
                }
            }
    }
    return result;
}

// Returns `base` with other cluster shapes and orders of blocks, and with each of its own options.
void add_variants(const CudaContext& context, const MatmulPlan& plan, const LtAlgorithm& base,
                  std::vector<LtAlgorithm>* result) {
    constexpr int32_t kMostOptions = 32;
    const auto add = [&](const LtAlgorithm& variant) {
        if (is_usable(context, plan, variant)) add_algorithm(result, variant);
    };
    uint32_t can_swizzle = 0;
    int32_t most_options = 0;
    (void)get_capability(base, CUBLASLT_ALGO_CAP_CTA_SWIZZLING_SUPPORT, &can_swizzle);
    (void)get_capability(base, CUBLASLT_ALGO_CAP_CUSTOM_OPTION_MAX, &most_options);
    for (const cublasLtClusterShape_t cluster :
         {CUBLASLT_CLUSTER_SHAPE_AUTO, CUBLASLT_CLUSTER_SHAPE_1x1x1, CUBLASLT_CLUSTER_SHAPE_2x1x1,
          CUBLASLT_CLUSTER_SHAPE_1x2x1, CUBLASLT_CLUSTER_SHAPE_2x2x1, CUBLASLT_CLUSTER_SHAPE_4x1x1,
          CUBLASLT_CLUSTER_SHAPE_1x4x1, CUBLASLT_CLUSTER_SHAPE_4x2x1, CUBLASLT_CLUSTER_SHAPE_2x4x1})
        for (const uint32_t swizzle : {0u, 1u}) {
            LtAlgorithm variant = base;
            if (swizzle > can_swizzle) continue;
            if (set_config(&variant, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, static_cast<uint16_t>(cluster)) &&
                set_config(&variant, CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, swizzle))
                add(variant);
        }
    for (int32_t option = 0; option <= std::min(most_options, kMostOptions); ++option) {
        LtAlgorithm variant = base;
        if (set_config(&variant, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, static_cast<uint32_t>(option))) add(variant);
    }
}

// Returns the best few of the full search.
std::vector<LtAlgorithm> search(const Device& device, const MatmulPlan& plan, const Gemm& p,
                                const std::vector<LtAlgorithm>& known, double seconds, MatmulStudy* study) {
    constexpr size_t kNumBases = 24, kNumBest = 8;
    constexpr double kBaseMargin = 0.5;  // a cluster shape or an order of blocks gains less than that
    const CudaContext& context = device.context();
    const auto screen_all = [&](const std::vector<LtAlgorithm>& algorithms, double bound) {
        const double begin = seconds_now();
        const std::vector<double> times = screen(device, plan, p, algorithms, bound);
        study->num_searched += std::count_if(times.begin(), times.end(), [](double t) { return std::isfinite(t); });
        if (seconds_now() - begin > bound) study->is_search_complete = false;
        return times;
    };
    std::vector<LtAlgorithm> all = all_algorithms(context, plan);
    // If time is short, a random sample is measured, and not the oldest kernels alone.
    std::shuffle(all.begin(), all.end(), std::mt19937(1));
    std::vector<double> times = screen_all(all, seconds / 2);
    std::vector<LtAlgorithm> variants = known;
    for (const size_t place : best_of(times, kNumBases, kBaseMargin)) add_algorithm(&variants, all[place]);
    const std::vector<LtAlgorithm> bases = variants;
    for (const LtAlgorithm& base : bases) add_variants(context, plan, base, &variants);
    times = screen_all(variants, seconds / 2);
    std::vector<LtAlgorithm> best;
    for (const size_t place : best_of(times, kNumBest, std::numeric_limits<double>::infinity()))
        best.push_back(variants[place]);
    return best;
}

}  // namespace

MatmulStudy study_matmul(const Device& device, const Gemm& p, double seconds, double search_seconds) {
    MatmulStudy study;
    const MatmulPlan plan(p);
    fill_operands(device, p);
    const LtAlgorithm first = heuristic_algorithms(device.context(), plan, p, 1).front();
    const double begin = seconds_now();
    const LtAlgorithm tuned = fastest_algorithm(device, plan, p, kMatmulTuningSeconds);
    study.tuning_seconds = seconds_now() - begin;
    std::vector<LtAlgorithm> all = {first};
    add_algorithm(&all, tuned);
    const size_t tuned_place = all.size() - 1;
    if (search_seconds > 0)
        for (const LtAlgorithm& algorithm : search(device, plan, p, all, search_seconds, &study))
            add_algorithm(&all, algorithm);
    // In-place accumulation in the search may have left the range of numbers that occur in training.
    fill_operands(device, p);
    const std::vector<double> times = compare(device, plan, p, all, seconds, std::numeric_limits<double>::infinity());
    const auto entry = [&](size_t place) {
        MatmulStudy::Entry result;
        result.algorithm = describe_algorithm(all[place]);
        result.seconds = times[place];
        return result;
    };
    study.first = entry(0);
    study.tuned = entry(tuned_place);
    study.best = entry(static_cast<size_t>(std::distance(times.begin(), std::min_element(times.begin(), times.end()))));
    return study;
}

}  // namespace ingot
