// ./bench step measures the training step of a config on random tokens, and, if CUPTI is available, its parts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ingot {

struct BenchStepOptions {
    std::string config;                  // a run's config; its data files need not exist
    std::vector<std::string> overrides;  // "section.key=value"
    bool no_attention = false;           // kernels/attention/left_out.h instead
    double seconds = 10;                 // of measured steps
    double settle_seconds = -1;          // of steps before them; -1: a fifth of `seconds`
    int64_t document_tokens = 0;         // 0: a quarter of the context
    double gemm_rate = 0;                // TFLOP/s, for the floor of GEMMs; 0: no floor is printed
    bool no_parts = false;
    std::string trace, json;  // files to write; empty: none
};

// Prints to stdout. Throws UserError if there is no GPU, for a config that cannot be read, and if a trace is wanted
// and this build has no CUPTI.
void bench_step(const BenchStepOptions&);

}  // namespace ingot
