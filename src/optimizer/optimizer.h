// AdamW over the model's parameters. It owns what training keeps of a parameter besides the weight that the model
// computes with: the fp32 master and the moments, of the part of the parameters that this rank updates.
#pragma once

#include <string>
#include <vector>

#include "kernels/core/device.h"
#include "kernels/core/step.h"
#include "src/model/model.h"
#include "src/parallel/partition.h"
#include "src/parallel/ranks.h"

namespace ingot {

// Elements from `begin` on of the flat space of the parameter table, in fp32 (fp64).
struct StatePiece {
    int64_t begin;
    Tensor tensor;  // (n)
};

// A tensor for each parameter that training keeps, under one name. A checkpoint names the parameter `p` of it PREFIX +
// p.
struct OptimizerState {
    std::string prefix;  // "": the weights; "m.", "v.": the moments
    std::vector<StatePiece> pieces;
    bool is_weights() const { return prefix.empty(); }
};

class Optimizer final : public BucketUse {
  public:
    // Plans the masters, unless the model computes in fp32 (fp64): then they are the model's weights. Plans m and v.
    // `model` and `ranks` outlive the optimizer. `zero`: 1, each rank keeps the state of the pieces that it owns
    // (Partition); 0, of all parameters.
    Optimizer(const Model& model, Ranks* ranks, int64_t zero, MemoryPlan* plan);
    Optimizer(const Optimizer&) = delete;  // the plan knows where the tensors are
    Optimizer& operator=(const Optimizer&) = delete;
    // Fills the map of the parameters that decay, once the plan is allocated.
    void initialize_constants();
    // Draws the initial masters, and rounds them to the model's weights. Writes over the model's gradients.
    void initialize_weights(uint64_t seed);
    // Rounds the masters to the model's weights, on all ranks, after they were written from outside.
    void refresh_model();

    // The model calls these as it goes. Between start_reducing() and finish_reducing(), which stand around a step's
    // last micro-step, a bucket's gradients are summed over the ranks as soon as they are complete, beside the backward
    // that goes on.
    void before_weights(int64_t bucket) override;
    void after_gradients(int64_t bucket) override;
    void start_reducing() { reduces_ = true; }
    void finish_reducing();
    // Gradient norm, decision (clip, skip), update of this rank's pieces. `step` lives on the model's device.
    void update(StepBlock* step) const;
    // Starts to give every rank the weights that the others have updated; before_weights() waits for them.
    void gather_weights() const;

    // Returns what this rank keeps: the weights, then the moments, the order in which a checkpoint has them.
    std::vector<OptimizerState> state() const { return state_of(held_); }
    // Returns the part of it that this rank saves: all ranks together save each element once.
    std::vector<OptimizerState> owned_state() const { return state_of(owned_); }
    // How many elements each tensor of owned_state() has.
    int64_t num_owned() const;
    // The prefixes of state() without those of the weights: what the optimizer's file of a checkpoint holds.
    static std::vector<std::string> moment_prefixes() { return {"m.", "v."}; }

  private:
    std::vector<OptimizerState> state_of(const std::vector<FlatRange>& ranges) const;
    // The elements of a range in one of masters_, m_, v_, which have the held ranges one after the other.
    Tensor held(const Tensor& all, const FlatRange& range) const;
    Tensor weights(const FlatRange& range) const;

    const Model& model_;
    Ranks& ranks_;
    const bool is_master_of_copy_;  // whether the model computes with a rounded copy
    const bool is_sharded_;
    const Partition partition_;
    const std::vector<FlatRange> owned_, held_;  // ascending; what is held covers what is owned
    bool reduces_ = false;
    Tensor masters_, m_, v_, decay_blocks_, workspace_;
};

}  // namespace ingot
