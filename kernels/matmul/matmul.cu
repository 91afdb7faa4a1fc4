// cuBLASLt computes the GEMMs on CUDA, with fp32 accumulators.
#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "kernels/core/device.h"
#include "kernels/cuda/context.h"
#include "kernels/matmul/choices.h"
#include "kernels/matmul/matmul.h"
#include "kernels/matmul/plan.h"

namespace ingot {

cudaDataType_t cuda_type(DType dtype) {
    switch (dtype) {
        case DType::f32:
            return CUDA_R_32F;
        case DType::bf16:
            return CUDA_R_16BF;
        case DType::f16:
            return CUDA_R_16F;
        case DType::e4m3:
            return CUDA_R_8F_E4M3;
        case DType::e5m2:
            return CUDA_R_8F_E5M2;
        default:
            CHECK(false, "matmul on CUDA runs in fp32, bf16, fp16 or fp8, not in ", name_of(dtype));
    }
    return CUDA_R_32F;
}

namespace {

template <typename Value>
void set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, Value value) {
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value));
}
template <typename Value>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, Value value) {
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
}

void create_layout(cublasLtMatrixLayout_t* layout, const Tensor& matrix) {
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(layout, cuda_type(matrix.dtype), static_cast<uint64_t>(matrix.shape[1]),
                                            static_cast<uint64_t>(matrix.shape[0]), matrix.stride[0]));
}

}  // namespace

std::string describe(const Gemm& p) {
    return join("out ", p.out.describe(), ", a ", p.a.describe(), p.a_transposed ? " transposed" : "", ", b ",
                p.b.describe(), p.b_transposed ? " transposed" : "", ", addend ", p.addend.describe(), ", bias ",
                p.bias.describe());
}

MatmulPlan::MatmulPlan(const Gemm& p) : key(key_of(p)), gemm(text_of(key)) {
    // With fp32 operands this means fp32 arithmetic, not TF32.
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set(operation, CUBLASLT_MATMUL_DESC_TRANSA, p.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(operation, CUBLASLT_MATMUL_DESC_TRANSB, p.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (p.bias) set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    if (p.fast_accumulation) set(operation, CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{1});
    create_layout(&first, p.b);
    create_layout(&second, p.a);
    create_layout(&addend, p.addend ? p.addend : p.out);
    create_layout(&out, p.out);
}

MatmulPlan::~MatmulPlan() {
    if (operation != nullptr) (void)cublasLtMatmulDescDestroy(operation);
    for (cublasLtMatrixLayout_t layout : {first, second, addend, out})
        if (layout != nullptr) (void)cublasLtMatrixLayoutDestroy(layout);
}

cublasStatus_t launch(const CudaContext& context, const MatmulPlan& plan, const Gemm& p, const LtAlgorithm& algorithm) {
    const float alpha = 1, beta = p.addend ? 1 : 0;
    // Our b is the library's A.
    const struct {
        cublasLtMatmulDescAttributes_t attribute;
        const void* pointer;
    } pointers[] = {{CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias.data},
                    {CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, p.b_scale},
                    {CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, p.a_scale}};
    for (const auto& [attribute, pointer] : pointers) {
        if (pointer == nullptr) continue;
        const cublasStatus_t status =
            cublasLtMatmulDescSetAttribute(plan.operation, attribute, &pointer, sizeof pointer);
        if (status != CUBLAS_STATUS_SUCCESS) return status;
    }
    return cublasLtMatmul(context.cublaslt, plan.operation, &alpha, p.b.data, plan.first, p.a.data, plan.second, &beta,
                          p.addend ? p.addend.data : p.out.data, plan.addend, p.out.data, plan.out, &algorithm.raw,
                          context.cublaslt_workspace, CudaContext::kCublasLtWorkspaceBytes, context.stream);
}

// Restricts the search to algorithms that accumulate in fp32 in a fixed order. Where a sum is split over K, its parts
// must be kept in fp32 in the workspace and added by a second step (COMPUTE_TYPE); the other two schemes add them in
// the output's precision, or in the output itself. Algorithms that do not split are always allowed.
std::vector<LtAlgorithm> heuristic_algorithms(const CudaContext& context, const MatmulPlan& plan, const Gemm& gemm,
                                              int count) {
    cublasLtMatmulPreference_t preference = nullptr;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    const std::shared_ptr<void> owner(
        preference, [](void* p) { (void)cublasLtMatmulPreferenceDestroy(static_cast<cublasLtMatmulPreference_t>(p)); });
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{CudaContext::kCublasLtWorkspaceBytes});
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, plan.key.b_alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, plan.key.a_alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, plan.key.addend_alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, plan.key.out_alignment);
    CHECK(count <= kMostHeuristics, count, " algorithms at once");
    cublasLtMatmulHeuristicResult_t results[kMostHeuristics] = {};
    int num_results = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(context.cublaslt, plan.operation, plan.first, plan.second, plan.addend, plan.out,
                                       preference, count, results, &num_results);
    std::vector<LtAlgorithm> algorithms;
    if (status == CUBLAS_STATUS_SUCCESS)
        for (int i = 0; i < num_results; ++i)
            if (results[i].state == CUBLAS_STATUS_SUCCESS) algorithms.push_back({results[i].algo});
    CHECK(!algorithms.empty(), "matmul: cuBLASLt has no algorithm (", cublasLtGetStatusString(status), ") for ",
          describe(gemm));
    return algorithms;
}

bool is_accepted(const CudaContext& context, const MatmulPlan& plan, const LtAlgorithm& algorithm, float* waves) {
    cublasLtMatmulHeuristicResult_t result{};
    if (cublasLtMatmulAlgoCheck(context.cublaslt, plan.operation, plan.first, plan.second, plan.addend, plan.out,
                                &algorithm.raw, &result) != CUBLAS_STATUS_SUCCESS)
        return false;
    if (waves != nullptr) *waves = result.wavesCount;
    return result.workspaceSize <= CudaContext::kCublasLtWorkspaceBytes;
}

bool is_usable(const CudaContext& context, const MatmulPlan& plan, const LtAlgorithm& algorithm, float* waves) {
    int32_t splits = 1;
    uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_NONE;
    if (!get_config(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits) ||
        !get_config(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme))
        return false;
    if (scheme != CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE && (scheme != CUBLASLT_REDUCTION_SCHEME_NONE || splits != 1))
        return false;
    const GemmKey& key = plan.key;
    const int64_t in = size_of(key.dtype), out = size_of(key.out_dtype);
    const struct {
        cublasLtMatmulAlgoCapAttributes_t attribute;
        uint32_t alignment;
        int64_t row_bytes;
    } operands[] = {
        {CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_A_BYTES, key.b_alignment, key.b_stride * in},
        {CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_B_BYTES, key.a_alignment, key.a_stride * in},
        {CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_C_BYTES, key.addend_alignment, key.addend_stride * out},
        {CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_D_BYTES, key.out_alignment, key.out_stride * out},
    };
    for (const auto& [attribute, alignment, row_bytes] : operands) {
        uint32_t needed = 1;
        if (!get_capability(algorithm, attribute, &needed)) return false;
        if (needed > 1 && (alignment % needed != 0 || row_bytes % needed != 0)) return false;
    }
    return is_accepted(context, plan, algorithm, waves);
}

bool split_sums(LtAlgorithm* algorithm, int32_t splits) {
    uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_NONE;
    if (splits > 1) {
        int32_t can_split = 0;
        uint32_t schemes = 0;
        scheme = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
        if (!get_capability(*algorithm, CUBLASLT_ALGO_CAP_SPLITK_SUPPORT, &can_split) || can_split == 0 ||
            !get_capability(*algorithm, CUBLASLT_ALGO_CAP_REDUCTION_SCHEME_MASK, &schemes) || (schemes & scheme) == 0)
            return false;
    }
    return set_config(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, splits) &&
           set_config(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, scheme);
}

// Plans are found by a linear search, since a model has some twenty GEMMs. They keep their addresses, and a warm step
// allocates nothing.
struct MatmulPlans {
    std::vector<std::unique_ptr<MatmulPlan>> plans;
    MatmulTuning tuning = MatmulTuning::first_choice;
    std::map<std::string, std::vector<MatmulChoice>> preferred;  // by GEMM, in the order given
    std::string machine;
    int64_t num_refused = 0;
    double tuning_seconds = 0;
};

namespace {

static_assert(sizeof(MatmulAlgorithm) == sizeof(cublasLtMatmulAlgo_t));

MatmulPlans& plans_of(const Device& device) {
    CudaContext& context = device.context();
    if (!context.matmul_plans) {
        context.matmul_plans = std::make_shared<MatmulPlans>();
        context.matmul_plans->machine = matmul_machine(device);
    }
    return *context.matmul_plans;
}

// unseal_algorithm() has checked that the algorithm was recorded for this GEMM, GPU and library version. The library
// says whether it can still run (with a smaller workspace, say).
bool take_preferred(const CudaContext& context, MatmulPlans* all, MatmulPlan* plan) {
    const auto found = all->preferred.find(plan->gemm);
    if (found == all->preferred.end()) return false;
    for (const MatmulChoice& choice : found->second) {
        MatmulAlgorithm bytes;
        CHECK(unseal_algorithm(all->machine, plan->gemm, choice.algorithm, &bytes), "a choice that was not checked");
        std::memcpy(&plan->algorithm.raw, bytes.data(), bytes.size());
        plan->source = choice.source;
        if (is_accepted(context, *plan, plan->algorithm)) return true;
        ++all->num_refused;
    }
    return false;
}

void choose_algorithm(const Device& device, MatmulPlans* all, MatmulPlan* plan, const Gemm& p) {
    const CudaContext& context = device.context();
    if (take_preferred(context, all, plan)) return;
    if (all->tuning == MatmulTuning::first_choice) {
        plan->algorithm = heuristic_algorithms(context, *plan, p, 1).front();
        plan->source = MatmulSource::first_choice;
        return;
    }
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    CUDA_CHECK(cudaStreamIsCapturing(context.stream, &capture));
    CHECK(capture == cudaStreamCaptureStatusNone,
          "matmul: a GEMM is seen for the first time during capture: ", describe(p), ": run a warm-up step first");
    DeviceTimer timer(device);
    timer.start();
    fill_operands(device, p);
    plan->algorithm = fastest_algorithm(device, *plan, p, kMatmulTuningSeconds);
    plan->source = MatmulSource::timed;
    // The search has accumulated in place: its results must not be the inputs of what follows.
    fill_operands(device, p);
    all->tuning_seconds += timer.stop();
}

const MatmulPlan& plan_of(const Device& device, const Gemm& p) {
    MatmulPlans& all = plans_of(device);
    const GemmKey key = key_of(p);
    for (const auto& plan : all.plans)
        if (plan->key == key) return *plan;
    auto plan = std::make_unique<MatmulPlan>(p);
    choose_algorithm(device, &all, plan.get(), p);
    all.plans.push_back(std::move(plan));
    return *all.plans.back();
}

}  // namespace

void matmul_cuda(const Device& device, const Gemm& p) {
    CHECK(p.a.shape[p.a_transposed ? 0 : 1] > 0, "matmul: an empty sum in ", describe(p));
    const MatmulPlan& plan = plan_of(device, p);
    const cublasStatus_t status = launch(device.context(), plan, p, plan.algorithm);
    CHECK(status == CUBLAS_STATUS_SUCCESS, "matmul: ", cublasLtGetStatusString(status), " for ", describe(p));
}

// ---- Choices ----

void set_matmul_tuning(const Device& device, MatmulTuning tuning) {
    if (!device.is_cpu()) plans_of(device).tuning = tuning;
}

void prefer_matmul_choices(const Device& device, const std::vector<MatmulChoice>& choices, MatmulSource source) {
    if (device.is_cpu()) return;
    MatmulPlans& all = plans_of(device);
    for (MatmulChoice choice : choices) {
        MatmulAlgorithm bytes;
        if (!unseal_algorithm(all.machine, choice.gemm, choice.algorithm, &bytes)) {
            ++all.num_refused;
            continue;
        }
        choice.source = source;
        all.preferred[choice.gemm].push_back(std::move(choice));
    }
}

std::vector<MatmulChoice> matmul_choices(const Device& device) {
    if (device.is_cpu()) return {};
    const MatmulPlans& all = plans_of(device);
    std::vector<MatmulChoice> choices;
    for (const auto& plan : all.plans) {
        MatmulAlgorithm bytes;
        std::memcpy(bytes.data(), &plan->algorithm.raw, bytes.size());
        choices.push_back({plan->gemm, seal_algorithm(all.machine, plan->gemm, bytes), plan->source});
    }
    std::sort(choices.begin(), choices.end(),
              [](const MatmulChoice& a, const MatmulChoice& b) { return a.gemm < b.gemm; });
    return choices;
}

MatmulCounts matmul_counts(const Device& device) {
    if (device.is_cpu()) return {};
    const MatmulPlans& all = plans_of(device);
    MatmulCounts counts;
    counts.refused = all.num_refused;
    counts.tuning_seconds = all.tuning_seconds;
    for (const auto& plan : all.plans) {
        if (plan->source == MatmulSource::record) ++counts.from_record;
        if (plan->source == MatmulSource::cache) ++counts.from_cache;
        if (plan->source == MatmulSource::timed) ++counts.timed;
        if (plan->source == MatmulSource::first_choice) ++counts.first_choice;
    }
    return counts;
}

std::string matmul_machine(const Device& device) {
    if (device.is_cpu()) return {};
    return join(device.context().properties.name, ", cuBLASLt ", cublaslt_version());
}

}  // namespace ingot
