#include "kernels/cuda/context.h"

#include <cuda.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "kernels/core/device.h"

namespace ingot {

namespace {

// CUDA counts versions as 1000 * major + 10 * minor.
std::string version_text(int version) {
    return join(version / 1000, ".", version % 1000 / 10);
}

std::string gpu_text(const cudaDeviceProp& properties) {
    return join(properties.name, " (sm_", properties.major, properties.minor, ")");
}

// The properties are read once, since the call takes longer than many ops.
const cudaDeviceProp& properties_of(int index) {
    static std::mutex mutex;
    static std::map<int, cudaDeviceProp> all;
    const std::lock_guard lock(mutex);
    const auto found = all.find(index);
    if (found != all.end()) return found->second;
    cudaDeviceProp properties{};
    CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
    return all.emplace(index, properties).first->second;
}

}  // namespace

CudaContext::~CudaContext() {
    // At process exit the driver may be gone already, so that failures here mean nothing.
    matmul_plans.reset();
    if (cublaslt_workspace != nullptr) (void)cudaFree(cublaslt_workspace);
    if (cublaslt != nullptr) (void)cublasLtDestroy(cublaslt);
    for (cudaStream_t each : {stream, upload, download, collective})
        if (each != nullptr) (void)cudaStreamDestroy(each);
}

bool Device::has_cuda() {
    return true;
}

int Device::num_cuda_devices(std::string* why) {
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

std::string Device::pci_bus_id(int index) {
    char id[32] = "";
    if (cudaDeviceGetPCIBusId(id, sizeof id, index) == cudaSuccess) return id;
    (void)cudaGetLastError();
    return "";
}

namespace {

void require_gpu(int index) {
    std::string why;
    const int count = Device::num_cuda_devices(&why);
    REQUIRE(count > 0, "no CUDA device: ", why, ": use the CPU");
    REQUIRE(index >= 0 && index < count, "no CUDA device ", index, ": there are ", count);
}

}  // namespace

std::shared_ptr<CudaContext> open_cuda_context(int index, std::string* name) {
    require_gpu(index);
    auto context = std::make_shared<CudaContext>();
    context->index = index;
    CUDA_CHECK(cudaSetDevice(index));
    CUDA_CHECK(cudaGetDeviceProperties(&context->properties, index));
    for (cudaStream_t* each : {&context->stream, &context->upload, &context->download})
        CUDA_CHECK(cudaStreamCreateWithFlags(each, cudaStreamNonBlocking));
    // A collective that starts late is one that other GPUs wait for: its blocks come before those of compute.
    int lowest = 0, highest = 0;
    CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    CUDA_CHECK(cudaStreamCreateWithPriority(&context->collective, cudaStreamNonBlocking, highest));
    CUBLAS_CHECK(cublasLtCreate(&context->cublaslt));
    if (cudaMalloc(&context->cublaslt_workspace, CudaContext::kCublasLtWorkspaceBytes) != cudaSuccess) {
        (void)cudaGetLastError();
        throw Error(kExitAllocation, join("GPU ", index, " (", context->properties.name, ") has no room for the ",
                                          format_bytes(CudaContext::kCublasLtWorkspaceBytes),
                                          " workspace of cuBLASLt: is another process using it?"));
    }
    *name = gpu_text(context->properties);
    return context;
}

void* cuda_driver_function(const char* name) {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult status = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    CUDA_CHECK(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &status));
#else
    CUDA_CHECK(cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, &status));
#endif
    CHECK(status == cudaDriverEntryPointSuccess && function != nullptr, "the NVIDIA driver has no ", name,
          ": a driver for CUDA 12.0 or later is needed");
    return function;
}

namespace {

// The driver's own functions on contexts.
struct Driver {
    CUresult (*get_current)(CUcontext*);
    CUresult (*get_device_of_current)(CUdevice*);
    CUresult (*get_device)(CUdevice*, int);
    CUresult (*retain_primary)(CUcontext*, CUdevice);
    CUresult (*push_current)(CUcontext);
    CUresult (*pop_current)(CUcontext*);
};
const Driver& driver() {
    static const Driver found = [] {
        Driver functions{};
        const auto find = [](auto& function, const char* name) {
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(cuda_driver_function(name));
        };
        find(functions.get_current, "cuCtxGetCurrent");
        find(functions.get_device_of_current, "cuCtxGetDevice");
        find(functions.get_device, "cuDeviceGet");
        find(functions.retain_primary, "cuDevicePrimaryCtxRetain");
        find(functions.push_current, "cuCtxPushCurrent");
        find(functions.pop_current, "cuCtxPopCurrent");
        return functions;
    }();
    return found;
}

void check_driver(const char* function, CUresult result) {
    if (result != CUDA_SUCCESS)
        throw CudaError(join("the CUDA driver refuses ", function, " (error ", static_cast<int>(result), ")"));
}

// Returns the GPU's primary context, which is created if need be and held until the process ends, as CUDA's runtime
// does: the attributes of kernels and addresses that are kept per GPU belong to it.
CUcontext primary_context(CUdevice device) {
    static std::mutex mutex;
    static std::map<CUdevice, CUcontext> all;
    const std::lock_guard lock(mutex);
    const auto found = all.find(device);
    if (found != all.end()) return found->second;
    CUcontext context = nullptr;
    check_driver("cuDevicePrimaryCtxRetain", driver().retain_primary(&context, device));
    return all.emplace(device, context).first->second;
}

// Makes GPU `index` the calling thread's as long as it lives.
//
// A thread that never called CUDA's runtime (PyTorch's autograd threads, say) has no current context, even where
// cudaGetDevice() returns the right GPU. Most functions of the runtime create one, but the driver's own
// (cuTensorMapEncodeTiled) fail. cudaSetDevice() would create one, but going back by it would also create one on the
// former GPU, which takes hundreds of megabytes there. So the GPU's primary context, which the runtime and PyTorch use
// too, is pushed and popped, and leaves the thread as it was. A context that is already current on that GPU is the
// caller's choice, and stays.
class CurrentGpu {
  public:
    explicit CurrentGpu(int index) {
        CUcontext current = nullptr;
        CUdevice device = -1, device_of_current = -1;
        check_driver("cuDeviceGet", driver().get_device(&device, index));
        check_driver("cuCtxGetCurrent", driver().get_current(&current));
        if (current != nullptr) check_driver("cuCtxGetDevice", driver().get_device_of_current(&device_of_current));
        if (device_of_current == device) return;
        check_driver("cuCtxPushCurrent", driver().push_current(primary_context(device)));
        is_pushed_ = true;
    }
    ~CurrentGpu() {
        CUcontext popped = nullptr;
        if (is_pushed_) (void)driver().pop_current(&popped);
    }
    CurrentGpu(const CurrentGpu&) = delete;
    CurrentGpu& operator=(const CurrentGpu&) = delete;

  private:
    bool is_pushed_ = false;
};

}  // namespace

std::shared_ptr<CudaContext> borrow_cuda_stream(int index, void* stream, std::string* name) {
    require_gpu(index);
    const auto current = std::make_shared<CurrentGpu>(index);
    const std::shared_ptr<CudaContext> context(new CudaContext, [current](CudaContext* borrowed) {
        borrowed->stream = nullptr;  // the stream is the caller's
        delete borrowed;
    });
    context->index = index;
    context->properties = properties_of(index);
    context->stream = static_cast<cudaStream_t>(stream);
    *name = gpu_text(context->properties);
    return context;
}

void* cuda_stream(CudaContext& context) {
    return context.stream;
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

// Many threads touch the pages, huge ones where the system has them, before they are locked: 13 GiB take half a second
// this way, and 5.5 seconds by cudaHostAlloc, whose one thread touches them all.
std::shared_ptr<void> cuda_allocate_host(CudaContext&, size_t bytes) {
    const auto fail = [&](const char* why) {
        throw Error(kExitAllocation, join("could not allocate ", format_bytes(bytes), " of page-locked host memory (",
                                          why, "): set a lower checkpoint.host_memory (0: none)"));
    };
    void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail(std::strerror(errno));
    std::shared_ptr<void> result(memory, [bytes](void* allocated) {
        if (cudaHostUnregister(allocated) != cudaSuccess) (void)cudaGetLastError();
        (void)munmap(allocated, bytes);
    });
    (void)madvise(memory, bytes, MADV_HUGEPAGE);  // may fail: without huge pages 13 GiB take a second

    constexpr size_t kPage = 4096, kBytesPerThread = size_t{64} << 20;
    const size_t most_threads = std::clamp(std::thread::hardware_concurrency(), 1u, 16u);
    const size_t num_threads = std::clamp<size_t>(bytes / kBytesPerThread, 1, most_threads);
    const size_t share = (bytes / num_threads + kPage - 1) / kPage * kPage;
    const auto touch = [&](size_t index) {
        volatile char* const page = static_cast<char*>(memory);
        for (size_t at = index * share; at < std::min(bytes, (index + 1) * share); at += kPage) page[at] = 0;
    };
    std::vector<std::thread> threads;
    for (size_t index = 1; index < num_threads; ++index) threads.emplace_back(touch, index);
    touch(0);
    for (std::thread& thread : threads) thread.join();

    const cudaError_t status = cudaHostRegister(memory, bytes, cudaHostRegisterDefault);
    if (status != cudaSuccess) {
        (void)cudaGetLastError();
        fail(cudaGetErrorString(status));
    }
    return result;
}

size_t cuda_free_memory(CudaContext& context) {
    size_t free = 0, total = 0;
    CUDA_CHECK(cudaSetDevice(context.index));
    CUDA_CHECK(cudaMemGetInfo(&free, &total));
    return free;
}

void cuda_start_copy(CudaContext& context, Stream stream, void* destination, const void* source, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDefault, context.stream_of(stream)));
}

void cuda_fill(CudaContext& context, void* data, uint8_t value, size_t bytes) {
    CUDA_CHECK(cudaMemsetAsync(data, value, bytes, context.stream));
}

void cuda_synchronize(CudaContext& context) {
    CUDA_CHECK(cudaStreamSynchronize(context.stream));
}

std::shared_ptr<void> cuda_create_event(CudaContext&) {
    cudaEvent_t event = nullptr;
    CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventBlockingSync));
    return {event, [](void* created) { (void)cudaEventDestroy(static_cast<cudaEvent_t>(created)); }};
}

void cuda_record_event(CudaContext& context, void* event, Stream stream) {
    CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(event), context.stream_of(stream)));
}

void cuda_wait_event(void* event) {
    CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(event)));
}

void cuda_block_stream(CudaContext& context, void* event, Stream stream) {
    CUDA_CHECK(cudaStreamWaitEvent(context.stream_of(stream), static_cast<cudaEvent_t>(event)));
}

void cuda_block_stream_from_outside(CudaContext& context, void* event, Stream stream) {
    const cudaStream_t waiting = context.stream_of(stream);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    CUDA_CHECK(cudaStreamIsCapturing(waiting, &status));
    const unsigned flags = status == cudaStreamCaptureStatusNone ? cudaEventWaitDefault : cudaEventWaitExternal;
    CUDA_CHECK(cudaStreamWaitEvent(waiting, static_cast<cudaEvent_t>(event), flags));
}

double cuda_seconds_between(void* earlier, void* later) {
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(earlier), static_cast<cudaEvent_t>(later)));
    return milliseconds * 1e-3;
}

std::shared_ptr<void> cuda_record_graph(CudaContext& context, const std::function<void()>& work) {
    cudaGraph_t graph = nullptr;
    // Thread-local capture ignores what other threads do meanwhile (a checkpoint being copied).
    CUDA_CHECK(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeThreadLocal));
    try {
        work();
    } catch (...) {
        (void)cudaStreamEndCapture(context.stream, &graph);
        if (graph != nullptr) (void)cudaGraphDestroy(graph);
        throw;
    }
    CUDA_CHECK(cudaStreamEndCapture(context.stream, &graph));
    cudaGraphExec_t executable = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
    (void)cudaGraphDestroy(graph);
    CUDA_CHECK(status);
    return {executable, [](void* created) { (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(created)); }};
}

void cuda_launch_graph(CudaContext& context, void* graph) {
    CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), context.stream));
}

std::string cublaslt_version() {
    const size_t version = cublasLtGetVersion();
    return join(version / 10000, ".", version % 10000 / 100, ".", version % 100);
}

void cuda_failed(const char* file, int line, const char* expression, const std::string& text) {
    const char* name = std::strstr(file, "kernels/");
    throw CudaError(join(text, " [", name != nullptr ? name : file, ":", line, ": ", expression, "]"));
}

void check_launch(const char* file, int line, const char* op) {
    const cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess)
        cuda_failed(file, line, op, join(cudaGetErrorName(status), ": ", cudaGetErrorString(status)));
}

}  // namespace ingot
