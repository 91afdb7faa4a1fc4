#include "kernels/core/blas.h"

#include <omp.h>

// OpenBLAS's own entry points; weak, so that another cblas (BLIS, a reference BLAS) links as well.
extern "C" {
[[gnu::weak]] void openblas_set_num_threads(int);
[[gnu::weak]] char* openblas_get_config(void);
}

namespace ingot {

const char* blas_description() {
    return openblas_get_config != nullptr ? openblas_get_config() : "cblas";
}

void use_single_threaded_blas() {
    static const bool done = [] {
        // An OpenBLAS built with OpenMP hands the number on to OpenMP, where it would also end our own threads.
        const int num_threads = omp_get_max_threads();
        if (openblas_set_num_threads != nullptr) openblas_set_num_threads(1);
        omp_set_num_threads(num_threads);
        return true;
    }();
    static_cast<void>(done);
}

}  // namespace ingot
