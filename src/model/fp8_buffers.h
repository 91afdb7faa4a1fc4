// What a model that trains in fp8 has beside its other memory: the operands of its layers' GEMMs in fp8, and their
// scales (kernels/core/fp8.h).
//
// Scratch memory holds what lives for one GEMM or two: rows of inputs, gradients of outputs, the weight that is
// multiplied next. It lies where the head's logits are, which exist only between forward and backward. The columns of
// the inputs, which the gradients of the weights are made of, wait for backward in memory of their own, half of what
// the inputs take in bf16; with recomputation they are written again instead.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/device.h"
#include "kernels/core/fp8.h"
#include "src/config/config.h"

namespace ingot {

// The operands of one linear layer for n tokens, I inputs and O outputs.
struct Fp8Linear {
    Fp8Operand x;          // for forward: rows (n, I), and columns (I, n) if they are kept
    Fp8Operand x_columns;  // for backward: columns alone, the kept ones or scratch memory that is to be written again
    Fp8Operand dout;       // (n, O)
    Fp8Operand weight;     // (O, I); rows and columns share their memory
    explicit operator bool() const { return static_cast<bool>(x); }
};

struct Fp8Layer {
    Fp8Linear qkv, attention_out, gate_up, down;
    explicit operator bool() const { return static_cast<bool>(qkv); }
};

class Fp8Buffers {
  public:
    // Plans all but the scratch memory. The sizes in `config` and max_tokens are multiples of 16.
    Fp8Buffers(const ModelConfig& config, int64_t max_tokens, Recompute recompute, MemoryPlan* plan);
    Fp8Buffers(const Fp8Buffers&) = delete;  // the plan knows where the tensors are
    Fp8Buffers& operator=(const Fp8Buffers&) = delete;

    int64_t scratch_bytes() const { return scratch_bytes_; }
    bool keeps_columns() const { return keeps_columns_; }
    // scratch: at least scratch_bytes(), at a multiple of 256 bytes.
    Fp8Layer layer(int64_t layer, int64_t n, const Tensor& scratch) const;

    // Sets all scales to 1, with nothing seen yet.
    void reset_scales(const Device& device) const;
    // Ends a step: see kernels/fp8.h.
    void update_scales(const Device& device) const;
    // Copy Fp8Scale::recent of all scales, in a fixed order: all that outlives a step. The host waits.
    std::vector<float> recent(const Device& device) const;
    void set_recent(const Device& device, const std::vector<float>& recent) const;
    int64_t num_scales() const { return num_layers_ * (kForwardScales + kGradientScales); }

  private:
    static constexpr int64_t kNumGemms = 4, kForwardScales = 2 * kNumGemms, kGradientScales = kNumGemms;
    struct Shape {
        int64_t inputs, outputs;
    };
    Fp8Linear gemm(int64_t layer, int64_t index, int64_t n, const Tensor& scratch) const;
    Fp8Scale* scales() const { return static_cast<Fp8Scale*>(scales_.data); }
    std::vector<Fp8Scale> read_scales(const Device& device) const;

    int64_t num_layers_, max_tokens_;
    bool keeps_columns_;
    Shape shapes_[kNumGemms];
    int64_t dresidual_rows_, dresidual_columns_, dout_columns_, x_columns_, weight_, scratch_bytes_;  // offsets
    Tensor scales_;  // forward: inputs, then weights, of each layer; then the gradients of outputs of each layer
    std::vector<Tensor> columns_;  // kNumGemms of each layer
};

}  // namespace ingot
