// A copy kernel and the name of the GPU, for benchmarks. No CUDA header here.
#pragma once

#include <string>

#include "kernels/core/device.h"

namespace ingot {

// Copies by a kernel of 16-byte loads and stores, the best that a kernel bound by memory can reach. Contiguous tensors
// of the same size, a multiple of 16 bytes.
void copy_kernel_cuda(const Device&, const Tensor& destination, const Tensor& source);

// "NVIDIA H200 (sm_90), 132 multiprocessors, ...": GPU, driver and library versions.
std::string describe_cuda(const Device&);

}  // namespace ingot
