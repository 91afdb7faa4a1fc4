// Attention of one new token over the keys and values of its document so far: the step of text generation.
//
//   s[h][j] = scale * q[h] . k[j][h / G] - slope[h] * (S - 1 - j)      for the S tokens j of the document
//   out[h]  = sum over j of softmax(s[h])[j] * v[j][h / G]
//
// The query belongs to the last of the S tokens, whose own key and value stand in the cache already. The result is the
// last row of attention_forward (attention.h) over a causal document of S tokens; sums run in another order, so that
// the two agree but for rounding. The work is O(S) where a whole forward pass would be O(S^2).
//
// Contract as in attention.h: strided views with a contiguous last axis; softmax in fp32 (fp64 for fp64 q). Every even
// head size up to 256, on CUDA too (fp32, bf16 and fp16 there). Sums run in a fixed order: the same bits every time.
#pragma once

#include "kernels/core/device.h"

namespace ingot {

// q, out: (NH, HS); k, v: (S, NKV, HS), S >= 1; slopes: (NH) fp32 (fp64), or none. out may not overlap the others.
struct AttentionDecode {
    Tensor out;
    Tensor q, k, v;
    Tensor slopes = {};
    double scale;
};
void attention_decode(const Device&, const AttentionDecode&);

// Copies keys and values of n tokens into the rows of the cache that are theirs. All (n, NKV, HS), strided as above.
struct KvCacheAppend {
    Tensor cache_k, cache_v;
    Tensor k, v;
};
void kv_cache_append(const Device&, const KvCacheAppend&);

// The CUDA twins, called by the functions above once shapes are checked.
void attention_decode_cuda(const Device&, const AttentionDecode&);
void kv_cache_append_cuda(const Device&, const KvCacheAppend&);

}  // namespace ingot
