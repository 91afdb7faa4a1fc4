#include "kernels/cuda/system.h"

#include <cublasLt.h>
#include <cuda_runtime.h>

namespace ingot {

namespace {

// CUDA counts versions as 1000 * major + 10 * minor.
std::string version_text(int version) {
    return version > 0 ? std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10) : "";
}

}  // namespace

CudaSystem describe_cuda_system() {
    CudaSystem system;
    int driver = 0, toolkit = 0, count = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess) system.driver = version_text(driver);
    if (cudaRuntimeGetVersion(&toolkit) == cudaSuccess) system.toolkit = version_text(toolkit);
    // Since 12.0 counted as 10000 * major + 100 * minor + patch.
    const size_t cublaslt = cublasLtGetVersion();
    system.cublaslt = std::to_string(cublaslt / 10000) + "." + std::to_string(cublaslt % 10000 / 100) + "." +
                      std::to_string(cublaslt % 100);
    if (driver == 0 || cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
    for (int index = 0; index < count; ++index) {
        cudaDeviceProp properties{};
        if (cudaGetDeviceProperties(&properties, index) == cudaSuccess)
            system.gpus.push_back({properties.name, properties.major, properties.minor, properties.totalGlobalMem});
    }
    (void)cudaGetLastError();
    return system;
}

}  // namespace ingot
