// Products on CUDA are cuBLASLt's, with fp32 sums.
//
// cuBLASLt is column-major: what it calls a (columns, rows) matrix is our row-major (rows, columns) one. So it computes
// out^T = op(b)^T op(a)^T: its first operand is our b, its second our a, and nothing is transposed in memory.
#include <algorithm>
#include <vector>

#include "kernels/core/device.h"
#include "kernels/cuda/context.h"
#include "kernels/matmul.h"

namespace ingot {

namespace {

cudaDataType_t cuda_type(DType dtype) {
    switch (dtype) {
        case DType::f32:
            return CUDA_R_32F;
        case DType::bf16:
            return CUDA_R_16BF;
        case DType::f16:
            return CUDA_R_16F;
        default:
            CHECK(false, "matmul on CUDA runs in fp32, bf16 or fp16, not in ", name_of(dtype));
    }
    return CUDA_R_32F;
}

// What an algorithm may rely on, up to the 256 bytes that cudaMalloc gives.
uint32_t alignment_of(const void* data) {
    uint32_t alignment = 256;
    while (reinterpret_cast<uintptr_t>(data) % alignment != 0) alignment /= 2;
    return alignment;
}

// All that the choice of an algorithm depends on.
struct ProductKey {
    int64_t M, N, K, out_stride, a_stride, b_stride, addend_stride;
    uint32_t out_alignment, a_alignment, b_alignment, addend_alignment;
    DType dtype, out_dtype;
    bool a_transposed, b_transposed, adds, in_place;
    bool operator==(const ProductKey&) const = default;
};

ProductKey key_of(const Product& p) {
    return {.M = p.out.shape[0],
            .N = p.out.shape[1],
            .K = p.a.shape[p.a_transposed ? 0 : 1],
            .out_stride = p.out.stride[0],
            .a_stride = p.a.stride[0],
            .b_stride = p.b.stride[0],
            .addend_stride = p.addend ? p.addend.stride[0] : p.out.stride[0],
            .out_alignment = alignment_of(p.out.data),
            .a_alignment = alignment_of(p.a.data),
            .b_alignment = alignment_of(p.b.data),
            .addend_alignment = alignment_of(p.addend ? p.addend.data : p.out.data),
            .dtype = p.a.dtype,
            .out_dtype = p.out.dtype,
            .a_transposed = p.a_transposed,
            .b_transposed = p.b_transposed,
            .adds = static_cast<bool>(p.addend),
            .in_place = !p.addend || p.addend.data == p.out.data};
}

struct MatmulPlan {
    ProductKey key{};
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t first = nullptr, second = nullptr, addend = nullptr, out = nullptr;
    cublasLtMatmulAlgo_t algorithm{};

    MatmulPlan() = default;
    MatmulPlan(const MatmulPlan&) = delete;
    MatmulPlan& operator=(const MatmulPlan&) = delete;
    ~MatmulPlan() {
        if (operation != nullptr) (void)cublasLtMatmulDescDestroy(operation);
        for (cublasLtMatrixLayout_t layout : {first, second, addend, out})
            if (layout != nullptr) (void)cublasLtMatrixLayoutDestroy(layout);
    }
};

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

std::string describe(const Product& p) {
    return join("out ", p.out.describe(), ", a ", p.a.describe(), p.a_transposed ? " transposed" : "", ", b ",
                p.b.describe(), p.b_transposed ? " transposed" : "", ", addend ", p.addend.describe());
}

// The library's first choice among the algorithms that keep our promise of fp32 sums in a fixed order. Where a sum is
// split over K, its parts must be kept in fp32 in the workspace and added by a second step (COMPUTE_TYPE); the other
// two schemes add them in the output's precision, or in the output itself. Algorithms that do not split are always
// allowed.
cublasLtMatmulAlgo_t choose_algorithm(const CudaContext& context, const MatmulPlan& plan, const Product& product) {
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
    cublasLtMatmulHeuristicResult_t result{};
    int num_results = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(context.cublaslt, plan.operation, plan.first, plan.second, plan.addend, plan.out,
                                       preference, 1, &result, &num_results);
    CHECK(status == CUBLAS_STATUS_SUCCESS && num_results > 0 && result.state == CUBLAS_STATUS_SUCCESS,
          "matmul: cuBLASLt has no algorithm (", cublasLtGetStatusString(status), ") for ", describe(product));
    return result.algo;
}

}  // namespace

// Found by a linear search: a model has some twenty products. Plans stay where they are, so that a warm step allocates
// nothing.
struct MatmulPlans {
    std::vector<std::unique_ptr<MatmulPlan>> plans;
};

namespace {

const MatmulPlan& plan_of(CudaContext& context, const Product& p) {
    if (!context.matmul_plans) context.matmul_plans = std::make_shared<MatmulPlans>();
    auto& plans = context.matmul_plans->plans;
    const ProductKey key = key_of(p);
    for (const auto& plan : plans)
        if (plan->key == key) return *plan;
    auto plan = std::make_unique<MatmulPlan>();
    plan->key = key;
    // For fp32 operands this is fp32 arithmetic, not TF32.
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, p.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, p.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    create_layout(&plan->first, p.b);
    create_layout(&plan->second, p.a);
    create_layout(&plan->addend, p.addend ? p.addend : p.out);
    create_layout(&plan->out, p.out);
    plan->algorithm = choose_algorithm(context, *plan, p);
    plans.push_back(std::move(plan));
    return *plans.back();
}

}  // namespace

void matmul_cuda(const Device& device, const Product& p) {
    CudaContext& context = device.context();
    CHECK(p.a.shape[p.a_transposed ? 0 : 1] > 0, "matmul: an empty sum in ", describe(p));
    const MatmulPlan& plan = plan_of(context, p);
    const float alpha = 1, beta = p.addend ? 1 : 0;
    const cublasStatus_t status =
        cublasLtMatmul(context.cublaslt, plan.operation, &alpha, p.b.data, plan.first, p.a.data, plan.second, &beta,
                       p.addend ? p.addend.data : p.out.data, plan.addend, p.out.data, plan.out, &plan.algorithm,
                       context.cublaslt_workspace, CudaContext::kCublasLtWorkspaceBytes, context.stream);
    CHECK(status == CUBLAS_STATUS_SUCCESS, "matmul: ", cublasLtGetStatusString(status), " for ", describe(p));
}

}  // namespace ingot
