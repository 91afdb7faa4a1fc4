// Stands in for attention where a benchmark leaves it out, so that the rest of a step can be timed alone: every token
// sees only itself. The GEMMs around it keep their shapes. No model is trained with it, so there is no CPU twin.
//
//   out[i][h] = v[i][h / G]        dv[i][k] = sum over the G heads h of group k of dout[i][h],  dq = dk = 0
//
// CUDA only: fp32, bf16 and fp16. The sum runs in fp32, head after head, and is rounded once.
#pragma once

#include "kernels/core/device.h"

namespace ingot {

// out: (N, NH, HS); v: (N, NKV, HS): strided views with a contiguous last axis. They do not overlap.
struct AttentionLeftOutForward {
    Tensor out, v;
};
void attention_left_out_forward(const Device&, const AttentionLeftOutForward&);

// dq, dout: (N, NH, HS); dk, dv: (N, NKV, HS), views as above; dout overlaps none of the others.
struct AttentionLeftOutBackward {
    Tensor dq, dk, dv, dout;
};
void attention_left_out_backward(const Device&, const AttentionLeftOutBackward&);

// The kernels, once shapes are checked.
void attention_left_out_forward_cuda(const Device&, const AttentionLeftOutForward&);
void attention_left_out_backward_cuda(const Device&, const AttentionLeftOutBackward&);

}  // namespace ingot
