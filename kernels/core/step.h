// The scalars of an optimizer step. They live in one struct in the device's memory: the host uploads `settings` once
// per step, kernels read and update the rest, and the host reads a copy back one step late. So no step waits for the
// host.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/core/hd.h"

namespace ingot {

// Written by the host before each step.
struct StepSettings {
    double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
    double grad_clip = 1.0;          // 0 = no clipping
    int32_t dynamic_loss_scale = 0;  // 1 for fp16
    int32_t reserved = 0;            // in place of padding, so that the bytes of two equal blocks are equal
};

// Sums over the micro-steps of one step; zeroed when it begins.
struct StepSums {
    double loss = 0;          // sum of token cross-entropies, without z-loss and without the loss scale
    int64_t targets = 0;      // how many targets were not ignored
    double squared_norm = 0;  // of the accumulated gradients as they stand: S * d(sum of token losses)
};

// The state that outlives a step and is checkpointed.
struct StepState {
    int64_t updates_applied = 0;    // bias correction counts these, not the attempted steps
    double loss_scale = 1;          // S; 1 unless fp16
    int32_t good_steps = 0;         // since the last change of S
    int32_t consecutive_skips = 0;  // non-finite steps that no change of S explains
};

// decide_step() computes it from the sums; AdamW and the log read it.
struct StepDecision {
    int32_t apply = 0;           // 0: the update is skipped and nothing changes
    int32_t nonfinite = 0;       // loss or gradient norm was not finite
    double gradient_factor = 0;  // clip / (S * targets)
    double bias_correction1 = 1, bias_correction2 = 1;
    double loss = 0;       // mean over the targets
    double grad_norm = 0;  // of the mean loss, before clipping
};

struct StepBlock {
    StepSettings settings;
    StepSums sums;
    StepState state;
    StepDecision decision;
};

// Bounds of the dynamic loss scale, and after how many good steps it doubles. Gradients here are those of a sum over
// tokens, so S starts at 1 where a mean-loss trainer would start at 65536.
constexpr double kLossScaleMin = 0x1p-14, kLossScaleMax = 0x1p14;
constexpr int32_t kLossScaleGrowthInterval = 1000;

// Returns x^n by squaring: multiplications alone, so that host and device agree to the last bit.
INGOT_HD inline double power(double x, int64_t n) {
    double result = 1;
    for (; n > 0; n >>= 1) {
        if (n & 1) result *= x;
        x *= x;
    }
    return result;
}

// Returns false for NaN and infinities.
INGOT_HD inline bool is_finite(double x) {
    return x - x == 0;
}

// Takes the decision of one step; the CPU twin and the CUDA kernel share it. A step without targets, or with a loss or
// a gradient norm that is not finite, is skipped; in fp16 it halves S instead of counting as a skip while S is above
// its floor. Reference for dynamic loss scaling: Micikevicius et al. 2018, section 3.2.
INGOT_HD inline void decide_step(StepBlock& block) {
    const StepSettings& settings = block.settings;
    const StepSums& sums = block.sums;
    StepState& state = block.state;
    StepDecision decision;
    const double targets = static_cast<double>(sums.targets);
    const double scale = state.loss_scale * targets;
    const bool has_targets = sums.targets > 0;
    const bool all_finite = is_finite(sums.loss) && is_finite(sums.squared_norm);
    decision.nonfinite = all_finite ? 0 : 1;
    decision.loss = has_targets ? sums.loss / targets : 0;
    decision.grad_norm = has_targets ? sqrt(sums.squared_norm) / scale : 0;
    decision.apply = has_targets && all_finite ? 1 : 0;
    if (decision.apply) {
        const bool clips = settings.grad_clip > 0 && decision.grad_norm > settings.grad_clip;
        decision.gradient_factor = (clips ? settings.grad_clip / decision.grad_norm : 1.0) / scale;
        state.updates_applied += 1;
        decision.bias_correction1 = 1 - power(settings.beta1, state.updates_applied);
        decision.bias_correction2 = 1 - power(settings.beta2, state.updates_applied);
        state.consecutive_skips = 0;
        state.good_steps += 1;
        if (settings.dynamic_loss_scale && state.good_steps >= kLossScaleGrowthInterval) {
            if (state.loss_scale < kLossScaleMax) state.loss_scale *= 2;
            state.good_steps = 0;
        }
    } else if (!all_finite) {
        const bool can_lower = settings.dynamic_loss_scale && state.loss_scale > kLossScaleMin;
        if (can_lower)
            state.loss_scale *= 0.5;
        else
            state.consecutive_skips += 1;
        state.good_steps = 0;
    }
    block.decision = decision;
}

}  // namespace ingot
