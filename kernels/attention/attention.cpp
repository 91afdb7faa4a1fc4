// Checks, the choice of kernel, and what all kernels share.
#include "kernels/attention/attention.h"

#include <cmath>

#include "kernels/attention/attention_cpu.h"

namespace ingot {

namespace {

constexpr int64_t kMaxHeadSize = 256;

void check_heads(const Device& device, const char* name, const Tensor& tensor, int64_t N, int64_t heads,
                 const Tensor& q) {
    check_tensor("attention", name, tensor, {N, heads, q.shape[2]}, q.dtype, device.kind());
    CHECK(tensor.stride[2] == 1, "attention: ", name, " is ", tensor.describe(), ", its last axis must be contiguous");
}

void check(const Device& device, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& lse,
           const Tensor& slopes, const AttentionMask& mask) {
    CHECK(q.rank == 3 && k.rank == 3, "attention: q is ", q.describe(), ", k is ", k.describe(),
          ", they must be (N, heads, HS)");
    const int64_t N = q.shape[0], NH = q.shape[1], NKV = k.shape[1], HS = q.shape[2];
    CHECK(NKV >= 1 && NH % NKV == 0, "attention: ", NH, " query heads are not a multiple of ", NKV, " key/value heads");
    CHECK(HS >= 2 && HS % 2 == 0 && HS <= kMaxHeadSize, "attention: head size ", HS,
          " is not supported on the CPU: use ", "an even one up to ", kMaxHeadSize);
    check_heads(device, "q", q, N, NH, q);
    check_heads(device, "k", k, N, NKV, q);
    check_heads(device, "v", v, N, NKV, q);
    const DType stats = accumulation_dtype(q.dtype);
    check_tensor("attention", "lse", lse, {NH, N}, stats, device.kind());
    CHECK(lse.is_contiguous(), "attention: lse is ", lse.describe(), ", it must be contiguous");
    if (slopes) check_tensor("attention", "slopes", slopes, {NH}, stats, device.kind());
    for (const Tensor* tensor : {&mask.first_key, &mask.end_key, &mask.first_query, &mask.end_query})
        check_tensor("attention", "mask", *tensor, {N}, DType::i32, device.kind());
    CHECK(device.is_cpu(), "attention runs on the CPU device only: use Device::cpu()");
}

}  // namespace

void attention_forward(const Device& device, const AttentionForward& a) {
    check(device, a.q, a.k, a.v, a.lse, a.slopes, a.mask);
    check_heads(device, "out", a.out, a.q.shape[0], a.q.shape[1], a.q);
    attention_forward_cpu(a);
}

void attention_backward(const Device& device, const AttentionBackward& a) {
    check(device, a.q, a.k, a.v, a.lse, a.slopes, a.mask);
    const int64_t N = a.q.shape[0], NH = a.q.shape[1], NKV = a.k.shape[1];
    check_heads(device, "out", a.out, N, NH, a.q);
    check_heads(device, "dout", a.dout, N, NH, a.q);
    check_heads(device, "dq", a.dq, N, NH, a.q);
    check_heads(device, "dk", a.dk, N, NKV, a.q);
    check_heads(device, "dv", a.dv, N, NKV, a.q);
    attention_backward_cpu(a);
}

std::vector<double> alibi_slopes(int64_t num_heads) {
    CHECK(num_heads >= 1, "alibi_slopes of ", num_heads, " heads");
    int64_t n2 = 1;
    while (2 * n2 <= num_heads) n2 *= 2;
    std::vector<double> slopes(static_cast<size_t>(num_heads));
    for (int64_t h = 0; h < num_heads; ++h) {
        const double exponent = h < n2 ? -8.0 * static_cast<double>(h + 1) / static_cast<double>(n2)
                                       : -4.0 * static_cast<double>(2 * (h - n2) + 1) / static_cast<double>(n2);
        slopes[static_cast<size_t>(h)] = std::exp2(exponent);
    }
    return slopes;
}

void fill_document_mask(const AttentionMask& mask, const std::vector<int64_t>& document_starts, bool is_causal) {
    const int64_t N = mask.first_key.numel();
    CHECK(!document_starts.empty() && document_starts[0] == 0, "the first document starts at 0");
    int32_t *const first_key = mask.first_key.get<int32_t>(), *const end_key = mask.end_key.get<int32_t>();
    int32_t *const first_query = mask.first_query.get<int32_t>(), *const end_query = mask.end_query.get<int32_t>();
    for (size_t document = 0; document < document_starts.size(); ++document) {
        const int64_t begin = document_starts[document];
        const int64_t end = document + 1 < document_starts.size() ? document_starts[document + 1] : N;
        CHECK(begin <= end && end <= N, "document ", document, " spans [", begin, ", ", end, ") of ", N, " tokens");
        for (int64_t i = begin; i < end; ++i) {
            first_key[i] = static_cast<int32_t>(begin);
            end_key[i] = static_cast<int32_t>(is_causal ? i + 1 : end);
            first_query[i] = static_cast<int32_t>(is_causal ? i : begin);
            end_query[i] = static_cast<int32_t>(end);
        }
    }
}

}  // namespace ingot
