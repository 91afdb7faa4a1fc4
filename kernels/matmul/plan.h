// What the CUDA files of the product share: a product as cuBLASLt knows it, its algorithms, and the search among them.
//
// cuBLASLt is column-major: what it calls a (columns, rows) matrix is our row-major (rows, columns) one. So it computes
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
    ProductKey key{};
    std::string product;  // text_of(key)
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t first = nullptr, second = nullptr, addend = nullptr, out = nullptr;
    LtAlgorithm algorithm;
    MatmulSource source = MatmulSource::first_choice;

    explicit MatmulPlan(const Product&);
    MatmulPlan(const MatmulPlan&) = delete;
    MatmulPlan& operator=(const MatmulPlan&) = delete;
    ~MatmulPlan();
};

cudaDataType_t cuda_type(DType);

// "out bf16 (64, 768), a ..." for error messages.
std::string describe(const Product&);

// Queues the product, computed by `algorithm`.
cublasStatus_t launch(const CudaContext&, const MatmulPlan&, const Product&, const LtAlgorithm& algorithm);

constexpr int kMostHeuristics = 48;
// Up to `count` (at most kMostHeuristics) algorithms that the library thinks of, best first; all of them keep our
// promise. Throws if there is none.
std::vector<LtAlgorithm> heuristic_algorithms(const CudaContext&, const MatmulPlan&, const Product&, int count);

// Whether the library can run this algorithm for the product here, in our workspace. *waves (optional) is how often its
// blocks fill the GPU.
bool is_accepted(const CudaContext&, const MatmulPlan&, const LtAlgorithm& algorithm, float* waves = nullptr);

// The same for an algorithm that was put together by hand, which must also keep our promise (sums are split only where
// the parts are kept in fp32 and added by a second step) and take operands that are aligned as ours are.
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
// Sums split into `splits` parts over K, added in fp32 by a second step; 1: not split. False if the algorithm cannot.
bool split_sums(LtAlgorithm* algorithm, int32_t splits);

// ---- The search (matmul_tuning.cu). All of it overwrites the operands, and waits for the GPU. ----

// Random normals in all operands.
void fill_operands(const Device&, const Product&);

// The numbers of parts, 2 to 16, into which a sum over K may be split so that blocks which fill `waves` of the GPU fill
// between least_filled and most_filled of it. None if they fill it already.
std::vector<int32_t> split_counts(float waves, int64_t K, float least_filled, float most_filled);

// Appends what is not there yet.
void add_algorithm(std::vector<LtAlgorithm>* algorithms, const LtAlgorithm& algorithm);

// What is timed in the search of set_matmul_tuning(): the library's candidates, its first choice first, and for
// products of few tiles the best of them with sums split.
std::vector<LtAlgorithm> tuning_candidates(const CudaContext&, const MatmulPlan&, const Product&);

// Seconds of one run of each, roughly: one run to load the kernel and one to time, in order, until `seconds` are over.
// Infinity for those that fail or that were not reached; the first one is always run.
std::vector<double> screen(const Device&, const MatmulPlan&, const Product&, const std::vector<LtAlgorithm>& candidates,
                           double seconds);

// Median seconds of one run of each, measured in turns for `seconds` and almost without a pause: so the clock, which
// falls as the GPU comes to its power limit, is the same for all. At least a few rounds. A candidate that is more than
// `margin` behind the best is given up on the way; its figure keeps that distance.
std::vector<double> compare(const Device&, const MatmulPlan&, const Product&,
                            const std::vector<LtAlgorithm>& candidates, double seconds, double margin);

// The places of the `count` smallest, those within `margin` of the smallest alone; in the order of `seconds`.
std::vector<size_t> best_of(const std::vector<double>& seconds, size_t count, double margin);

// All of it: the fastest of tuning_candidates(), found in about `seconds`.
LtAlgorithm fastest_algorithm(const Device&, const MatmulPlan&, const Product&, double seconds);

}  // namespace ingot
