// Cross-entropy over a chunk of n tokens: one pass computes the loss and turns the logits into their gradient in place,
// so that no second buffer of the vocabulary's size exists.
//
//   loss[i]    = lse(logits[i]) - logits[i][target]                       (0 where target = -1)
//   dlogits[i] = S * (softmax(logits[i]) * (1 + 2 z lse) - onehot(target))  (0 where target = -1)
//
// z_loss z adds z * lse^2 to what is differentiated (PaLM, Chowdhery et al. 2022, section 5), not to the loss reported.
// The gradient is that of the SUM of token losses, times the loss scale S: the number of targets of a step is known
// only at its end, and AdamW divides by it. Columns from V to VP are padding: they are ignored, and their gradient is
// 0.
//
// fp32 inside (fp64 for fp64 logits), one rounding at the store. On CUDA no host sees the targets: one outside [-1, V)
// stops the program with a CUDA error.
#pragma once

#include "kernels/core/device.h"
#include "kernels/core/step.h"

namespace ingot {

struct CrossEntropy {
    Tensor logits;   // (n, VP), compute type; becomes its gradient if write_gradient
    Tensor losses;   // (n) fp32 (fp64 for fp64 logits)
    Tensor targets;  // (n) int32, -1 = ignored
    int64_t vocab_size;
    double z_loss = 0;
    const double* loss_scale = nullptr;  // S, in the memory of the device; null means S = 1
    bool write_gradient = true;
};
void cross_entropy(const Device&, const CrossEntropy&);

// step->sums.loss += sum of losses, step->sums.targets += number of targets >= 0; in a fixed order, in double.
struct LossSum {
    StepBlock* step;
    Tensor losses, targets;  // (N), (N)
};
void loss_sum(const Device&, const LossSum&);

// The CUDA twins, called by the functions above once shapes are checked.
void cross_entropy_cuda(const Device&, const CrossEntropy&);
void loss_sum_cuda(const Device&, const LossSum&);

}  // namespace ingot
