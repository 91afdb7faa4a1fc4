// Rotary position embedding (Su et al. 2021) in the rotate-half layout: elements d and d + HS/2 of a head form a pair,
// turned by the angle position * theta^(-2d / HS). In place, on a view x (N, H, HS) with any strides and a contiguous
// last axis. positions: (N) int32, counted within the document. The gradient is turned back by the same angle.
//
// Multiplication in fp32, one rounding at the store. q and k that lie side by side, as in a fused buffer, can go in one
// call. On CUDA no host sees the positions: one outside the table stops the program with a CUDA error.
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

// The CUDA twin of both: direction is 1 or -1.
void rope_cuda(const Device&, const Rope&, int direction);

// The stretching of long wavelengths with which Llama 3.1 reads longer contexts ("rope_type": "llama3"). A wavelength
// above original_context / low_freq_factor is multiplied by `factor`, one below original_context / high_freq_factor
// stays as it is, and in between the frequency is interpolated.
struct RopeStretch {
    double factor = 1, low_freq_factor = 1, high_freq_factor = 4, original_context = 8192;
};

// Fills a table on the host; angles are computed in double. `stretch` may be null.
void fill_rope_table(const Tensor& table, double theta, const RopeStretch* stretch = nullptr);
// Returns how much the wavelength of the frequency (radians per position) is stretched: 1 to factor.
double rope_stretch_of(double frequency, const RopeStretch& stretch);

}  // namespace ingot
