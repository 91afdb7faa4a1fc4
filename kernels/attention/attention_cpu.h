// The CPU twins of attention.h; shapes are checked before they are called.
#pragma once

#include "kernels/attention/attention.h"

namespace ingot {

void attention_forward_cpu(const AttentionForward&);
void attention_backward_cpu(const AttentionBackward&);

}  // namespace ingot
