#include "kernels/core/blas.h"

#include <omp.h>

#include <string>

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
