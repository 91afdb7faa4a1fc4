// Fills or converts whole tensors, for initial weights and the inputs of benchmarks. All are contiguous unless said.
#pragma once

#include <cstdint>

#include "kernels/core/device.h"

namespace ingot {

// out[i] = std * random_normal(seed, stream, i), in fp32 (core/rng.h), rounded to out's dtype once: the same bits on
// every device; on CUDA out may be in fp8 too. i counts the elements of `out`, which may be a matrix whose rows lie apart.
struct FillNormal {
    Tensor out;
    uint64_t seed, stream;
    double std;
};
void fill_normal(const Device&, const FillNormal&);

// out[i] = value, rounded to out's dtype.
struct FillValue {
    Tensor out;
    double value;
};
void fill_value(const Device&, const FillValue&);

// out[i] = in[i], rounded to nearest even. `in` is fp32; out is bf16 or fp16.
struct RoundTo {
    Tensor out, in;
};
void round_to(const Device&, const RoundTo&);

// Element i of FillNormal::out lies at i / columns * row_stride + i % columns.
struct FillRows {
    int64_t columns, row_stride;
};
FillRows fill_rows(const Tensor& out);

// The CUDA twins, called by the functions above once shapes are checked.
void fill_normal_cuda(const Device&, const FillNormal&);
void fill_value_cuda(const Device&, const FillValue&);
void round_to_cuda(const Device&, const RoundTo&);

}  // namespace ingot
