#include "kernels/core/blas.h"

#include <omp.h>

#include <algorithm>
#include <limits>
#include <string>

#include "kernels/core/check.h"

// Entry points of OpenBLAS and BLIS; weak, so that another cblas links as well.
extern "C" {
[[gnu::weak]] void openblas_set_num_threads(int);
[[gnu::weak]] char* openblas_get_config(void);
[[gnu::weak]] void bli_thread_set_num_threads(int64_t);
}

namespace ingot {

const char* blas_description() {
    static const std::string description = [] {
        std::string text;
#if INGOT_HAS_ONEDNN
        const dnnl_version_t* const version = dnnl_version();
        text = "oneDNN " + std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
               std::to_string(version->patch);
#else
        text = openblas_get_config != nullptr ? openblas_get_config()
                                              : (bli_thread_set_num_threads != nullptr ? "BLIS" : "cblas");
#endif
        return text;
    }();
    return description.c_str();
}

void check_gemm(bool a_transposed, bool b_transposed, int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb,
                int64_t ldc) {
    const auto is_size = [](int64_t value) { return value >= 0 && value <= std::numeric_limits<int>::max(); };
    const auto holds_rows = [&](int64_t stride, int64_t columns) {
        return is_size(stride) && stride >= std::max<int64_t>(columns, 1);
    };
    CHECK(is_size(m) && is_size(n) && is_size(k) && holds_rows(lda, a_transposed ? m : k) &&
              holds_rows(ldb, b_transposed ? k : n) && holds_rows(ldc, n),
          "a product of ", m, " x ", n, " x ", k, " with row strides of ", lda, ", ", ldb, " and ", ldc,
          ": a BLAS takes extents and strides of 31 bits, and no stride shorter than a row");
}

void use_single_threaded_blas() {
    static const bool done = [] {
        // An OpenBLAS built with OpenMP hands the number on to OpenMP, where it would also end our own threads.
        const int num_threads = omp_get_max_threads();
        if (openblas_set_num_threads != nullptr) openblas_set_num_threads(1);
        if (bli_thread_set_num_threads != nullptr) bli_thread_set_num_threads(1);
        omp_set_num_threads(num_threads);
        return true;
    }();
    static_cast<void>(done);
}

}  // namespace ingot
