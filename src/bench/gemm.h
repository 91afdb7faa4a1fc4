// ./bench gemm: the products of a model's micro-steps, a step's first and those that add to its gradients, each by the
// library's first choice of an algorithm and by the one that timing chooses; on demand also by the best that a full
// search finds.
#pragma once

#include <cstdint>
#include <string>

namespace ingot {

struct BenchGemmOptions {
    std::string config;  // a run's config; empty: the shape below
    int64_t tokens = 65536;
    int64_t layers = 12, width = 768, heads = 12, kv_heads = 4, head_dim = 64, hidden = 2048, vocab = 50304;
    int64_t chunk = 0;     // tokens whose logits exist at a time; 0: as many as the model takes
    std::string dtype;     // fp32, bf16 or fp16; empty: the config's, else bf16
    double seconds = 0.5;  // for each product
    bool full = false;
    double search_seconds = 20;  // at most, for each product's full search
};

// Prints a table to stdout. Throws UserError if there is no GPU, for a config that cannot be read and for a shape or
// dtype that there is not.
void bench_gemm(const BenchGemmOptions&);

}  // namespace ingot
