// Launches of the forward kernel: forward_sm80.cuh.
#include "kernels/attention/forward_sm80.cuh"

#include "kernels/attention/launch.cuh"
#include "kernels/attention/sm80.h"

namespace ingot {

namespace {

using namespace sm80;

template <DType kType, int HS, bool kHasAlibi>
void launch(const CudaContext& context, const ForwardArgs& args, int64_t NH) {
    static SharedMemoryLimit limit;
    const auto kernel = forward_kernel<kType, HS, kHasAlibi>;
    constexpr size_t kBytes = sizeof(ForwardShared<HS>);
    static_assert(kBytes <= kMostSharedBytes);
    limit.raise(context, kernel, kBytes);
    constexpr int kQueries = ForwardShape<HS>::kQueries;
    const dim3 grid(static_cast<unsigned>((args.N + kQueries - 1) / kQueries), static_cast<unsigned>(NH));
    kernel<<<grid, ForwardShape<HS>::kThreads, kBytes, context.stream>>>(args);
    CUDA_CHECK_LAUNCH("attention_forward (sm80)");
}

}  // namespace

void attention_forward_sm80_cuda(const Device& device, const AttentionForward& a) {
    check_size(a.q);
    const int64_t N = a.q.shape[0], NH = a.q.shape[1], HS = a.q.shape[2];
    if (N == 0 || NH == 0) return;
    const ForwardArgs args = {
        .out = view_of(a.out),
        .q = view_of(a.q),
        .k = view_of(a.k),
        .v = view_of(a.v),
        .lse = a.lse.get<float>(),
        .slopes = slopes_of(a.slopes),
        .first_key = a.mask.first_key.get<int32_t>(),
        .end_key = a.mask.end_key.get<int32_t>(),
        .N = static_cast<int>(N),
        .G = static_cast<int>(NH / a.k.shape[1]),
        .scale = static_cast<float>(a.scale),
        .scale_log2 = static_cast<float>(a.scale * kLog2E),
    };
    // bf16 and fp16, each head size, with and without ALiBi: 16 kernels.
    with_head_size(HS, [&](auto size) {
        with_type_and_alibi(a.q.dtype, args.slopes != nullptr, [&](auto type, auto has_alibi) {
            launch<decltype(type)::value, decltype(size)::value, decltype(has_alibi)::value>(device.context(), args,
                                                                                             NH);
        });
    });
}

}  // namespace ingot
