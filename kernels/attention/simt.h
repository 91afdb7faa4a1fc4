// The SIMT kernels of attention: fp32 arithmetic without tensor cores, on any GPU. The functions of attention.h call
// them once shapes are checked. Tests compare faster kernels with them where the CPU would take too long.
//
// fp32, bf16 and fp16; head sizes 32, 64, 96 and 128; any group, any strides with a contiguous last axis (multiples of
// 16 bytes are faster). No atomics: the same bits every time. The host neither allocates
// nor reads the device's memory, so that all of it can be captured in a CUDA graph.
#pragma once

#include "kernels/attention/attention.h"

namespace ingot {

constexpr int64_t kSimtHeadSizes[] = {32, 64, 96, 128};

void attention_forward_simt_cuda(const Device&, const AttentionForward&);
void attention_backward_simt_cuda(const Device&, const AttentionBackward&);

}  // namespace ingot
