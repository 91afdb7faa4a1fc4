#include "src/optimizer/optimizer.h"

#include <algorithm>
#include <vector>

#include "kernels/adamw.h"
#include "kernels/core/profile.h"
#include "kernels/step.h"

namespace ingot {

Optimizer::Optimizer(const Model& model, MemoryPlan* plan) {
    const DType dtype = accumulation_dtype(model.dtype());
    plan->add("optimizer.m", dtype, {model.table().flat_size()}, &m_);
    plan->add("optimizer.v", dtype, {model.table().flat_size()}, &v_);
    plan->add("optimizer.decay_blocks", DType::u8, {model.table().flat_size() / kDecayBlock}, &decay_blocks_);
    plan->add("workspace.gradient_norm", DType::u8, {static_cast<int64_t>(gradient_norm_workspace(model.device()))},
              &workspace_);
}

void Optimizer::initialize_constants(const Model& model) {
    std::vector<uint8_t> blocks(static_cast<size_t>(decay_blocks_.numel()), 0);
    for (const Parameter& parameter : model.table().parameters()) {
        CHECK(parameter.offset % kDecayBlock == 0, parameter.name, " begins at ", parameter.offset);
        const int64_t first = parameter.offset / kDecayBlock;
        const int64_t end = (parameter.offset + parameter.numel() + kDecayBlock - 1) / kDecayBlock;
        std::fill(blocks.begin() + first, blocks.begin() + end, parameter.is_matrix ? 1 : 0);
    }
    model.device().copy(decay_blocks_, Tensor::contiguous(blocks.data(), DType::u8, {decay_blocks_.numel()}));
}

void Optimizer::update(const Model& model, StepBlock* step) const {
    const ProfileRange range("optimizer");
    const Device& device = model.device();
    gradient_norm(device, {.step = step, .gradient = model.gradients(), .workspace = workspace_});
    step_decide(device, step);
    const bool has_copy = model.dtype() != accumulation_dtype(model.dtype());
    adamw(device, {.weights = model.weights(),
                   .m = m_,
                   .v = v_,
                   .gradient = model.gradients(),
                   .compute = has_copy ? model.compute_weights() : Tensor{},
                   .step = step,
                   .decay_blocks = decay_blocks_});
}

}  // namespace ingot
