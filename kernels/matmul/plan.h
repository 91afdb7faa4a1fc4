// The CUDA files of the GEMM share this header: a GEMM as cuBLASLt describes it, its algorithms, and their search.
//
// cuBLASLt is column-major: its (columns, rows) matrix is our row-major (rows, columns) one. So it computes
// out^T = op(b)^T op(a)^T: its first operand is our b, its second our a, and nothing is transposed in memory.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/context.h"
#include "kernels/matmul/choices.h"

namespace ingot {

// The library's algorithm. Its own type has no name but a typedef's, which nvcc 13.0 does not compile in a std::vector.
struct LtAlgorithm {
    cublasLtMatmulAlgo_t raw{};
    bool operator==(const LtAlgorithm& other) const { return std::memcmp(&raw, &other.raw, sizeof raw) == 0; }
};

struct MatmulPlan {
    GemmKey key{};
    std::string gemm;  // text_of(key)
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t first = nullptr, second = nullptr, addend = nullptr, out = nullptr;
    LtAlgorithm algorithm;
    MatmulSource source = MatmulSource::first_choice;

    explicit MatmulPlan(const Gemm&);
    MatmulPlan(const MatmulPlan&) = delete;
    MatmulPlan& operator=(const MatmulPlan&) = delete;
    ~MatmulPlan();
};

cudaDataType_t cuda_type(DType);

// Returns "out bf16 (64, 768), a ..." for error messages.
std::string describe(const Gemm&);

// Launches the GEMM with `algorithm`.
cublasStatus_t launch(const CudaContext&, const MatmulPlan&, const Gemm&, const LtAlgorithm& algorithm);

constexpr int kMostHeuristics = 48;
// Returns up to `count` (at most kMostHeuristics) algorithms that the library proposes, best first; all of them
// accumulate in fp32 in a fixed order. Throws if there is none.
std::vector<LtAlgorithm> heuristic_algorithms(const CudaContext&, const MatmulPlan&, const Gemm&, int count);

// Returns whether the library can run this algorithm for the GEMM here, in our workspace. *waves (optional) is how
// often its blocks fill the GPU.
bool is_accepted(const CudaContext&, const MatmulPlan&, const LtAlgorithm& algorithm, float* waves = nullptr);

// Returns the same for an algorithm that was put together by hand, which must also sum in a fixed order in fp32 (the
// parts of a split sum are kept in fp32 and added by a second step) and take operands that are aligned as ours are.
bool is_usable(const CudaContext&, const MatmulPlan&, const LtAlgorithm& algorithm, float* waves = nullptr);

template <typename Value>
bool get_config(const LtAlgorithm& algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute, Value* value) {
    size_t written = 0;
    return cublasLtMatmulAlgoConfigGetAttribute(&algorithm.raw, attribute, value, sizeof *value, &written) ==
           CUBLAS_STATUS_SUCCESS;
}
template <typename Value>
bool set_config(LtAlgorithm* algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute, Value value) {
    return cublasLtMatmulAlgoConfigSetAttribute(&algorithm->raw, attribute, &value, sizeof value) ==
           CUBLAS_STATUS_SUCCESS;
}
template <typename Value>
bool get_capability(const LtAlgorithm& algorithm, cublasLtMatmulAlgoCapAttributes_t attribute, Value* value) {
    size_t written = 0;
    return cublasLtMatmulAlgoCapGetAttribute(&algorithm.raw, attribute, value, sizeof *value, &written) ==
           CUBLAS_STATUS_SUCCESS;
}
// Splits the sums over K into `splits` parts, which a second step adds in fp32 (1: no split). Returns false if the
// algorithm cannot.
bool split_sums(LtAlgorithm* algorithm, int32_t splits);

// ---- The search (tuning.cu). All of these functions overwrite the operands, and wait for the GPU. ----

// Fills all operands with random normals.
void fill_operands(const Device&, const Gemm&);

// The numbers of parts, 2 to 16, into which a sum over K may be split so that blocks which fill `waves` of the GPU fill
// between least_filled and most_filled of it. None if they fill it already.
std::vector<int32_t> split_counts(float waves, int64_t K, float least_filled, float most_filled);

// Appends the candidates that are not in the list yet.
void add_algorithm(std::vector<LtAlgorithm>* algorithms, const LtAlgorithm& algorithm);

// Returns the candidates that the search of set_matmul_tuning() times: the library's candidates, its first choice
// first, and for GEMMs of few tiles the best of them with sums split.
std::vector<LtAlgorithm> tuning_candidates(const CudaContext&, const MatmulPlan&, const Gemm&);

// Returns about the seconds of one run of each: one run to load the kernel and one to time, in order, until `seconds`
// are over. Infinity for those that fail or that were not reached; the first one is always run.
std::vector<double> screen(const Device&, const MatmulPlan&, const Gemm&, const std::vector<LtAlgorithm>& candidates,
                           double seconds);

// Returns the median seconds of one run of each, measured in turns for `seconds` and almost without a pause: so the
// clock, which falls as the GPU comes to its power limit, is the same for all. At least a few rounds. A candidate that
// is more than `margin` behind the best is dropped during the measurement; its figure keeps that distance.
std::vector<double> compare(const Device&, const MatmulPlan&, const Gemm&, const std::vector<LtAlgorithm>& candidates,
                            double seconds, double margin);

// Returns the indices of the `count` smallest, those within `margin` of the smallest alone; in the order of `seconds`.
std::vector<size_t> best_of(const std::vector<double>& seconds, size_t count, double margin);

// The whole search: returns the fastest of tuning_candidates(), found in about `seconds`.
LtAlgorithm fastest_algorithm(const Device&, const MatmulPlan&, const Gemm&, double seconds);

}  // namespace ingot
