// A linear layer: the GEMMs of one weight matrix, forward and backward. Everything that multiplies by a weight goes
// through here.
#pragma once

#include "kernels/core/device.h"

namespace ingot {

// weight: (K, C)   bias: (K), or null   dweight, dbias: their gradients, null without training
struct Linear {
    Device device;
    Tensor weight, bias = {}, dweight = {}, dbias = {};

    // out (n, K) = x (n, C) weight^T + bias + residual (n, K), which may be out itself or null
    struct Forward {
        Tensor out, x, residual = {};
    };
    void forward(const Forward&) const;

    // dweight (+)= dout^T x and dbias (+)= the sum of dout over the tokens, then dx = dout weight. The order lets dx
    // take the place of x. workspace: matmul_backward_bias_workspace() bytes where there is a bias.
    struct Backward {
        Tensor dx = {}, dout, x, workspace = {};
        bool accumulate;
    };
    void backward(const Backward&) const;

    // The halves of backward(), for where something stands between them.
    void backward_weight(const Backward&) const;  // dx is not read
    void backward_input(const Tensor& dx, const Tensor& dout) const;
};

}  // namespace ingot
