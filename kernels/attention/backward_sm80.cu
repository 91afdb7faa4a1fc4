// Launches of the backward kernels: backward_sm80.cuh.
#include "kernels/attention/backward_sm80.cuh"

#include "kernels/attention/launch.cuh"
#include "kernels/attention/sm80.h"

namespace ingot {

namespace {

using namespace sm80;

template <DType kType, int HS, bool kHasAlibi>
void launch(const CudaContext& context, const BackwardArgs& args) {
    using Shape = BackwardShape<HS>;
    static SharedMemoryLimit limit;
    const auto kernel = backward_kernel<kType, HS, kHasAlibi>;
    constexpr size_t kBytes = sizeof(BackwardShared<HS>);
    static_assert(kBytes <= kMostSharedBytes && AttentionWorkspaceSm80::kRows == Shape::kQueries);
    limit.raise(context, kernel, kBytes);
    const auto blocks = [&](int tokens, int tile) { return static_cast<unsigned>((tokens + tile - 1) / tile); };
    const auto heads = static_cast<unsigned>(args.NH);
    prepare_kernel<kType, HS>
        <<<dim3(blocks(args.padded_N, Shape::kQueries), heads), kPrepareThreads, 0, context.stream>>>(args);
    CUDA_CHECK_LAUNCH("attention_backward (prepare, sm80)");
    kernel<<<blocks(args.N, Shape::kKeys) * (heads / static_cast<unsigned>(args.G)), Shape::kThreads, kBytes,
             context.stream>>>(args);
    CUDA_CHECK_LAUNCH("attention_backward (sm80)");
    constexpr int kRows = 16 * kFinishWarps;
    finish_kernel<kType, HS><<<dim3(blocks(args.padded_N, kRows), heads), 32 * kFinishWarps,
                               static_cast<size_t>(kRows * HS * 2), context.stream>>>(args);
    CUDA_CHECK_LAUNCH("attention_backward (finish, sm80)");
}

}  // namespace

void attention_backward_sm80_cuda(const Device& device, const AttentionBackward& a) {
    check_size(a.q);
    if (a.q.shape[0] == 0 || a.q.shape[1] == 0) return;
    const CudaContext& context = device.context();
    // bf16 and fp16, each head size, with and without ALiBi: 16 kernels.
    with_head_size(a.q.shape[2], [&](auto size) {
        constexpr int kSize = decltype(size)::value;
        using Shape = BackwardShape<kSize>;
        const int64_t blocks_at_once = int64_t{context.properties.multiProcessorCount} * Shape::kBlocks;
        const BackwardArgs args = backward_args(a, Shape::kKeys, blocks_at_once);
        with_type_and_alibi(a.q.dtype, args.slopes != nullptr, [&](auto type, auto has_alibi) {
            launch<decltype(type)::value, kSize, decltype(has_alibi)::value>(context, args);
        });
    });
}

}  // namespace ingot
