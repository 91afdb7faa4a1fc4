#include "src/model/fp8_buffers.h"

#include <algorithm>

#include "kernels/fp8.h"

namespace ingot {

namespace {

constexpr int64_t kQkv = 0, kAttentionOut = 1, kGateUp = 2, kDown = 3;
constexpr const char* kNames[] = {"qkv", "attention_out", "gate_up", "down"};

}  // namespace

Fp8Buffers::Fp8Buffers(const ModelConfig& config, int64_t max_tokens, Recompute recompute, MemoryPlan* plan)
    : num_layers_(config.n_layers), max_tokens_(max_tokens), keeps_columns_(recompute == Recompute::none) {
    const int64_t C = config.d_model, F = config.d_ff, heads = config.n_heads * config.head_dim;
    shapes_[kQkv] = {C, config.qkv_width()};
    shapes_[kAttentionOut] = {heads, C};
    shapes_[kGateUp] = {C, 2 * F};
    shapes_[kDown] = {F, C};

    // The gradients of attention_out's and down's outputs are that of the residual stream, which is still needed when
    // the next one is written where activations are computed again: it has memory of its own.
    int64_t inputs = 0, outputs = 0, weight = 0;
    for (const Shape& shape : shapes_) {
        inputs = std::max(inputs, shape.inputs);
        outputs = std::max(outputs, shape.outputs);
        weight = std::max(weight, shape.inputs * shape.outputs);
    }
    int64_t at = 0;
    const auto take = [&](int64_t bytes) {
        const int64_t begin = at;
        at += (bytes + 255) / 256 * 256;
        return begin;
    };
    take(max_tokens * std::max(inputs, outputs));  // rows: of an input in forward, of dout in backward
    dout_columns_ = take(max_tokens * outputs);
    dresidual_rows_ = take(max_tokens * C);
    dresidual_columns_ = take(max_tokens * C);
    x_columns_ = keeps_columns_ ? at : take(max_tokens * inputs);
    weight_ = take(weight);
    scratch_bytes_ = at;

    plan->add("fp8.scales", DType::u8, {num_scales() * static_cast<int64_t>(sizeof(Fp8Scale))}, &scales_);
    if (!keeps_columns_) return;
    columns_.resize(static_cast<size_t>(num_layers_ * kNumGemms));
    for (int64_t layer = 0; layer < num_layers_; ++layer)
        for (int64_t i = 0; i < kNumGemms; ++i)
            plan->add(join("activations.", kNames[i], "_fp8.", layer), DType::e4m3, {shapes_[i].inputs, max_tokens},
                      &columns_[static_cast<size_t>(layer * kNumGemms + i)]);
}

Fp8Linear Fp8Buffers::gemm(int64_t layer, int64_t index, int64_t n, const Tensor& scratch) const {
    const auto part = [&](int64_t offset, DType format, int64_t rows, int64_t columns) {
        return Tensor::contiguous(static_cast<uint8_t*>(scratch.data) + offset, format, {rows, columns},
                                  scratch.device);
    };
    const auto [I, O] = shapes_[index];
    Fp8Scale* const forward = scales() + layer * kForwardScales;
    Fp8Scale* const gradients = scales() + num_layers_ * kForwardScales + layer * kGradientScales;
    const bool is_dresidual = index == kAttentionOut || index == kDown;
    Tensor columns;
    if (keeps_columns_) columns = columns_[static_cast<size_t>(layer * kNumGemms + index)];
    if (columns) columns = Tensor::contiguous(columns.data, columns.dtype, {I, n}, columns.device);
    Fp8Linear result;
    result.x = {.rows = part(0, DType::e4m3, n, I), .columns = columns, .scale = forward + index};
    result.x_columns = {.columns = columns ? columns : part(x_columns_, DType::e4m3, I, n), .scale = forward + index};
    result.dout = {.rows = part(is_dresidual ? dresidual_rows_ : 0, DType::e5m2, n, O),
                   .columns = part(is_dresidual ? dresidual_columns_ : dout_columns_, DType::e5m2, O, n),
                   .scale = gradients + index};
    result.weight = {.rows = part(weight_, DType::e4m3, O, I),
                     .columns = part(weight_, DType::e4m3, I, O),
                     .scale = forward + kNumGemms + index};
    return result;
}

Fp8Layer Fp8Buffers::layer(int64_t layer, int64_t n, const Tensor& scratch) const {
    CHECK(n <= max_tokens_, "fp8 of ", n, " tokens, planned for up to ", max_tokens_);
    CHECK(scratch.bytes() >= scratch_bytes_, "fp8: scratch memory is ", scratch.describe(), ", not ", scratch_bytes_,
          " bytes");
    return {gemm(layer, kQkv, n, scratch), gemm(layer, kAttentionOut, n, scratch), gemm(layer, kGateUp, n, scratch),
            gemm(layer, kDown, n, scratch)};
}

void Fp8Buffers::update_scales(const Device& device) const {
    const int64_t num_forward = num_layers_ * kForwardScales;
    fp8_update_scales(device, {.scales = scales(), .count = num_forward, .format = DType::e4m3});
    fp8_update_scales(
        device, {.scales = scales() + num_forward, .count = num_layers_ * kGradientScales, .format = DType::e5m2});
}

void Fp8Buffers::reset_scales(const Device& device) const {
    set_recent(device, std::vector<float>(static_cast<size_t>(num_scales()), 0));
}

std::vector<Fp8Scale> Fp8Buffers::read_scales(const Device& device) const {
    std::vector<Fp8Scale> host(static_cast<size_t>(num_scales()));
    device.copy(Tensor::contiguous(host.data(), DType::u8, {scales_.numel()}), scales_);
    return host;
}

std::vector<float> Fp8Buffers::recent(const Device& device) const {
    std::vector<float> result;
    for (const Fp8Scale& scale : read_scales(device)) result.push_back(scale.recent);
    return result;
}

// A scale follows from `recent` alone: as if a step had just ended that saw what was seen before and nothing larger.
void Fp8Buffers::set_recent(const Device& device, const std::vector<float>& recent) const {
    CHECK(static_cast<int64_t>(recent.size()) == num_scales(), recent.size(), " scales of fp8, the model has ",
          num_scales());
    std::vector<Fp8Scale> host(recent.size());
    for (size_t i = 0; i < host.size(); ++i) {
        host[i].largest = recent[i];
        const bool is_gradient = static_cast<int64_t>(i) >= num_layers_ * kForwardScales;
        fp8_update_scale(host[i], fp8_largest(is_gradient ? DType::e5m2 : DType::e4m3));
    }
    device.copy(scales_, Tensor::contiguous(host.data(), DType::u8, {scales_.numel()}));
}

}  // namespace ingot
