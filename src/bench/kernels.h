// ./bench kernels compares each op with the rate at which this device copies memory, and times each GEMM.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ingot {

struct BenchKernelsOptions {
    std::string device = "cuda";  // or "cpu"
    int64_t rows = 65536;         // N; GEMMs of widths above 1024 run with half of it, as such a model would
    std::vector<int64_t> widths = {768, 2048};
    std::string dtype;     // fp32, bf16 or fp16; empty: bf16 on CUDA, fp32 on the CPU
    double seconds = 1.0;  // for each measurement
};

// Prints a table to stdout. Throws UserError for an unknown device or dtype.
void bench_kernels(const BenchKernelsOptions&);

}  // namespace ingot
