// SwiGLU (Shazeer 2020): out = silu(gate) * up, silu(g) = g / (1 + e^-g).
// gate_up: (N, 2F), the F gates before the F ups of each token; out: (N, F). Compute type, contiguous, one rounding at
// the store. Backward reads gate_up only: dgate = dout * up * sigmoid(gate) * (1 + gate * (1 - sigmoid(gate))), dup =
// dout * silu(gate). dgate_up may be gate_up. It can also write the forward's out again, with the same bits, for
// callers that did not keep it: one more store, where the forward would read gate_up once more.
#pragma once

#include "kernels/core/device.h"

namespace ingot {

struct SwigluForward {
    Tensor out, gate_up;
};
void swiglu_forward(const Device&, const SwigluForward&);

struct SwigluBackward {
    Tensor dgate_up, dout, gate_up;
    Tensor out = {};  // (N, F), optional: the forward's; may be dout
};
void swiglu_backward(const Device&, const SwigluBackward&);

// The CUDA twins, called by the functions above once shapes are checked.
void swiglu_forward_cuda(const Device&, const SwigluForward&);
void swiglu_backward_cuda(const Device&, const SwigluBackward&);

}  // namespace ingot
