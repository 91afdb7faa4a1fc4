// Attention on tensor cores (mma.sync), for every GPU since sm_80. The functions of attention.h call it once shapes are
// checked.
//
// bf16 and fp16; head sizes 32, 64, 96 and 128; any group; views whose strides are multiples of 8 elements and whose
// data is aligned to 16 bytes; scale > 0. Probabilities and their gradients are rounded to the 16-bit type before the
// GEMMs that sum them, as in every fused attention; all accumulators are fp32. The host neither allocates nor reads the
// device's memory, so that all of it can be captured in a CUDA graph.
//
// Head size 256 is left out: the accumulators of dK and dV alone would take 256 of a lane's 255 registers with 16 keys
// to a warp, the fewest that mma has; and 128 keys, two tiles of 64 queries and one of dout 160 KB of shared memory.
// Halves of the head would compute S and dP twice: seven GEMMs of 256 instead of five.
//
// A mask whose arrays decrease may leave blocks of the backward pass waiting for each other: they give up after some
// seconds, and the launch fails.
#pragma once

#include "kernels/attention/attention.h"

namespace ingot {

// The backward pass's scratch memory, one part after the other.
struct AttentionWorkspaceSm80 {
    AttentionWorkspaceSm80(int64_t N, int64_t NH, int64_t HS);
    static constexpr int64_t kRows = 64;         // of a tile of queries; sm90 has tiles of 128 too
    static constexpr int64_t kPaddedRows = 128;  // tokens are rounded up to a multiple of these
    int64_t padded_tokens, num_query_tiles;
    size_t dq;       // fp32, 16 x 8 fragments: padded_tokens HS of each head
    size_t stats;    // fp32: (NH, padded_tokens) lse in log 2, and as many rowsum(dout * out)
    size_t adders;   // int32 (num_query_tiles, 4): which tiles of keys add to a tile of dq
    size_t turns;    // int32 (NH, num_query_tiles): how many of these tiles have added
    size_t order;    // int32: the tile of keys of each rank (policy.h); as many as tiles of queries, or fewer
    size_t ranks;    // int32: the rank of each tile of keys
    size_t counter;  // int32: tickets that were taken
    size_t bytes;    // of all parts
};

void attention_forward_sm80_cuda(const Device&, const AttentionForward&);
void attention_backward_sm80_cuda(const Device&, const AttentionBackward&);

}  // namespace ingot
