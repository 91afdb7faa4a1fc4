// A linear layer: the GEMMs of one weight matrix, forward and backward. Everything that multiplies by a weight goes
// through here.
#pragma once

#include "kernels/core/device.h"
#include "kernels/core/fp8.h"

namespace ingot {

// weight: (K, C)   bias: (K), or null   dweight, dbias: their gradients, null without training
struct Linear {
    Device device;
    Tensor weight, bias = {}, dweight = {}, dbias = {};
    // Where it is set the GEMMs run in fp8, x and dout come as fp8 operands, and the weight is converted into this one
    // before each GEMM: rows (K, C), columns (C, K).
    Fp8Operand weight_fp8 = {};

    // out (n, K) = x (n, C) weight^T + bias + residual (n, K), which may be out itself or null
    struct Forward {
        Tensor out, x, residual = {};
        Fp8Operand x_fp8 = {};  // its rows are read, and then x is not
    };
    void forward(const Forward&) const;

    // dweight (+)= dout^T x and dbias (+)= the sum of dout over the tokens, then dx = dout weight. The order lets dx
    // take the place of x. workspace: matmul_backward_bias_workspace() bytes where there is a bias.
    struct Backward {
        Tensor dx = {}, dout, x, workspace = {};
        // The columns of x and dout are read for dweight, the rows of dout for dx; dout itself for dbias alone.
        Fp8Operand dout_fp8 = {}, x_fp8 = {};
        bool accumulate;
    };
    void backward(const Backward&) const;

    // The halves of backward(), for where something stands between them.
    void backward_weight(const Backward&) const;  // dx is not read
    void backward_input(const Backward&) const;   // x is not read
};

}  // namespace ingot
