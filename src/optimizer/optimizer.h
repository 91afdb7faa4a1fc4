// AdamW over the model's parameters. It owns what training keeps of a parameter besides the weight that the model
// computes with: the fp32 master and the moments.
#pragma once

#include <string>
#include <vector>

#include "kernels/core/device.h"
#include "kernels/core/step.h"
#include "src/model/model.h"
#include "src/parallel/ranks.h"

namespace ingot {

// A tensor of what training keeps of the parameters: flat, fp32 (fp64), in the layout of the parameter table. A
// checkpoint names the parameter `p` of it PREFIX + p.
struct OptimizerState {
    std::string prefix;  // "": the weights; "m.", "v.": the moments
    Tensor tensor;
    bool is_weights() const { return prefix.empty(); }
};

class Optimizer {
  public:
    // Plans the masters, unless the model computes in fp32 (fp64): then they are the model's weights. Plans m and v.
    // `model` outlives the optimizer.
    Optimizer(const Model& model, MemoryPlan* plan);
    Optimizer(const Optimizer&) = delete;  // the plan knows where the tensors are
    Optimizer& operator=(const Optimizer&) = delete;
    // Fills the map of the parameters that decay, once the plan is allocated.
    void initialize_constants();
    // Draws the initial masters, and rounds them to the model's weights.
    void initialize_weights(uint64_t seed);
    // Rounds the masters to the model's weights, after they were written from outside.
    void refresh_model();
    // Sums the gradients over the ranks, then gradient norm, decision (clip, skip), update. `step` lives on the model's
    // device.
    void update(StepBlock* step, Ranks* ranks) const;

    const Tensor& weights() const { return is_master_of_copy_ ? masters_ : model_.weights(); }
    // The weights, then the moments: the order in which a checkpoint has them.
    std::vector<OptimizerState> state() const { return {{"", weights()}, {"m.", m_}, {"v.", v_}}; }
    // The prefixes of state() without those of the weights: what the optimizer's file of a checkpoint holds.
    static std::vector<std::string> moment_prefixes() { return {"m.", "v."}; }

  private:
    const Model& model_;
    const bool is_master_of_copy_;  // whether the model computes with a rounded copy
    Tensor masters_, m_, v_, decay_blocks_, workspace_;
};

}  // namespace ingot
