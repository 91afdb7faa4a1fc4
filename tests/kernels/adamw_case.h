// An update of AdamW for tests: settings that let every term show, and where the state begins.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/adamw.h"
#include "tests/support/tensors.h"

namespace ingot::test {

inline StepBlock step_block(double gradient_factor, int64_t updates) {
    StepBlock step;
    step.settings.lr = 0.01;
    step.settings.beta1 = 0.8;
    step.settings.beta2 = 0.9;
    step.settings.eps = 1e-3;
    step.settings.weight_decay = 0.3;
    step.decision.apply = 1;
    step.decision.gradient_factor = gradient_factor;
    step.decision.bias_correction1 = 1 - power(step.settings.beta1, updates);
    step.decision.bias_correction2 = 1 - power(step.settings.beta2, updates);
    return step;
}

// adamw()'s decay_blocks for n elements that all decay or all do not.
inline Buffer decay_everywhere(const Device& device, int64_t n, bool decays) {
    const int64_t num_blocks = (n + kDecayBlock - 1) / kDecayBlock;
    return Buffer(device, DType::u8, {num_blocks},
                  std::vector<double>(static_cast<size_t>(num_blocks), decays ? 1 : 0));
}

struct State {
    std::vector<double> weights, m, v;
};

inline State initial(int64_t n) {
    State state = {rounded(normals(n, 1), DType::f32), rounded(normals(n, 2, 0.1), DType::f32),
                   rounded(normals(n, 3, 0.1), DType::f32)};
    for (double& value : state.v) value = std::abs(value);
    return state;
}

}  // namespace ingot::test
