// Describes this machine's CUDA for `./train info`. No CUDA header here.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace ingot {

struct GpuDescription {
    std::string name;
    int major, minor;  // compute capability
    size_t memory_bytes;
};

struct CudaSystem {
    std::string driver, toolkit, cublaslt;  // versions; driver: the newest CUDA that it supports, empty without one
    std::vector<GpuDescription> gpus;
};

// Never throws; fields that cannot be read stay empty.
CudaSystem describe_cuda_system();

}  // namespace ingot
