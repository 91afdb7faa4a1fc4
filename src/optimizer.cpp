#include "src/optimizer.h"

#include "kernels/adamw.h"
#include "kernels/core/profile.h"
#include "kernels/step.h"

namespace ingot {

Optimizer::Optimizer(const Model& model, MemoryPlan* plan) {
    const DType dtype = accumulation_dtype(model.dtype());
    plan->add("optimizer.m", dtype, {model.table().flat_size()}, &m_);
    plan->add("optimizer.v", dtype, {model.table().flat_size()}, &v_);
    plan->add("workspace.gradient_norm", DType::u8, {static_cast<int64_t>(gradient_norm_workspace(model.device()))},
              &workspace_);
}

void Optimizer::update(const Model& model, StepBlock* step) const {
    const ProfileRange range("optimizer");
    const Device& device = model.device();
    gradient_norm(device, {.step = step, .gradient = model.gradients(), .workspace = workspace_});
    step_decide(device, step);
    for (const Parameter& parameter : model.table().parameters()) {
        const int64_t begin = parameter.offset, end = parameter.offset + parameter.numel();
        const bool has_copy = model.dtype() != accumulation_dtype(model.dtype());
        adamw(device, {.weights = model.weights().slice(0, begin, end),
                       .m = m_.slice(0, begin, end),
                       .v = v_.slice(0, begin, end),
                       .gradient = model.gradients().slice(0, begin, end),
                       .compute = has_copy ? model.compute_weights().slice(0, begin, end) : Tensor{},
                       .step = step,
                       .decays = parameter.is_matrix});
    }
}

}  // namespace ingot
