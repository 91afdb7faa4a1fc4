// What CUDA says of this machine, for `./train info`. No CUDA header here.
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

// Never throws: what cannot be read stays empty.
CudaSystem describe_cuda_system();

}  // namespace ingot
