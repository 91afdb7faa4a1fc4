#include "src/optimizer/optimizer.h"

#include <algorithm>
#include <vector>

#include "kernels/adamw.h"
#include "kernels/core/profile.h"
#include "kernels/fill.h"
#include "kernels/step.h"

namespace ingot {

namespace {

int64_t count(const std::vector<FlatRange>& ranges) {
    int64_t sum = 0;
    for (const FlatRange& range : ranges) sum += range.numel();
    return sum;
}

}  // namespace

Optimizer::Optimizer(const Model& model, Ranks* ranks, int64_t zero, MemoryPlan* plan)
    : model_(model),
      ranks_(*ranks),
      is_master_of_copy_(model.dtype() != accumulation_dtype(model.dtype())),
      is_sharded_(zero > 0),
      partition_(model.table(), ranks->size()),
      owned_(partition_.ranges_of(ranks->rank())),
      held_(is_sharded_ ? owned_ : std::vector<FlatRange>{{0, model.table().flat_size()}}) {
    const DType dtype = accumulation_dtype(model.dtype());
    const int64_t size = count(held_);
    if (is_master_of_copy_) plan->add("optimizer.weights", dtype, {size}, &masters_);
    plan->add("optimizer.m", dtype, {size}, &m_);
    plan->add("optimizer.v", dtype, {size}, &v_);
    plan->add("optimizer.decay_blocks", DType::u8, {model.table().flat_size() / kDecayBlock}, &decay_blocks_);
    plan->add("workspace.gradient_norm", DType::u8,
              {static_cast<int64_t>(gradient_norm_workspace(model.device(), owned_.size()))}, &workspace_);
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
    const Device& device = model_.device();
    // All ranks draw all weights, so that none waits for another.
    const Tensor& all = is_master_of_copy_ ? model_.gradients() : model_.weights();
    initialize_parameters(device, model_.table(), seed, all);
    if (!is_master_of_copy_) return;
    for (const FlatRange& range : held_) device.copy(weights(range), all.slice(0, range.begin, range.end));
    round_to(device, {.out = model_.weights(), .in = all});
    device.zero(all);
}

void Optimizer::refresh_model() {
    if (is_master_of_copy_)
        for (const FlatRange& range : held_)
            round_to(model_.device(), {.out = model_.weights().slice(0, range.begin, range.end), .in = weights(range)});
    gather_weights();
}

void Optimizer::before_weights(int64_t bucket) {
    ranks_.finish_all_gather(model_.device(), partition_.bucket(bucket));
}

void Optimizer::after_gradients(int64_t bucket) {
    if (!reduces_) return;
    if (is_sharded_)
        ranks_.start_reduce_scatter(model_.device(), partition_.bucket(bucket), model_.gradients());
    else
        ranks_.start_all_reduce(model_.device(), partition_.bucket(bucket), model_.gradients());
}

void Optimizer::finish_reducing() {
    reduces_ = false;
    ranks_.finish_reduce(model_.device());
}

void Optimizer::update(StepBlock* step) const {
    const ProfileRange profile("optimizer");
    const Device& device = model_.device();
    std::vector<Tensor> owned;
    for (const FlatRange& range : owned_) owned.push_back(model_.gradients().slice(0, range.begin, range.end));
    gradient_norm(device, {.step = step, .gradients = owned, .workspace = workspace_});
    ranks_.all_reduce(device, &step->sums);
    step_decide(device, step);
    for (const FlatRange& range : held_)
        adamw(device, {.weights = weights(range),
                       .m = held(m_, range),
                       .v = held(v_, range),
                       .gradient = model_.gradients().slice(0, range.begin, range.end),
                       .compute = is_master_of_copy_ ? model_.weights().slice(0, range.begin, range.end) : Tensor{},
                       .step = step,
                       .decay_blocks = decay_blocks_.slice(0, range.begin / kDecayBlock, range.end / kDecayBlock)});
}

void Optimizer::gather_weights() const {
    if (!is_sharded_) return;
    for (int64_t bucket = 0; bucket < partition_.num_buckets(); ++bucket)
        ranks_.start_all_gather(model_.device(), partition_.bucket(bucket), model_.weights());
}

int64_t Optimizer::num_owned() const {
    return count(owned_);
}

Tensor Optimizer::held(const Tensor& all, const FlatRange& range) const {
    int64_t at = 0;
    for (const FlatRange& each : held_) {
        if (each.begin <= range.begin && range.end <= each.end)
            return all.slice(0, at + range.begin - each.begin, at + range.end - each.begin);
        at += each.numel();
    }
    throw Error(kExitFault, join("rank ", ranks_.rank(), " does not hold elements ", range.begin, " to ", range.end));
}

Tensor Optimizer::weights(const FlatRange& range) const {
    return is_master_of_copy_ ? held(masters_, range) : model_.weights().slice(0, range.begin, range.end);
}

std::vector<OptimizerState> Optimizer::state_of(const std::vector<FlatRange>& ranges) const {
    std::vector<OptimizerState> state = {{"", {}}, {"m.", {}}, {"v.", {}}};
    for (const FlatRange& range : ranges) {
        state[0].pieces.push_back({range.begin, weights(range)});
        state[1].pieces.push_back({range.begin, held(m_, range)});
        state[2].pieces.push_back({range.begin, held(v_, range)});
    }
    return state;
}

}  // namespace ingot
