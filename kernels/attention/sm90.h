// Attention on Hopper (sm_90a: wgmma, TMA). The functions of attention.h call it once shapes are checked.
//
// bf16 and fp16; head sizes 64 and 128; otherwise as sm80.h says, scratch memory included.
#pragma once

#include <optional>
#include <string>

#include "kernels/attention/attention.h"

namespace ingot {

constexpr int64_t kSm90HeadSizes[] = {64, 128};

// Compute capability 9.0, which the code for sm_90a runs on, and no later one.
bool is_hopper(const Device&);

// choose_attention() on CUDA, told of the GPU instead of asking it. is_hopper: nothing in a plan for no GPU in
// particular.
AttentionChoice choose_attention_cuda(const std::string& gpu, std::optional<bool> is_hopper, DType dtype,
                                      int64_t head_size, const AttentionOptions& options);

void attention_forward_sm90_cuda(const Device&, const AttentionForward&);
void attention_backward_sm90_cuda(const Device&, const AttentionBackward&);

}  // namespace ingot
