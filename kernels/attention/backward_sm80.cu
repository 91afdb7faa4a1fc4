// Launches of the backward kernels: backward_sm80.cuh.
#include "kernels/attention/backward_sm80.cuh"

#include <algorithm>

#include "kernels/attention/launch.cuh"
#include "kernels/attention/sm80.h"

namespace ingot {

namespace {

using namespace sm80;

// How many key/value heads go together. Few: what they stream through stays in the L2 cache. Enough to keep all
// multiprocessors busy some times over, as key tiles of one document and head wait for each other. And a divisor of the
// heads: a last section that is short has short blocks at its end, but too few.
template <typename Shape>
int heads_per_section(const CudaContext& context, const BackwardArgs& args) {
    constexpr int kRounds = 3;
    const int64_t blocks_at_once = int64_t{context.properties.multiProcessorCount} * Shape::kBlocks;
    const int64_t key_tiles = (args.N + Shape::kKeys - 1) / Shape::kKeys;
    const int kv_heads = args.NH / args.G;
    for (int heads = 1; heads < kv_heads; ++heads)
        if (kv_heads % heads == 0 && heads * key_tiles >= kRounds * blocks_at_once) return heads;
    return kv_heads;
}

template <DType kType, int HS, bool kHasAlibi>
void launch(const CudaContext& context, BackwardArgs args) {
    using Shape = BackwardShape<HS>;
    args.heads_per_section = heads_per_section<Shape>(context, args);
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
    const int64_t N = a.q.shape[0], NH = a.q.shape[1], HS = a.q.shape[2];
    if (N == 0 || NH == 0) return;
    const CudaContext& context = device.context();
    const AttentionWorkspaceSm80 workspace(N, NH, HS);
    char* const memory = static_cast<char*>(a.workspace.data);
    auto* const statistics = reinterpret_cast<float*>(memory + workspace.stats);
    const BackwardArgs args = {
        .dq = view_of(a.dq),
        .dk = view_of(a.dk),
        .dv = view_of(a.dv),
        .dout = view_of(a.dout),
        .out = view_of(a.out),
        .q = view_of(a.q),
        .k = view_of(a.k),
        .v = view_of(a.v),
        .lse = a.lse.get<float>(),
        .slopes = slopes_of(a.slopes),
        .dq_sums = reinterpret_cast<float*>(memory + workspace.dq),
        .lse_log2 = statistics,
        .delta = statistics + NH * workspace.padded_tokens,
        .turns = reinterpret_cast<int*>(memory + workspace.turns),
        .counter = reinterpret_cast<int*>(memory + workspace.counter),
        .order = reinterpret_cast<int*>(memory + workspace.order),
        .ranks = reinterpret_cast<int*>(memory + workspace.ranks),
        .adders = reinterpret_cast<int*>(memory + workspace.adders),
        .first_query = a.mask.first_query.get<int32_t>(),
        .end_query = a.mask.end_query.get<int32_t>(),
        .N = static_cast<int>(N),
        .padded_N = static_cast<int>(workspace.padded_tokens),
        .num_query_tiles = static_cast<int>(workspace.num_query_tiles),
        .NH = static_cast<int>(NH),
        .G = static_cast<int>(NH / a.k.shape[1]),
        .heads_per_section = 1,  // launch() chooses
        .scale = static_cast<float>(a.scale),
        .scale_log2 = static_cast<float>(a.scale * kLog2E),
        .is_deterministic = a.options.is_deterministic,
    };
    // bf16 and fp16, each head size, with and without ALiBi: 16 kernels.
    with_head_size(HS, [&](auto size) {
        constexpr int kSize = decltype(size)::value;
        const bool is_bf16 = a.q.dtype == DType::bf16, has_alibi = args.slopes != nullptr;
        if (is_bf16 && has_alibi)
            launch<DType::bf16, kSize, true>(context, args);
        else if (is_bf16)
            launch<DType::bf16, kSize, false>(context, args);
        else if (has_alibi)
            launch<DType::f16, kSize, true>(context, args);
        else
            launch<DType::f16, kSize, false>(context, args);
    });
}

}  // namespace ingot
