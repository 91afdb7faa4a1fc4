#include "src/model/linear.h"

#include "kernels/matmul/matmul.h"

namespace ingot {

void Linear::forward(const Forward& args) const {
    matmul_forward(device, {.out = args.out, .x = args.x, .weight = weight, .residual = args.residual, .bias = bias});
}

void Linear::backward(const Backward& args) const {
    backward_weight(args);
    backward_input(args.dx, args.dout);
}

void Linear::backward_weight(const Backward& args) const {
    matmul_backward_weight(device, {.dweight = dweight, .dout = args.dout, .x = args.x, .accumulate = args.accumulate});
    if (bias)
        matmul_backward_bias(
            device, {.dbias = dbias, .dout = args.dout, .workspace = args.workspace, .accumulate = args.accumulate});
}

void Linear::backward_input(const Tensor& dx, const Tensor& dout) const {
    matmul_backward_input(device, {.dx = dx, .dout = dout, .weight = weight});
}

}  // namespace ingot
