// A clock and a copy kernel for benchmarks. No CUDA header here.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/core/device.h"

namespace ingot {

// Measures the time between two points of the device's stream, by CUDA events.
class CudaTimer {
  public:
    explicit CudaTimer(const Device&);
    ~CudaTimer();
    void start();
    double stop();  // in seconds, after waiting for the work between

  private:
    struct Events;
    std::unique_ptr<Events> events_;
};

// Copies by a kernel of 16-byte loads and stores, the best that a kernel bound by memory can reach. Contiguous tensors
// of the same size, a multiple of 16 bytes.
void copy_kernel_cuda(const Device&, const Tensor& destination, const Tensor& source);

// "NVIDIA H200 (sm_90), 132 multiprocessors, ...": GPU, driver and library versions.
std::string describe_cuda(const Device&);

}  // namespace ingot
