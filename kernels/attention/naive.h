// Attention by the book, on CUDA: for each head a matrix of all pairs. What fused attention is compared with, in
// benchmarks alone.
//
// N tokens are rows of T (T = N: one row, masked where documents end). The products run through cuBLASLt, one head
// after the other. Scores, probabilities and their gradients are rounded to the tensors' type, as any framework does
// that has them in memory.
#pragma once

#include <memory>
#include <vector>

#include "kernels/attention/attention.h"

namespace ingot {

class NaiveAttention {
  public:
    // q as attention_forward() takes it. Throws Error (exit code 5) where T x T matrices of all heads do not fit.
    NaiveAttention(const Device&, const Tensor& q, int64_t T);
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
