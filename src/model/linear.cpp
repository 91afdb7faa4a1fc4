#include "src/model/linear.h"

#include "kernels/fp8.h"
#include "kernels/matmul/matmul.h"

namespace ingot {

void Linear::forward(const Forward& args) const {
    if (!weight_fp8) {
        matmul_forward(device,
                       {.out = args.out, .x = args.x, .weight = weight, .residual = args.residual, .bias = bias});
        return;
    }
    fp8_quantize(device, {.out = {.rows = weight_fp8.rows, .scale = weight_fp8.scale}, .in = weight});
    matmul_fp8(device, {.out = args.out,
                        .a = args.x_fp8.rows,
                        .b = weight_fp8.rows,
                        .a_scale = args.x_fp8.scale,
                        .b_scale = weight_fp8.scale,
                        .addend = args.residual,
                        .bias = bias,
                        .fast_accumulation = true});
}

void Linear::backward(const Backward& args) const {
    backward_weight(args);
    backward_input(args);
}

void Linear::backward_weight(const Backward& args) const {
    if (!weight_fp8)
        matmul_backward_weight(device,
                               {.dweight = dweight, .dout = args.dout, .x = args.x, .accumulate = args.accumulate});
    else
        matmul_fp8(device, {.out = dweight,
                            .a = args.dout_fp8.columns,
                            .b = args.x_fp8.columns,
                            .a_scale = args.dout_fp8.scale,
                            .b_scale = args.x_fp8.scale,
                            .addend = args.accumulate ? dweight : Tensor{}});
    if (bias)
        matmul_backward_bias(
            device, {.dbias = dbias, .dout = args.dout, .workspace = args.workspace, .accumulate = args.accumulate});
}

void Linear::backward_input(const Backward& args) const {
    if (!weight_fp8) {
        matmul_backward_input(device, {.dx = args.dx, .dout = args.dout, .weight = weight});
        return;
    }
    fp8_quantize(device, {.out = {.columns = weight_fp8.columns, .scale = weight_fp8.scale}, .in = weight});
    matmul_fp8(device, {.out = args.dx,
                        .a = args.dout_fp8.rows,
                        .b = weight_fp8.columns,
                        .a_scale = args.dout_fp8.scale,
                        .b_scale = weight_fp8.scale});
}

}  // namespace ingot
