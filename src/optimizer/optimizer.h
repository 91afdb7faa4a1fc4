// AdamW over the model's parameters: plans its moments, and turns accumulated gradients into one update.
#pragma once

#include "kernels/core/device.h"
#include "kernels/core/step.h"
#include "src/model/model.h"

namespace ingot {

class Optimizer {
  public:
    // Plans m and v in the layout of the model's weights.
    Optimizer(const Model& model, MemoryPlan* plan);
    Optimizer(const Optimizer&) = delete;  // the plan knows where the tensors are
    Optimizer& operator=(const Optimizer&) = delete;
    // Once, when there is memory: which parameters decay.
    void initialize_constants(const Model& model);
    // Gradient norm, decision (clip, skip), update. `step` lives on the model's device.
    void update(const Model& model, StepBlock* step) const;

    const Tensor& m() const { return m_; }
    const Tensor& v() const { return v_; }

  private:
    Tensor m_, v_, decay_blocks_, workspace_;
};

}  // namespace ingot
