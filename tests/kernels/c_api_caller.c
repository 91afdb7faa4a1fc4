/* A caller in C: the header is C11, and an op can be called without a line of C++. */
#include "kernels/c_api.h"

#include <math.h>
#include <string.h>

/* 0, or the number of the line of this function that found something wrong. */
int call_from_c(void);

static ingot_tensor row_major(void* data, int32_t dtype, int64_t rows, int64_t columns) {
    ingot_tensor tensor = {.data = data, .dtype = dtype, .ndim = 2, .shape = {rows, columns}, .strides = {columns, 1}};
    return tensor;
}

static ingot_tensor vector(void* data, int32_t dtype, int64_t count) {
    ingot_tensor tensor = {.data = data, .dtype = dtype, .ndim = 1, .shape = {count}, .strides = {1}};
    return tensor;
}

int call_from_c(void) {
    if (ingot_abi_version() != INGOT_ABI_VERSION) return __LINE__;
    if (strlen(ingot_version()) == 0) return __LINE__;

    float x[2][4] = {{1, 2, 3, 4}, {-2, 0, 0, 2}}, weight[4] = {1, 1, 2, 1}, out[2][4], rstd[2];
    const ingot_device cpu = {.struct_size = sizeof cpu, .kind = INGOT_CPU};
    ingot_rmsnorm_forward_arguments arguments = {.struct_size = sizeof arguments,
                                                 .out = row_major(out, INGOT_FP32, 2, 4),
                                                 .rstd = vector(rstd, INGOT_FP32, 2),
                                                 .x = row_major(x, INGOT_FP32, 2, 4),
                                                 .weight = vector(weight, INGOT_FP32, 4),
                                                 .eps = 0};
    if (ingot_rmsnorm_forward(&cpu, &arguments) != INGOT_DONE) return __LINE__;
    /* Mean squares of 7.5 and 2. */
    if (!(fabs(out[0][2] - 6 / sqrt(7.5)) < 1e-6) || !(fabs(out[1][0] + sqrt(2.0)) < 1e-6)) return __LINE__;

    arguments.eps = 1e-5;
    arguments.weight = vector(weight, INGOT_FP32, 3);
    if (ingot_rmsnorm_forward(&cpu, &arguments) != INGOT_BAD_ARGUMENT) return __LINE__;
    if (strstr(ingot_last_error(), "weight is fp32 (3), expected fp32 (4)") == NULL) return __LINE__;
    return 0;
}
