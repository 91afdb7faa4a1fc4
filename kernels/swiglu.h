// SwiGLU (Shazeer 2020): out = silu(gate) * up, silu(g) = g / (1 + e^-g).
// gate_up: (N, 2F), the F gates before the F ups of each token; out: (N, F). Compute type, contiguous, one rounding at
// the store. Backward reads gate_up only: dgate = dout * up * sigmoid(gate) * (1 + gate * (1 - sigmoid(gate))), dup =
// dout * silu(gate). dgate_up may be gate_up. It can also write the forward's out again, with the same bits, for
// callers that did not keep it: one more store, where the forward would read gate_up once more.
#pragma once

#include "kernels/core/device.h"
#include "kernels/core/fp8.h"

namespace ingot {

struct SwigluForward {
    Tensor out = {}, gate_up;
    Fp8Operand quantized = {};  // (N, F) e4m3, in place of out: then out is null
};
void swiglu_forward(const Device&, const SwigluForward&);

struct SwigluBackward {
    Tensor dgate_up = {}, dout, gate_up;
    Tensor out = {};  // (N, F), optional: the forward's; may be dout
    // In fp8, in place of dgate_up and out, which then are null: (N, 2F) e5m2, and, optional, (N, F) e4m3.
    Fp8Operand quantized = {}, quantized_out = {};
};
void swiglu_backward(const Device&, const SwigluBackward&);

// The CUDA twins, called by the functions above once shapes are checked.
void swiglu_forward_cuda(const Device&, const SwigluForward&);
void swiglu_backward_cuda(const Device&, const SwigluBackward&);
void swiglu_forward_fp8_cuda(const Device&, const SwigluForward&);
void swiglu_backward_fp8_cuda(const Device&, const SwigluBackward&);

}  // namespace ingot
