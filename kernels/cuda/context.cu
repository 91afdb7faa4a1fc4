#include "kernels/cuda/context.h"

#include <cstring>

#include "kernels/core/device.h"

namespace ingot {

namespace {

// CUDA counts versions as 1000 * major + 10 * minor.
std::string version_text(int version) {
    return join(version / 1000, ".", version % 1000 / 10);
}

}  // namespace

CudaContext::~CudaContext() {
    // At process exit the driver may be gone before us, so that failures here mean nothing.
    matmul_plans.reset();
    if (cublaslt_workspace != nullptr) (void)cudaFree(cublaslt_workspace);
    if (cublaslt != nullptr) (void)cublasLtDestroy(cublaslt);
    if (stream != nullptr) (void)cudaStreamDestroy(stream);
}

int cuda_device_count(std::string* why) {
    int driver = 0, runtime = 0;
    const cudaError_t driver_status = cudaDriverGetVersion(&driver);
    if (driver_status != cudaSuccess || driver == 0) {
        (void)cudaGetLastError();
        *why = "no NVIDIA driver";
        return 0;
    }
    CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaSuccess && count > 0) return count;
    (void)cudaGetLastError();
    // Within a major version newer toolkits run on older drivers, so the runtime's own verdict decides.
    if (status == cudaErrorInsufficientDriver)
        *why = join("driver too old for CUDA ", version_text(runtime), ": it supports CUDA ", version_text(driver));
    else if (status == cudaSuccess || status == cudaErrorNoDevice)
        *why = "no GPU";
    else
        *why = join("the NVIDIA driver answers ", cudaGetErrorName(status), ": ", cudaGetErrorString(status));
    return 0;
}

std::shared_ptr<CudaContext> open_cuda_context(int index, std::string* name) {
    auto context = std::make_shared<CudaContext>();
    context->index = index;
    CUDA_CHECK(cudaSetDevice(index));
    CUDA_CHECK(cudaGetDeviceProperties(&context->properties, index));
    CUDA_CHECK(cudaStreamCreateWithFlags(&context->stream, cudaStreamNonBlocking));
    CUBLAS_CHECK(cublasLtCreate(&context->cublaslt));
    if (cudaMalloc(&context->cublaslt_workspace, CudaContext::kCublasLtWorkspaceBytes) != cudaSuccess) {
        (void)cudaGetLastError();
        throw Error(kExitAllocation, join("GPU ", index, " (", context->properties.name, ") has no room for the ",
                                          format_bytes(CudaContext::kCublasLtWorkspaceBytes),
                                          " workspace of cuBLASLt: is another process using it?"));
    }
    *name = join(context->properties.name, " (sm_", context->properties.major, context->properties.minor, ")");
    return context;
}

std::shared_ptr<void> cuda_allocate(CudaContext& context, size_t bytes) {
    void* memory = nullptr;
    const cudaError_t status = cudaMalloc(&memory, bytes);
    if (status == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        size_t free = 0, total = 0;
        CUDA_CHECK(cudaMemGetInfo(&free, &total));
        throw Error(kExitAllocation,
                    join("could not allocate ", format_bytes(bytes), " on GPU ", context.index, " (",
                         context.properties.name, "): ", format_bytes(free), " of ", format_bytes(total),
                         " are free: use a smaller training.micro_batch_size or training.recompute = \"block\""));
    }
    CUDA_CHECK(status);
    return {memory, [](void* allocated) { (void)cudaFree(allocated); }};
}

void cuda_copy(CudaContext& context, void* destination, const void* source, size_t bytes, bool wait) {
    CUDA_CHECK(cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDefault, context.stream));
    if (wait) CUDA_CHECK(cudaStreamSynchronize(context.stream));
}

void cuda_fill(CudaContext& context, void* data, uint8_t value, size_t bytes) {
    CUDA_CHECK(cudaMemsetAsync(data, value, bytes, context.stream));
}

void cuda_synchronize(CudaContext& context) {
    CUDA_CHECK(cudaStreamSynchronize(context.stream));
}

std::string cublaslt_version() {
    const size_t version = cublasLtGetVersion();
    return join(version / 10000, ".", version % 10000 / 100, ".", version % 100);
}

void cuda_failed(const char* file, int line, const char* expression, const std::string& text) {
    const char* name = std::strstr(file, "kernels/");
    throw Error(kExitFault, join(text, " [", name != nullptr ? name : file, ":", line, ": ", expression, "]"));
}

void check_launch(const char* file, int line, const char* op) {
    const cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess)
        cuda_failed(file, line, op, join(cudaGetErrorName(status), ": ", cudaGetErrorString(status)));
}

}  // namespace ingot
