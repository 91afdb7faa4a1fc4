#include "kernels/attention/left_out.h"

namespace ingot {

namespace {

constexpr const char* kOp = "attention left out";

// `query` has a head for each query head, `tensor` one for each key/value head.
void check_heads(const Device& device, const char* query_name, const Tensor& query, const char* name,
                 const Tensor& tensor) {
    CHECK(!device.is_cpu(), "attention is left out on CUDA only, in benchmarks");
    CHECK(query.rank == 3 && tensor.rank == 3, kOp, ": ", query_name, " is ", query.describe(), ", ", name, " is ",
          tensor.describe(), ", they must be (N, heads, HS)");
    CHECK(tensor.shape[1] >= 1 && query.shape[1] % tensor.shape[1] == 0, kOp, ": ", query.shape[1],
          " query heads are not a multiple of ", tensor.shape[1], " key/value heads");
}

}  // namespace

void attention_left_out_forward(const Device& device, const AttentionLeftOutForward& a) {
    check_heads(device, "out", a.out, "v", a.v);
    const int64_t N = a.out.shape[0], NH = a.out.shape[1], NKV = a.v.shape[1], HS = a.out.shape[2];
    check_output_view(kOp, "out", a.out, {N, NH, HS}, a.out.dtype, device.kind());
    check_view(kOp, "v", a.v, {N, NKV, HS}, a.out.dtype, device.kind());
    attention_left_out_forward_cuda(device, a);
}

void attention_left_out_backward(const Device& device, const AttentionLeftOutBackward& a) {
    check_heads(device, "dout", a.dout, "dv", a.dv);
    const int64_t N = a.dout.shape[0], NH = a.dout.shape[1], NKV = a.dv.shape[1], HS = a.dout.shape[2];
    check_view(kOp, "dout", a.dout, {N, NH, HS}, a.dout.dtype, device.kind());
    check_output_view(kOp, "dq", a.dq, {N, NH, HS}, a.dout.dtype, device.kind());
    check_output_view(kOp, "dk", a.dk, {N, NKV, HS}, a.dout.dtype, device.kind());
    check_output_view(kOp, "dv", a.dv, {N, NKV, HS}, a.dout.dtype, device.kind());
    attention_left_out_backward_cuda(device, a);
}

}  // namespace ingot
