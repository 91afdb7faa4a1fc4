// Scales of fp8 tensors. A tensor has one scale, a power of two, so that scaling never rounds. It is found from the
// largest values of the steps before ("delayed scaling", Micikevicius et al. 2022, section 5): so the op that makes a
// tensor writes it in fp8 at once, without a pass that looks for its largest value first.
#pragma once

#include <cstdint>

#include "kernels/core/hd.h"
#include "kernels/core/tensor.h"

namespace ingot {

// Lives in the memory of the device. Ops that write the tensor read `quantize` and raise `largest`; GEMMs that read it
// multiply by `dequantize`; fp8_update_scales() does the rest, once a step.
struct Fp8Scale {
    float dequantize = 1;  // 1 / quantize
    float quantize = 1;    // a value is multiplied by it, then rounded
    float largest = 0;     // of |value| since the last update; not finite if a value was not
    float recent = 0;      // of |value| in the steps before, the older ones counting less; 0 if none was seen
};

// A step's largest value may be so much above those before it until values saturate: 2 to 4 times, as powers of two
// come. It costs the smallest exponents, of which there are 15 in e4m3 and 30 in e5m2.
constexpr float kFp8Headroom = 2;
// What was seen in a step counts for half after about 11 more.
constexpr float kFp8Decay = 15.0f / 16;

INGOT_HD constexpr float fp8_largest(DType format) {
    return format == DType::e4m3 ? kLargestE4m3 : kLargestE5m2;
}

// The update of one scale; the CPU twin and the CUDA kernel share it. A step in which nothing was seen, or something
// that is not finite, changes nothing.
INGOT_HD inline void fp8_update_scale(Fp8Scale& scale, float format_largest) {
    const float largest = scale.largest;
    scale.largest = 0;
    if (!(largest > 0) || largest - largest != 0) return;
    const float older = scale.recent * kFp8Decay;
    scale.recent = largest > older ? largest : older;
    // The largest power of two that is not above the quotient: within [2^-100, 2^100] both it and its inverse are
    // normal numbers.
    float quotient = format_largest / (scale.recent * kFp8Headroom);
    if (!(quotient > 0x1p-100f)) quotient = 0x1p-100f;
    if (!(quotient < 0x1p100f)) quotient = 0x1p100f;
    float power = 1;
    while (power > quotient) power *= 0.5f;
    while (power * 2 <= quotient) power *= 2;
    scale.quantize = power;
    scale.dequantize = 1 / power;
}

// A matrix in fp8, as the GEMMs of fp8 read it: their sums run along the rows of both operands, so a matrix that is
// also summed along its columns has a transposed copy.
struct Fp8Operand {
    Tensor rows = {};     // (N, W), e4m3 or e5m2; null if nobody reads it
    Tensor columns = {};  // (W, N), the transpose; null if nobody reads it
    Fp8Scale* scale = nullptr;
    explicit operator bool() const { return scale != nullptr; }
    DType format() const { return rows ? rows.dtype : columns.dtype; }
};

}  // namespace ingot
