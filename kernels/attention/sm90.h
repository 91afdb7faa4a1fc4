// Attention forward on Hopper (sm_90a: wgmma, TMA); called by attention_forward() once shapes are checked.
//
// bf16 and fp16; head sizes 64 and 128; otherwise as sm80.h says. Backward is sm80's.
#pragma once

#include "kernels/attention/attention.h"

namespace ingot {

constexpr int64_t kSm90HeadSizes[] = {64, 128};

// Compute capability 9.0, which the code for sm_90a runs on, and no later one.
bool is_hopper(const Device&);

void attention_forward_sm90_cuda(const Device&, const AttentionForward&);

}  // namespace ingot
