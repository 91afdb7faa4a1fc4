// Token embedding: out = weight[token]; dweight[token] += dout, tokens in index order, so that the bits are always the
// same. tokens: (N) int32 in [0, V). weight: (VP, C) with VP >= V; dweight in fp32 (fp64 for fp64 dout).
#pragma once

#include "kernels/core/device.h"

namespace ingot {

struct EmbeddingForward {
    Tensor out;             // (N, C)
    Tensor weight, tokens;  // (VP, C), (N)
};
void embedding_forward(const Device&, const EmbeddingForward&);

struct EmbeddingBackward {
    Tensor dweight;       // (VP, C), accumulated into
    Tensor dout, tokens;  // (N, C), (N)
};
void embedding_backward(const Device&, const EmbeddingBackward&);

}  // namespace ingot
