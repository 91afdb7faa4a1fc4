// ./bench attention measures time, TFLOP/s, memory and error of attention, forward and backward.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ingot {

struct BenchAttentionOptions {
    int64_t batch = 4;
    int64_t tokens = 0;  // 0: batch x seq; otherwise the batch of each length is tokens / seq
    std::vector<int64_t> seq = {1024, 2048, 4096, 8192, 16384};
    int64_t heads = 16, kv_heads = 0;  // 0: heads
    std::vector<int64_t> head_dim = {64, 128};
    std::vector<int64_t> docs;  // lengths of documents, packed into one row, instead of batch and seq
    bool alibi = false;
    std::string mask = "causal", dtype = "bf16", kernel = "auto", against;
    bool any_order = false;  // sum dq in any order: training.deterministic = false
    bool check = false;      // compute errors against the SIMT kernel in fp32
    double seconds = 0.3;    // of each measurement
    double load_seconds = 2;
    std::string json;
};

// Throws UserError for a case that cannot be measured. Needs CUDA.
void bench_attention(const BenchAttentionOptions& options);

}  // namespace ingot
