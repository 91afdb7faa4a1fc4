// The CUDA context that ops run in. This is the one header outside .cu files that includes CUDA's headers.
//
// A context belongs to the thread that opened it: CUDA's current device, and the driver's current context, are
// properties of the thread.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <memory>
#include <string>

#include "kernels/core/cuda_device.h"

namespace ingot {

struct MatmulPlans;  // descriptors and algorithms of the GEMMs seen so far: kernels/matmul/matmul.cu

struct CudaContext {
    int index = 0;
    cudaDeviceProp properties{};
    cudaStream_t stream = nullptr;  // Stream::compute
    cudaStream_t upload = nullptr, download = nullptr, collective = nullptr;
    cublasLtHandle_t cublaslt = nullptr;
    void* cublaslt_workspace = nullptr;
    static constexpr size_t kCublasLtWorkspaceBytes = 64u << 20;  // NVIDIA recommends 32 MiB for Hopper
    std::shared_ptr<MatmulPlans> matmul_plans;
    CudaContext() = default;
    CudaContext(const CudaContext&) = delete;
    CudaContext& operator=(const CudaContext&) = delete;
    ~CudaContext();
    cudaStream_t stream_of(Stream which) const {
        switch (which) {
            case Stream::upload:
                return upload;
            case Stream::download:
                return download;
            case Stream::collective:
                return collective;
            default:
                return stream;
        }
    }
};

// Finds a function of the driver (libcuda.so) at run time, so that programs start without a driver too.
void* cuda_driver_function(const char* name);
std::string cublaslt_version();  // "13.1.0"

[[noreturn]] void cuda_failed(const char* file, int line, const char* expression, const std::string& text);
// Stands after each launch, and reports one that was refused by the op's name.
void check_launch(const char* file, int line, const char* op);

}  // namespace ingot

// Throws Error (exit code 1) with the expression and CUDA's own text.
#define CUDA_CHECK(expression)                                                                                         \
    do {                                                                                                               \
        const cudaError_t cuda_status = (expression);                                                                  \
        if (cuda_status != cudaSuccess)                                                                                \
            ::ingot::cuda_failed(__FILE__, __LINE__, #expression,                                                      \
                                 ::ingot::join(cudaGetErrorName(cuda_status), ": ", cudaGetErrorString(cuda_status))); \
    } while (false)

#define CUBLAS_CHECK(expression)                                                                           \
    do {                                                                                                   \
        const cublasStatus_t cublas_status = (expression);                                                 \
        if (cublas_status != CUBLAS_STATUS_SUCCESS)                                                        \
            ::ingot::cuda_failed(__FILE__, __LINE__, #expression, cublasLtGetStatusString(cublas_status)); \
    } while (false)

#define CUDA_CHECK_LAUNCH(op) ::ingot::check_launch(__FILE__, __LINE__, op)
