// RMSNorm (Zhang and Sennrich 2019): out = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps), over the last axis.
//
// Rows are the tokens of x (N, C), or, for QK-norm, the heads of a view x (N, H, HS) with any strides and a contiguous
// last axis; C below is the last axis. rstd is (N) or (N, H), contiguous, and saved for backward; so is x.
//
// dtypes: x, out, weight and their gradients in the compute type; rstd and dweight in fp32 (fp64 for fp64 input).
// Rounding: accumulation in fp32, one rounding at each store.
#pragma once

#include <cstddef>

#include "kernels/core/device.h"
#include "kernels/core/fp8.h"

namespace ingot {

// out may be x itself.
struct RmsNormForward {
    Tensor out = {}, rstd;
    Tensor x, weight;  // weight: (C)
    double eps;
    Fp8Operand quantized = {};  // (N, C) e4m3, in place of out: then out is null, and x contiguous
};
void rmsnorm_forward(const Device&, const RmsNormForward&);

// With g = dout * weight:  dx = dresidual + rstd * (g - x * rstd^2 * mean(g * x));  dweight [+]= sum over rows of
// dout * x * rstd, in a fixed order: the same bits every time.
// dresidual (optional) is the gradient that reaches x around the norm. dx may be dresidual or dout.
struct RmsNormBackward {
    Tensor dx, dweight;  // dweight: (C)
    Tensor dout, x, rstd, weight;
    Tensor dresidual = {};
    Tensor workspace;        // uint8, at least rmsnorm_backward_workspace(device, x)
    bool accumulate = true;  // false: dweight is overwritten
};
void rmsnorm_backward(const Device&, const RmsNormBackward&);
// Returns the bytes of the scratch memory, which depend on the device, and on the last axis and dtype of x alone.
size_t rmsnorm_backward_workspace(const Device&, const Tensor& x);

// The CUDA twins, called by the functions above once shapes are checked.
void rmsnorm_forward_cuda(const Device&, const RmsNormForward&);
void rmsnorm_forward_fp8_cuda(const Device&, const RmsNormForward&);
void rmsnorm_backward_cuda(const Device&, const RmsNormBackward&);
// The backward kernel has at most so many blocks on a multiprocessor, each with a row of partial sums.
constexpr int kRmsNormBackwardBlocks = 4;
size_t rmsnorm_backward_workspace_cuda(const Device&, const Tensor& x);

}  // namespace ingot
