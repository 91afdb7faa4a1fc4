// The plain CUDA attention: fp32 arithmetic without tensor cores, on any GPU; called by the functions of attention.h
// once shapes are checked. It is what faster kernels are compared with where the CPU would take too long.
//
// fp32, bf16 and fp16; head sizes 32, 64, 96 and 128; any group, any strides with a contiguous last axis (multiples of
// 16 bytes are faster). No atomics: the same bits every time. No allocation and no look at the device's memory: all of
// it can be captured in a CUDA graph.
#pragma once

#include "kernels/attention/attention.h"

namespace ingot {

constexpr int64_t kPlainHeadSizes[] = {32, 64, 96, 128};

void attention_forward_plain_cuda(const Device&, const AttentionForward&);
void attention_backward_plain_cuda(const Device&, const AttentionBackward&);

}  // namespace ingot
