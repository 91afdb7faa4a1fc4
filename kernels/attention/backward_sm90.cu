// Launches of Hopper's backward kernels: backward_sm90.cuh.
#include "kernels/attention/backward_sm90.cuh"

#include <algorithm>

#include "kernels/attention/launch_sm90.cuh"
#include "kernels/attention/sm80.h"
#include "kernels/attention/sm90.h"

namespace ingot {

namespace {

using namespace sm90;

template <DType kType, int HS, bool kHasAlibi>
void launch(const CudaContext& context, const BackwardArgs& args) {
    using Shape = BackwardShape<HS>;
    static SharedMemoryLimit limit;
    const auto kernel = backward_kernel<kType, HS, kHasAlibi>;
    constexpr size_t kBytes = sizeof(BackwardShared<HS>);
    static_assert(kBytes <= kMostSharedBytesSm90 && AttentionWorkspaceSm80::kPaddedRows % Shape::kQueries == 0);
    limit.raise(context, kernel, kBytes);
    const sm80::BackwardArgs& a = args.common;
    const auto blocks = [&](int rows) { return dim3(static_cast<unsigned>(a.padded_N / rows), a.NH); };
    prepare_kernel<kType, HS><<<blocks(Shape::kQueries), kPrepareThreads, 0, context.stream>>>(a);
    CUDA_CHECK_LAUNCH("attention_backward (prepare, sm90)");
    const int grid = std::min(args.total_tiles, context.properties.multiProcessorCount);
    kernel<<<static_cast<unsigned>(grid), Shape::kThreads, kBytes, context.stream>>>(args);
    CUDA_CHECK_LAUNCH("attention_backward (sm90)");
    finish_kernel<kType, HS><<<blocks(sm80::kFinishRows), 32 * kFinishWarps,
                               static_cast<size_t>(sm80::kFinishRows * HS * 2), context.stream>>>(a);
    CUDA_CHECK_LAUNCH("attention_backward (finish, sm90)");
}

// How many key/value heads go together: as for sm80, with one block to a multiprocessor.
int heads_per_section(const CudaContext& context, const sm80::BackwardArgs& args) {
    constexpr int kRounds = 3;
    const int key_tiles = (args.N + 127) / 128, kv_heads = args.NH / args.G;
    for (int heads = 1; heads < kv_heads; ++heads)
        if (kv_heads % heads == 0 &&
            int64_t{heads} * key_tiles >= int64_t{kRounds} * context.properties.multiProcessorCount)
            return heads;
    return kv_heads;
}

template <int HS>
void launch_size(const CudaContext& context, const AttentionBackward& a) {
    using Shape = BackwardShape<HS>;
    const int64_t N = a.q.shape[0], NH = a.q.shape[1], NKV = a.k.shape[1];
    const int64_t key_tiles = (N + Shape::kKeys - 1) / Shape::kKeys;
    CHECK(key_tiles * NKV < int64_t{1} << 30, "attention on CUDA: q is ", a.q.describe(), ", too large");
    const AttentionWorkspaceSm80 workspace(N, NH, HS);
    char* const memory = static_cast<char*>(a.workspace.data);
    auto* const statistics = reinterpret_cast<float*>(memory + workspace.stats);
    BackwardArgs args = {
        .q = tensor_map("q", a.q, Shape::kQueries),
        .k = tensor_map("k", a.k, Shape::kKeys),
        .v = tensor_map("v", a.v, Shape::kKeys),
        .dout = tensor_map("dout", a.dout, Shape::kQueries),
        .dk = tensor_map("dk", a.dk, Shape::kGroupKeys),
        .dv = tensor_map("dv", a.dv, Shape::kGroupKeys),
        .common =
            {
                .dq = sm80::view_of(a.dq),
                .dk = {},
                .dv = {},
                .dout = sm80::view_of(a.dout),
                .out = sm80::view_of(a.out),
                .q = {},
                .k = {},
                .v = {},
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
                .G = static_cast<int>(NH / NKV),
                .heads_per_section = 1,
                .scale = static_cast<float>(a.scale),
                .scale_log2 = static_cast<float>(a.scale * kLog2E),
                .is_deterministic = a.options.is_deterministic,
            },
        .total_tiles = static_cast<int>(key_tiles * NKV),
    };
    args.common.heads_per_section = heads_per_section(context, args.common);
    const bool is_bf16 = a.q.dtype == DType::bf16, has_alibi = args.common.slopes != nullptr;
    if (is_bf16 && has_alibi)
        launch<DType::bf16, HS, true>(context, args);
    else if (is_bf16)
        launch<DType::bf16, HS, false>(context, args);
    else if (has_alibi)
        launch<DType::f16, HS, true>(context, args);
    else
        launch<DType::f16, HS, false>(context, args);
}

}  // namespace

// bf16 and fp16, both head sizes, with and without ALiBi: 8 kernels, and 4 each of what comes before and after.
void attention_backward_sm90_cuda(const Device& device, const AttentionBackward& a) {
    check_size(a.q);
    if (a.q.shape[0] == 0 || a.q.shape[1] == 0) return;
    if (a.q.shape[2] == 64)
        launch_size<64>(device.context(), a);
    else
        launch_size<128>(device.context(), a);
}

}  // namespace ingot
