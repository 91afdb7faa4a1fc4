// NVTX is header-only: it finds the profiler, if there is one, when it is first called. Without it only the names are
// lost.
#include "kernels/core/profile.h"

#include <cuda_profiler_api.h>
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define INGOT_HAS_NVTX 1
#else
#define INGOT_HAS_NVTX 0
#endif

#include <atomic>

#include "kernels/cuda/context.h"

namespace ingot {

namespace {

std::atomic<bool> is_on = false;  // one for the process, as the profiler is

}  // namespace

void begin_profile() {
    CUDA_CHECK(cudaProfilerStart());
    is_on = true;
}

void end_profile() {
    is_on = false;
    CUDA_CHECK(cudaProfilerStop());
}

bool is_profiling() {
    return is_on.load(std::memory_order_relaxed);
}

#if INGOT_HAS_NVTX
void push_profile_range(const std::string& name) {
    (void)nvtxRangePushA(name.c_str());
}
void pop_profile_range() {
    (void)nvtxRangePop();
}
#else
void push_profile_range(const std::string&) {}
void pop_profile_range() {}
#endif

}  // namespace ingot
