#include "kernels/attention/left_out.h"

namespace ingot {

namespace {

// `query` has a head for each query head, the others one for each key/value head.
void check(const Device& device, const char* query_name, const Tensor& query, const char* name, const Tensor& tensor) {
    CHECK(!device.is_cpu(), "attention is left out on CUDA only, in benchmarks");
    CHECK(query.rank == 3 && tensor.rank == 3, "attention left out: ", query_name, " is ", query.describe(), ", ", name,
          " is ", tensor.describe(), ", they must be (N, heads, HS)");
    const int64_t N = query.shape[0], NKV = tensor.shape[1];
    CHECK(NKV >= 1 && query.shape[1] % NKV == 0, "attention left out: ", query.shape[1],
          " query heads are not a multiple of ", NKV, " key/value heads");
    for (const auto& [each_name, each] : {std::pair{query_name, &query}, {name, &tensor}}) {
        check_tensor("attention left out", each_name, *each, {N, each->shape[1], query.shape[2]}, query.dtype,
                     device.kind());
        CHECK(each->stride[2] == 1, "attention left out: ", each_name, " is ", each->describe(),
              ", its last axis must be contiguous");
    }
}

}  // namespace

void attention_left_out_forward(const Device& device, const AttentionLeftOutForward& a) {
    check(device, "out", a.out, "v", a.v);
    INGOT_DISPATCH(device, , attention_left_out_forward_cuda(device, a));
}

void attention_left_out_backward(const Device& device, const AttentionLeftOutBackward& a) {
    check(device, "dout", a.dout, "dv", a.dv);
    check(device, "dq", a.dq, "dk", a.dk);
    check_tensor("attention left out", "dq", a.dq, {a.dout.shape[0], a.dout.shape[1], a.dout.shape[2]}, a.dout.dtype,
                 device.kind());
    check_tensor("attention left out", "dk", a.dk, {a.dv.shape[0], a.dv.shape[1], a.dv.shape[2]}, a.dout.dtype,
                 device.kind());
    INGOT_DISPATCH(device, , attention_left_out_backward_cuda(device, a));
}

}  // namespace ingot
