// What a CUDA device needs to run ops: the one place outside .cu files that sees CUDA headers.
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

struct MatmulPlans;  // descriptors and algorithms of the products seen so far: kernels/matmul/matmul.cu

struct CudaContext {
    int index = 0;
    cudaDeviceProp properties{};
    cudaStream_t stream = nullptr;  // Queue::compute
    cudaStream_t upload = nullptr, download = nullptr;
    cublasLtHandle_t cublaslt = nullptr;
    void* cublaslt_workspace = nullptr;
    static constexpr size_t kCublasLtWorkspaceBytes = 64u << 20;  // what NVIDIA recommends for Hopper is 32 MiB
    std::shared_ptr<MatmulPlans> matmul_plans;
    CudaContext() = default;
    CudaContext(const CudaContext&) = delete;
    CudaContext& operator=(const CudaContext&) = delete;
    ~CudaContext();
    cudaStream_t stream_of(Queue queue) const {
        return queue == Queue::compute ? stream : queue == Queue::upload ? upload : download;
    }
};

// A function of the driver (libcuda.so), found at run time, so that programs start without a driver too.
void* cuda_driver_function(const char* name);
std::string cublaslt_version();  // "13.1.0"

[[noreturn]] void cuda_failed(const char* file, int line, const char* expression, const std::string& text);
// After each launch: reports a launch that was refused, by the op's name.
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
