// Rotary position embedding (Su et al. 2021) in the rotate-half layout: elements d and d + HS/2 of a head form a pair,
// turned by the angle position * theta^(-2d / HS). In place, on a view x (N, H, HS) with any strides and a contiguous
// last axis. positions: (N) int32, counted within the document. The gradient is turned back by the same angle.
#pragma once

#include "kernels/core/device.h"

namespace ingot {

struct Rope {
    Tensor x;          // (N, H, HS): rotated in place
    Tensor positions;  // (N), in [0, rows of the table)
    Tensor table;      // (T, HS) fp32 (fp64 for fp64 x): HS/2 cosines, then HS/2 sines
};
void rope_forward(const Device&, const Rope&);
void rope_backward(const Device&, const Rope&);  // x holds the gradient

// Fills a table on the host; angles are computed in double.
void fill_rope_table(const Tensor& table, double theta);

}  // namespace ingot
