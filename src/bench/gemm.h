// ./bench gemm measures the GEMMs of a model's micro-steps: those of a step's first one, and those that add to its
// gradients. Each runs with the library's first choice of an algorithm and with the one that timing chooses; on demand
// also with the best that a full search finds.
#pragma once

#include <cstdint>
#include <string>

namespace ingot {

struct BenchGemmOptions {
    std::string config;  // a run's config; empty: the shape below
    int64_t tokens = 65536;
    int64_t layers = 12, width = 768, heads = 12, kv_heads = 4, head_dim = 64, hidden = 2048, vocab = 50304;
    int64_t chunk = 0;     // tokens whose logits exist at a time; 0: the model's number
    std::string dtype;     // fp32, bf16 or fp16; empty: the config's, else bf16
    double seconds = 0.5;  // for each GEMM
    bool full = false;
    double search_seconds = 20;  // the most for each GEMM's full search
};

// Prints a table to stdout. Throws UserError if there is no GPU, for a config that cannot be read and for an unknown
// shape or dtype.
void bench_gemm(const BenchGemmOptions&);

}  // namespace ingot
