// The CUDA half of Device: kernels/cuda/context.cu defines it, and the static functions of Device that ask
// for GPUs; in a build without CUDA kernels/without_cuda.cpp does. No CUDA header here.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "kernels/core/device.h"

namespace ingot {

// This function and the next throw UserError if this build has no CUDA, or if there is no such GPU.
std::shared_ptr<CudaContext> open_cuda_context(int index, std::string* name);
// A context without cuBLASLt, on a stream that stays the caller's: Device::on_cuda_stream() of core/device.h. As long
// as it lives, the calling thread has a current context on that GPU, whether or not it had one before.
std::shared_ptr<CudaContext> borrow_cuda_stream(int index, void* stream, std::string* name);
// The stream (cudaStream_t) that ops run on.
void* cuda_stream(CudaContext&);
// Throws Error with exit code 5 when there is not enough.
std::shared_ptr<void> cuda_allocate(CudaContext&, size_t bytes);
// Page-locked host memory, zeroed. Throws Error with exit code 5 when there is not enough.
std::shared_ptr<void> cuda_allocate_host(CudaContext&, size_t bytes);
size_t cuda_free_memory(CudaContext&);
// Copies between any two of host and device, in the order of the stream.
void cuda_start_copy(CudaContext&, Stream stream, void* destination, const void* source, size_t bytes);
void cuda_fill(CudaContext&, void* data, uint8_t value, size_t bytes);
void cuda_synchronize(CudaContext&);
// Events (cudaEvent_t) and graphs (cudaGraphExec_t) as opaque handles: DeviceEvent and DeviceGraph of core/device.h.
std::shared_ptr<void> cuda_create_event(CudaContext&);
void cuda_record_event(CudaContext&, void* event, Stream stream);
void cuda_wait_event(void* event);
void cuda_block_stream(CudaContext&, void* event, Stream stream);
void cuda_block_stream_from_outside(CudaContext&, void* event, Stream stream);
double cuda_seconds_between(void* earlier, void* later);
std::shared_ptr<void> cuda_record_graph(CudaContext&, const std::function<void()>& work);
void cuda_launch_graph(CudaContext&, void* graph);

}  // namespace ingot
