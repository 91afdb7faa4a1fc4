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
    const tiles::BackwardArgs& a = args.common;
    const auto blocks = [&](int rows) { return dim3(static_cast<unsigned>(a.padded_N / rows), a.NH); };
    prepare_kernel<kType, HS><<<blocks(Shape::kQueries), kPrepareThreads, 0, context.stream>>>(a);
    CUDA_CHECK_LAUNCH("attention_backward (prepare, sm90)");
    const int grid = std::min(args.total_tiles, context.properties.multiProcessorCount);
    kernel<<<static_cast<unsigned>(grid), Shape::kThreads, kBytes, context.stream>>>(args);
    CUDA_CHECK_LAUNCH("attention_backward (sm90)");
    finish_kernel<kType, HS><<<blocks(tiles::kFinishRows), 32 * kFinishWarps,
                               static_cast<size_t>(tiles::kFinishRows * HS * 2), context.stream>>>(a);
    CUDA_CHECK_LAUNCH("attention_backward (finish, sm90)");
}

template <int HS>
void launch_size(const CudaContext& context, const AttentionBackward& a) {
    using Shape = BackwardShape<HS>;
    const int64_t total_tiles = (a.q.shape[0] + Shape::kKeys - 1) / Shape::kKeys * a.k.shape[1];
    CHECK(total_tiles < int64_t{1} << 30, "attention on CUDA: q is ", a.q.describe(), ", too large");
    const BackwardArgs args = {
        .q = tensor_map("q", a.q, Shape::kQueries),
        .k = tensor_map("k", a.k, Shape::kKeys),
        .v = tensor_map("v", a.v, Shape::kKeys),
        .dout = tensor_map("dout", a.dout, Shape::kQueries),
        .dk = tensor_map("dk", a.dk, Shape::kGroupKeys),
        .dv = tensor_map("dv", a.dv, Shape::kGroupKeys),
        .common = tiles::backward_args(a, Shape::kKeys, context.properties.multiProcessorCount),
        .total_tiles = static_cast<int>(total_tiles),
        .inverse_scale = static_cast<float>(1 / a.scale),
    };
    with_type_and_alibi(a.q.dtype, args.common.slopes != nullptr, [&](auto type, auto has_alibi) {
        launch<decltype(type)::value, HS, decltype(has_alibi)::value>(context, args);
    });
}

}  // namespace

// bf16 and fp16, both head sizes, with and without ALiBi: 8 kernels, and 4 each before and after the main one.
void attention_backward_sm90_cuda(const Device& device, const AttentionBackward& a) {
    check_size(a.q);
    if (a.q.shape[0] == 0 || a.q.shape[1] == 0) return;
    if (a.q.shape[2] == 64)
        launch_size<64>(device.context(), a);
    else
        launch_size<128>(device.context(), a);
}

}  // namespace ingot
