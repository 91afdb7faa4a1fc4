// Single-threaded BLAS products for the CPU twins, which do their own threading over fixed blocks.
#pragma once

#include <cblas.h>

#include <cstdint>

namespace ingot {

// c (m, n) = alpha * op(a) op(b) + beta * c, row-major; lda, ldb, ldc are row strides of the matrices as stored.
inline void gemm(bool a_transposed, bool b_transposed, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                 int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
    cblas_sgemm(CblasRowMajor, a_transposed ? CblasTrans : CblasNoTrans, b_transposed ? CblasTrans : CblasNoTrans,
                static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), alpha, a, static_cast<int>(lda), b,
                static_cast<int>(ldb), beta, c, static_cast<int>(ldc));
}
inline void gemm(bool a_transposed, bool b_transposed, int64_t m, int64_t n, int64_t k, double alpha, const double* a,
                 int64_t lda, const double* b, int64_t ldb, double beta, double* c, int64_t ldc) {
    cblas_dgemm(CblasRowMajor, a_transposed ? CblasTrans : CblasNoTrans, b_transposed ? CblasTrans : CblasNoTrans,
                static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), alpha, a, static_cast<int>(lda), b,
                static_cast<int>(ldb), beta, c, static_cast<int>(ldc));
}

// The library's own description of itself, for the log and the manifest.
const char* blas_description();

// Makes BLAS calls run on the calling thread alone; takes effect at the first call.
void use_single_threaded_blas();

}  // namespace ingot
