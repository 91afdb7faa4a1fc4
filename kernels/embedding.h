// Token embedding: out = weight[token]; dweight[token] += dout, tokens in index order, so that the bits are always the
// same. tokens: (N) int32 in [0, V). weight: (VP, C) with VP >= V; dweight in fp32 (fp64 for fp64 dout).
//
// On CUDA equal tokens are added up first, in fp32, in an order that the tokens alone fix, and dweight gets the sum. No
// host sees the tokens there: one outside [0, VP) stops the program with a CUDA error.
#pragma once

#include <cstddef>

#include "kernels/core/device.h"

namespace ingot {

struct EmbeddingForward {
    Tensor out;             // (N, C)
    Tensor weight, tokens;  // (VP, C), (N)
};
void embedding_forward(const Device&, const EmbeddingForward&);

struct EmbeddingBackward {
    Tensor dweight;         // (VP, C), accumulated into
    Tensor dout, tokens;    // (N, C), (N)
    Tensor workspace = {};  // uint8, at least embedding_backward_workspace(device, dout); may be empty on the CPU
};
void embedding_backward(const Device&, const EmbeddingBackward&);
// Returns the bytes of the scratch memory, which depend on the shape of dout alone: about 16 + C / 8 for each token.
size_t embedding_backward_workspace(const Device&, const Tensor& dout);

// The CUDA twins, called by the functions above once shapes are checked.
void embedding_forward_cuda(const Device&, const EmbeddingForward&);
void embedding_backward_cuda(const Device&, const EmbeddingBackward&);

}  // namespace ingot
