// Conversion to fp8, and the update of its scales (core/fp8.h).
//
//   fp8 value = value * scale->quantize, rounded to nearest even; beyond the format's largest number it is taken. What
//   is not finite becomes NaN: it must not pass for a large number.
//
// Extents are multiples of 16, as cuBLASLt asks of its fp8 operands.
#pragma once

#include "kernels/core/device.h"
#include "kernels/core/fp8.h"
#include "kernels/core/step.h"

namespace ingot {

// in: (N, W), contiguous, in bf16 on CUDA; the CPU twin takes fp32 and fp64.
struct Fp8Quantize {
    Fp8Operand out;
    Tensor in;
};
void fp8_quantize(const Device&, const Fp8Quantize&);

// Updates `count` scales of tensors in `format`.
struct Fp8UpdateScales {
    Fp8Scale* scales;  // in the memory of the device
    int64_t count;
    DType format;
};
void fp8_update_scales(const Device&, const Fp8UpdateScales&);

// Returns whether the device has tensor cores for fp8: compute capability 8.9 and up. Plans assume it.
bool supports_fp8(const Device&);

// Checks an operand that an op writes: (rows, columns) in one of the two formats, its transpose, or both.
void check_fp8_operand(const char* op, const char* name, const Fp8Operand& operand, int64_t rows, int64_t columns,
                       DeviceKind device);

// Rounds `in` (N, W) in fp32 or fp64 on the CPU: what the twins of all ops that write fp8 end with.
void fp8_quantize_cpu(const Fp8Quantize&);

// The CUDA twins, called by the functions above once shapes are checked.
bool supports_fp8_cuda(const Device&);
void fp8_quantize_cuda(const Device&, const Fp8Quantize&);
void fp8_update_scales_cuda(const Device&, const Fp8UpdateScales&);

}  // namespace ingot
