// AdamW (Loshchilov and Hutter 2019, algorithm 2) over flat parameter space, and the gradient norm it clips by.
//
//   g  = gradient * decision.gradient_factor        (clip / (S * targets): see core/step.h)
//   m  = beta1 m + (1 - beta1) g                    v = beta2 v + (1 - beta2) g^2
//   w -= lr * (m / bias1 / (sqrt(v / bias2) + eps) + weight_decay * w)
//
// Does nothing if the step's decision says so. lr, betas and flags are read from the StepBlock on the device.
//
// One call takes a whole flat space, and decay_blocks says block by block which of its tensors decay.
//
// On CUDA all is fp32, and a range of a flat space may begin at any element; it is fastest where all tensors have the
// same offset from a 16-byte boundary, as ranges of flat spaces do.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/core/device.h"
#include "kernels/core/step.h"

namespace ingot {

// All tensors are (n), contiguous, and fp32, or all fp64 for the oracle. No two overlap.
struct AdamW {
    Tensor weights, m, v;
    Tensor gradient;
    Tensor compute = {};  // optional: the bf16 or fp16 copy that the GEMMs read, rounded from the new weights
    const StepBlock* step;
    // Optional: (ceil(n / kDecayBlock)) uint8, 1 where settings.weight_decay applies to a block of elements, else 0.
    // Without it, the weight decay applies to all.
    Tensor decay_blocks = {};
};
constexpr int64_t kDecayBlock = 64;
void adamw(const Device&, const AdamW&);

// step->sums.squared_norm += sum of gradient^2, in double and in a fixed order: the same bits for any thread count. The
// gradients are added one after the other, each as a whole, so that the bits are also those of a call for each of them.
struct GradientNorm {
    StepBlock* step;
    std::vector<Tensor> gradients;  // (n) each, of one dtype; none adds nothing
    Tensor workspace = {};          // uint8, at least gradient_norm_workspace(); may be empty on the CPU
};
void gradient_norm(const Device&, const GradientNorm&);
size_t gradient_norm_workspace(const Device&, size_t num_gradients);  // in bytes

// The CUDA twins, called by the functions above once shapes are checked.
void adamw_cuda(const Device&, const AdamW&);
void gradient_norm_cuda(const Device&, const GradientNorm&);
constexpr int kGradientNormBlocks = 1024;  // one double each, for each gradient

}  // namespace ingot
