// Single-threaded GEMMs for the CPU twins, which do their own threading over fixed blocks. fp32 is oneDNN's where
// the build has it (on x86-64 it is the fastest of the distributions' libraries, see BENCHMARKS.md), else the CBLAS's;
// fp64, the oracle's, is always the CBLAS's.
#pragma once

#include <cblas.h>

#include <cstdint>

#if INGOT_HAS_ONEDNN
#include <oneapi/dnnl/dnnl.h>

#include "kernels/core/check.h"
#endif

namespace ingot {

// Throws Error unless a BLAS takes these arguments. A CBLAS cannot report one that it does not take: it writes a line
// to stderr and leaves c as it was.
void check_gemm(bool a_transposed, bool b_transposed, int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb,
                int64_t ldc);

// c (m, n) = alpha * op(a) op(b) + beta * c, row-major; lda, ldb, ldc are row strides of the matrices as stored, none
// shorter than a row. With beta = 0 c is not read. Runs on the calling thread alone if that is one of an
// OpenMP team, or if OpenMP has one thread. Throws Error where the BLAS refuses.
inline void gemm(bool a_transposed, bool b_transposed, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                 int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
    check_gemm(a_transposed, b_transposed, m, n, k, lda, ldb, ldc);
#if INGOT_HAS_ONEDNN
    const dnnl_status_t status =
        dnnl_sgemm(a_transposed ? 'T' : 'N', b_transposed ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    CHECK(status == dnnl_success, "dnnl_sgemm of ", m, " x ", n, " x ", k, " (row strides ", lda, ", ", ldb, ", ", ldc,
          ") returned ", static_cast<int>(status), ": out of memory?");
#else
    cblas_sgemm(CblasRowMajor, a_transposed ? CblasTrans : CblasNoTrans, b_transposed ? CblasTrans : CblasNoTrans,
                static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), alpha, a, static_cast<int>(lda), b,
                static_cast<int>(ldb), beta, c, static_cast<int>(ldc));
#endif
}
inline void gemm(bool a_transposed, bool b_transposed, int64_t m, int64_t n, int64_t k, double alpha, const double* a,
                 int64_t lda, const double* b, int64_t ldb, double beta, double* c, int64_t ldc) {
    check_gemm(a_transposed, b_transposed, m, n, k, lda, ldb, ldc);
    cblas_dgemm(CblasRowMajor, a_transposed ? CblasTrans : CblasNoTrans, b_transposed ? CblasTrans : CblasNoTrans,
                static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), alpha, a, static_cast<int>(lda), b,
                static_cast<int>(ldb), beta, c, static_cast<int>(ldc));
}

// Names the library that computes fp32 GEMMs, with its version and, where it tells, its build, for the log and the
// manifest.
const char* blas_description();

// Makes BLAS calls run on the calling thread alone; takes effect at the first call.
void use_single_threaded_blas();

}  // namespace ingot
