// Fused attention with grouped queries, ALiBi and packed documents, forward and backward.
//
//   s[h][i][j] = scale * q[i][h] . k[j][h / G] - slope[h] * |i - j|      for the keys j that query i sees
//   out[i][h]  = sum over j of softmax(s[h][i])[j] * v[j][h / G]
//
// The micro-batch is one packed row of N tokens: there is no batch dimension, each sequence start is one more document
// boundary. Which keys a query sees is an interval, and the same from the key's side; causal, full, documents and
// sliding windows are only different ways to fill the four arrays. No T x T buffer exists anywhere.
//
// The CPU runs every even head size up to 256 in fp32 and fp64, CUDA runs 32, 64, 96 and 128: fp32 on SIMT kernels,
// bf16 and fp16 on tensor cores (sm80.h, and sm90.h on Hopper: probabilities and their gradients
// are rounded for the GEMMs that sum them, accumulators are fp32, rounded once at the store). Shapes and mask fix the
// order of all sums: the same bits every time, unless options free the order of dq's. The CPU refuses a mask that
// leaves the row or decreases; on CUDA no host sees it, and the result is then undefined. Keys that a query does not
// see have no part in its result as long as they are finite: NaN and infinity may spread within a tile.
//
// Flash attention (Dao et al. 2022; Dao 2023), GQA (Ainslie et al. 2023), ALiBi (Press et al. 2022).
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kernels/core/device.h"

namespace ingot {

// All arrays are (N) int32, contiguous and non-decreasing. Query i sees keys [first_key[i], end_key[i]); key j is seen
// by queries [first_query[j], end_query[j]). Both sides describe the same set of pairs.
struct AttentionMask {
    Tensor first_key, end_key, first_query, end_query;
};

// The kernel to run, and how.
enum class AttentionRequest : uint8_t { automatic, simt, sm80, sm90 };
struct AttentionOptions {
    AttentionRequest request = AttentionRequest::automatic;  // the others: on CUDA that kernel or an error
    bool is_deterministic = true;  // false: backward may add to dq in any order, if that is faster
};

// q, out: (N, NH, HS); k, v: (N, NKV, HS): strided views with a contiguous last axis, e.g. slices of a fused QKV
// buffer; elements of inputs may share memory (keys expanded over tokens or heads). lse: (NH, N) fp32 (fp64 for
// fp64 q): the natural logarithm of the sum of e^s, bias included; -inf if a query sees no key (its output is 0 then).
// slopes: (NH) fp32 (fp64), finite, of either sign, or none. Outputs may not overlap inputs, nor themselves. sm80 and
// sm90 take strides of tokens and heads that are multiples of 8 elements, and data that begins at a multiple of 16
// bytes.
struct AttentionForward {
    Tensor out, lse;
    Tensor q, k, v, slopes;
    AttentionMask mask;
    double scale;  // 1 / sqrt(HS) in a transformer
    AttentionOptions options = {};
};
void attention_forward(const Device&, const AttentionForward&);

// dq, dk, dv are overwritten. dk and dv sum over the query heads of a group in a fixed order.
struct AttentionBackward {
    Tensor dq, dk, dv;
    Tensor dout, out, lse, q, k, v, slopes;
    AttentionMask mask;
    double scale;
    Tensor workspace = {};  // uint8, at least attention_backward_workspace(); may be empty on the CPU
    AttentionOptions options = {};
};
void attention_backward(const Device&, const AttentionBackward&);
// Returns the bytes of the scratch memory, which depend on the kernel and on the shape and type of q, and are known
// without a GPU. The SIMT kernel takes four bytes for each query and head, sm80 and sm90 as many times four as a head
// has elements, and a little more.
size_t attention_backward_workspace(const Device&, const Tensor& q, const AttentionOptions& options = {});

// Returns which kernel the two functions above take, and why, for the log. (Views with a stride of 0, such as a head
// that PyTorch expands to many, take sm80 where it says sm90 and none is asked for.) If none does, throws Error that
// says what would run.
enum class AttentionKernel : uint8_t { cpu, simt, sm80, sm90 };
struct AttentionChoice {
    AttentionKernel kernel;
    std::string reason;
};
AttentionChoice choose_attention(const Device&, DType dtype, int64_t head_size, const AttentionOptions& options = {});
const char* name_of(AttentionKernel kernel);

// The slopes of the paper, section 3, also for a head count that is not a power of two (appendix A.3): with n2 the
// largest power of two <= NH, head h gets 2^(-8 (h + 1) / n2), and beyond n2 the odd powers of 2^(-4 / n2).
std::vector<double> alibi_slopes(int64_t num_heads);

// Fills the four arrays (host tensors) for documents that start at `document_starts` (ascending, the first is 0),
// causal or full within each document.
void fill_document_mask(const AttentionMask& mask, const std::vector<int64_t>& document_starts, bool is_causal);

}  // namespace ingot
