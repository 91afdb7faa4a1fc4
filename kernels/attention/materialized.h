// Materialized attention on CUDA: each head has a matrix of all pairs in memory. Benchmarks compare fused attention
// with it; nothing else uses it.
//
// N tokens are rows of T (T = N: one row, masked where documents end). cuBLASLt computes the GEMMs, one head after the
// other. Scores, probabilities and their gradients are rounded to the tensors' type, as any framework does that has
// them in memory.
#pragma once

#include <memory>
#include <vector>

#include "kernels/attention/attention.h"

namespace ingot {

class MaterializedAttention {
  public:
    // q as attention_forward() takes it. Throws Error (exit code 5) where T x T matrices of all heads do not fit.
    MaterializedAttention(const Device&, const Tensor& q, int64_t T);
    // lse is not written.
    void forward(const AttentionForward&);
    // After forward(): reads its probabilities.
    void backward(const AttentionBackward&);
    size_t bytes() const { return bytes_; }  // of all matrices

  private:
    Tensor tensor(DType dtype, std::initializer_list<int64_t> shape);
    Tensor probabilities_of(int64_t matrix) const;  // (T, T)

    Device device_;
    std::vector<std::shared_ptr<void>> memory_;
    size_t bytes_ = 0;
    Tensor probabilities_;  // (N / T * NH, T, T)
    Tensor gradient_;       // (T, T)
    Tensor dk_, dv_;        // fp32 (T, HS)
};

}  // namespace ingot
