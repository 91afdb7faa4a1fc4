#include "src/optimizer/optimizer.h"

#include <algorithm>
#include <vector>

#include "kernels/adamw.h"
#include "kernels/core/profile.h"
#include "kernels/fill.h"
#include "kernels/step.h"

namespace ingot {

Optimizer::Optimizer(const Model& model, MemoryPlan* plan)
    : model_(model), is_master_of_copy_(model.dtype() != accumulation_dtype(model.dtype())) {
    const DType dtype = accumulation_dtype(model.dtype());
    const int64_t size = model.table().flat_size();
    if (is_master_of_copy_) plan->add("optimizer.weights", dtype, {size}, &masters_);
    plan->add("optimizer.m", dtype, {size}, &m_);
    plan->add("optimizer.v", dtype, {size}, &v_);
    plan->add("optimizer.decay_blocks", DType::u8, {size / kDecayBlock}, &decay_blocks_);
    plan->add("workspace.gradient_norm", DType::u8, {static_cast<int64_t>(gradient_norm_workspace(model.device()))},
              &workspace_);
}

void Optimizer::initialize_constants() {
    std::vector<uint8_t> blocks(static_cast<size_t>(decay_blocks_.numel()), 0);
    for (const Parameter& parameter : model_.table().parameters()) {
        CHECK(parameter.offset % kDecayBlock == 0, parameter.name, " begins at ", parameter.offset);
        const int64_t first = parameter.offset / kDecayBlock;
        const int64_t end = (parameter.offset + parameter.numel() + kDecayBlock - 1) / kDecayBlock;
        std::fill(blocks.begin() + first, blocks.begin() + end, parameter.is_matrix ? 1 : 0);
    }
    model_.device().copy(decay_blocks_, Tensor::contiguous(blocks.data(), DType::u8, {decay_blocks_.numel()}));
}

void Optimizer::initialize_weights(uint64_t seed) {
    initialize_parameters(model_.device(), model_.table(), seed, weights());
    refresh_model();
}

void Optimizer::refresh_model() {
    if (is_master_of_copy_) round_to(model_.device(), {.out = model_.weights(), .in = masters_});
}

void Optimizer::update(StepBlock* step, Ranks* ranks) const {
    const ProfileRange range("optimizer");
    const Device& device = model_.device();
    ranks->reduce_scatter(device, model_.gradients());
    gradient_norm(device, {.step = step, .gradient = model_.gradients(), .workspace = workspace_});
    ranks->all_reduce(device, &step->sums);
    step_decide(device, step);
    adamw(device, {.weights = weights(),
                   .m = m_,
                   .v = v_,
                   .gradient = model_.gradients(),
                   .compute = is_master_of_copy_ ? model_.weights() : Tensor{},
                   .step = step,
                   .decay_blocks = decay_blocks_});
    ranks->all_gather(device, model_.weights());
}

}  // namespace ingot
