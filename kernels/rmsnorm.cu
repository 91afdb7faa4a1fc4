// RMSNorm on CUDA. It is bound by memory: a row is read once, stays in registers (packed, as it was read), and is
// written once.
//
// Each kernel has two versions. The fast one moves 16 bytes at a time: it is taken if the width, all strides and all
// pointers are multiples of 16 bytes and the row has at most kMaxVectors vectors (8 K columns in fp32, 16 K in 16-bit
// types). The scalar one takes everything else, any width and alignment; it reads rows twice, mostly from the caches.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/context.h"
#include "kernels/cuda/partial_sums.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vec.cuh"
#include "kernels/rmsnorm.h"

namespace ingot {

namespace {

constexpr int kThreads = 256;  // in a block, unless the whole block shares a row
constexpr int kMaxBlockThreads = 512;
constexpr int kMaxVectors = 4 * kMaxBlockThreads;

// A row is shared by kLanes lanes of a warp, or by a whole block; each thread holds up to kVectors vectors of it, those
// with index lane + i * lanes. So each thread owns fixed columns, and neighbouring threads read neighbouring vectors.
constexpr int kWholeBlock = 0;
template <int kLanes_, int kVectors_>
struct Share {
    static constexpr int kLanes = kLanes_, kVectors = kVectors_;
    static constexpr bool kIsBlock = kLanes == kWholeBlock;
    static constexpr int kMaxThreads = kIsBlock ? kMaxBlockThreads : kThreads;
    static constexpr int kRowsPerBlock = kIsBlock ? 1 : kThreads / (kIsBlock ? 1 : kLanes);
    __device__ static int lane() { return kIsBlock ? threadIdx.x : threadIdx.x % (kIsBlock ? 1 : kLanes); }
    __device__ static int lanes() { return kIsBlock ? blockDim.x : kLanes; }
    __device__ static int threads() { return kIsBlock ? blockDim.x : kThreads; }
    __device__ static int group() { return kIsBlock ? 0 : threadIdx.x / (kIsBlock ? 1 : kLanes); }
    __device__ static float sum(float value, float* scratch) {
        if constexpr (kIsBlock)
            return block_sum(value, scratch);
        else
            return group_sum<kLanes>(value);
    }
};

// So many blocks must fit on a multiprocessor, which caps the registers at 65536 / (threads * blocks) and keeps enough
// loads in flight: forward has at least 24 warps, backward 16 to 24, with 2 to 12 KB each, where shared memory allows
// it.
template <typename S>
constexpr int kForwardBlocks = S::kIsBlock       ? 2
                               : S::kVectors > 4 ? 4
                                                 : 6;
template <typename S>
constexpr int kBackwardBlocks = S::kIsBlock       ? 1
                                : S::kVectors > 2 ? 2
                                                  : 3;
constexpr int kScalarBackwardBlocks = 2;

// Rows of a (N, C) tensor, or of a (N, H, HS) view, one after the other.
template <typename T>
struct Rows {
    T* data;
    uint32_t heads;
    int64_t token_stride, head_stride;
    __device__ T* operator[](uint32_t row) const {
        if (heads == 1) return data + row * token_stride;
        const uint32_t token = row / heads;
        return data + token * token_stride + (row - token * heads) * head_stride;
    }
};

template <typename T>
struct ForwardArgs {
    Rows<T> out;
    Rows<const T> x;
    const T* weight;
    float* rstd;
    uint32_t num_rows;
    int width;
    float eps;
};

template <typename T, typename S>
__global__ void __launch_bounds__(S::kMaxThreads, kForwardBlocks<S>)
    forward_kernel(const __grid_constant__ ForwardArgs<T> a) {
    using V = Vec<T>;
    __shared__ float scratch[kWarpSize];
    const int lane = S::lane(), lanes = S::lanes(), num_vectors = a.width / V::kSize;
    const uint32_t row = blockIdx.x * S::kRowsPerBlock + S::group();
    const int limit = row < a.num_rows ? num_vectors : 0;  // past the last row a thread only joins in the reduction
    const T* const x_row = a.x[row];
    V x[S::kVectors];
#pragma unroll
    for (int i = 0; i < S::kVectors; ++i) {
        const int index = lane + i * lanes;
        x[i] = index < limit ? load_streaming(x_row, index) : V::zero();
    }
    float squares = 0;
#pragma unroll
    for (int i = 0; i < S::kVectors; ++i) {
        float values[V::kSize];
        x[i].unpack(values);
        x[i].stay_packed();
#pragma unroll
        for (int e = 0; e < V::kSize; ++e) squares += values[e] * values[e];
    }
    squares = S::sum(squares, scratch);
    const float rstd = 1.0f / sqrtf(squares / static_cast<float>(a.width) + a.eps);
    if (limit > 0 && lane == 0) a.rstd[row] = rstd;
    T* const out_row = a.out[row];
#pragma unroll
    for (int i = 0; i < S::kVectors; ++i) {
        const int index = lane + i * lanes;
        if (index >= limit) continue;
        float values[V::kSize], weight[V::kSize];
        x[i].unpack(values);
        load_constant(a.weight, index).unpack(weight);
#pragma unroll
        for (int e = 0; e < V::kSize; ++e) values[e] *= rstd * weight[e];
        store(out_row, index, V::pack(values));
    }
}

// Each warp has a row.
template <typename T>
__global__ void __launch_bounds__(kThreads) scalar_forward_kernel(const __grid_constant__ ForwardArgs<T> a) {
    const uint32_t row = blockIdx.x * (kThreads / kWarpSize) + threadIdx.x / kWarpSize;
    if (row >= a.num_rows) return;
    const int lane = threadIdx.x % kWarpSize;
    const T* const x = a.x[row];
    T* const out = a.out[row];
    float squares = 0;
    for (int c = lane; c < a.width; c += kWarpSize) {
        const float value = to_float(x[c]);
        squares += value * value;
    }
    squares = group_sum<kWarpSize>(squares);
    const float rstd = 1.0f / sqrtf(squares / static_cast<float>(a.width) + a.eps);
    if (lane == 0) a.rstd[row] = rstd;
    for (int c = lane; c < a.width; c += kWarpSize)
        out[c] = from_float<T>(to_float(x[c]) * (rstd * to_float(a.weight[c])));
}

template <typename T>
struct BackwardArgs {
    Rows<T> dx;
    Rows<const T> dout, x, dresidual;  // dresidual.data may be null
    const T* weight;
    const float* rstd;
    float* partial;  // (blocks, C): each block's part of dweight
    uint32_t num_rows;
    int width;
};

// The grid is persistent: each thread keeps its columns of dweight in registers over all rows that its block visits. A
// row stays in shared memory, where asynchronous copies bring it, and is read from there twice; as soon as a vector has
// been read for the second time, the copy of the next row's starts into its place. So registers limit neither the
// number of warps nor the bytes in flight. Every thread copies only what it reads itself, so no barrier is needed. Slot
// s of thread t is ring[s * threads + t]: neighbouring threads use neighbouring banks. The weight follows the slots if
// a block of sm_86 has room for it there (99 KB in all); else it is read through the L1 cache.
template <typename S>
constexpr bool kSharesWeight = !S::kIsBlock && S::kVectors < 8;

template <typename T, typename S, bool kHasResidual>
__global__ void __launch_bounds__(S::kMaxThreads, kBackwardBlocks<S>)
    backward_kernel(const __grid_constant__ BackwardArgs<T> a) {
    using V = Vec<T>;
    __shared__ float scratch[2][kWarpSize];
    extern __shared__ uint4 ring[];
    constexpr int kTensors = kHasResidual ? 3 : 2;
    const int lane = S::lane(), lanes = S::lanes(), num_vectors = a.width / V::kSize;
    const uint32_t stride = gridDim.x * S::kRowsPerBlock;
    uint4* const slots = ring + threadIdx.x;
    const auto slot = [&](int tensor, int i) { return slots + (tensor * S::kVectors + i) * S::threads(); };
    uint4* const shared_weight = ring + kTensors * S::kVectors * S::threads() + lane;
    const auto weight_of = [&](int i) {
        const int index = lane + i * lanes;
        if constexpr (kSharesWeight<S>)
            return V{shared_weight[i * lanes]};
        else
            return index < num_vectors ? load_constant(a.weight, index) : V::zero();
    };
    struct Sources {
        const T *x, *dout, *dresidual;
    };
    const auto sources_of = [&](uint32_t row) {
        return Sources{a.x[row], a.dout[row], kHasResidual ? a.dresidual[row] : nullptr};
    };
    const auto fetch = [&](const Sources& from, int i) {
        copy_async(slot(0, i), from.x, lane + i * lanes);
        copy_async(slot(1, i), from.dout, lane + i * lanes);
        if constexpr (kHasResidual) copy_async(slot(2, i), from.dresidual, lane + i * lanes);
    };
    uint32_t row = blockIdx.x * S::kRowsPerBlock + S::group();
    float next_rstd = 0;
    const bool has_row = row < a.num_rows;
    if (has_row) next_rstd = a.rstd[row];
    const Sources first_row = sources_of(has_row ? row : 0);
#pragma unroll
    for (int i = 0; i < S::kVectors; ++i) {
        const int index = lane + i * lanes;
        const bool is_inside = index < num_vectors;
        // Zeros past the end of a row need no condition where the row is summed.
        if (kSharesWeight<S> && S::group() == 0)
            shared_weight[i * lanes] = is_inside ? load_constant(a.weight, index).raw : V::zero().raw;
#pragma unroll
        for (int tensor = 0; tensor < kTensors; ++tensor)
            if (!is_inside) *slot(tensor, i) = V::zero().raw;
        if (is_inside && has_row) fetch(first_row, i);
    }
    if constexpr (kSharesWeight<S>) __syncthreads();
    const float inverse_width = 1.0f / static_cast<float>(a.width);
    float dweight[S::kVectors][V::kSize] = {};
    int parity = 0;
    // All threads of a block make the same number of rounds, since all join in the sums. Past the last row a thread
    // adds up what its slots hold, and writes nothing.
    for (uint32_t first = blockIdx.x * S::kRowsPerBlock; first < a.num_rows; first += stride, row += stride) {
        const float rstd = next_rstd;
        const bool has_next = row + stride < a.num_rows;
        if (has_next) next_rstd = a.rstd[row + stride];
        const Sources next = sources_of(has_next ? row + stride : 0);
        wait_for_copies();
        // mean(g * x), g = dout * weight
        float mean = 0;
#pragma unroll
        for (int i = 0; i < S::kVectors; ++i) {
            float xs[V::kSize], douts[V::kSize], weight[V::kSize];
            V{*slot(0, i)}.unpack(xs);
            V{*slot(1, i)}.unpack(douts);
            weight_of(i).unpack(weight);
#pragma unroll
            for (int e = 0; e < V::kSize; ++e) mean += douts[e] * weight[e] * xs[e];
        }
        mean = S::sum(mean, scratch[parity]) * inverse_width;
        parity ^= 1;
        const float scale = -mean * rstd * rstd * rstd;
        const int limit = row < a.num_rows ? num_vectors : 0;
        T* const dx_row = a.dx[row];
#pragma unroll
        for (int i = 0; i < S::kVectors; ++i) {
            const int index = lane + i * lanes;
            if (index >= limit) continue;
            const V x = {*slot(0, i)}, dout = {*slot(1, i)};
            const V dresidual = kHasResidual ? V{*slot(2, i)} : V::zero();
            if (has_next) fetch(next, i);
            float xs[V::kSize], douts[V::kSize], weight[V::kSize], dx[V::kSize];
            x.unpack(xs);
            dout.unpack(douts);
            dresidual.unpack(dx);
            weight_of(i).unpack(weight);
#pragma unroll
            for (int e = 0; e < V::kSize; ++e) {
                const float d = douts[e] * rstd;
                dweight[i][e] += d * xs[e];
                dx[e] += xs[e] * scale;
                dx[e] += d * weight[e];
            }
            store(dx_row, index, V::pack(dx));
        }
    }

    float* const partial = a.partial + static_cast<int64_t>(blockIdx.x) * a.width;
    if constexpr (S::kIsBlock) {
#pragma unroll
        for (int i = 0; i < S::kVectors; ++i) {
            const int index = lane + i * lanes;
#pragma unroll
            for (int e = 0; e < V::kSize; ++e)
                if (index < num_vectors) partial[index * V::kSize + e] = dweight[i][e];
        }
    } else {
        // First add the groups of a warp, then, through the ring's memory once all are done with it, the warps in index
        // order.
        constexpr int kWarps = kThreads / kWarpSize, kColumns = S::kLanes * S::kVectors * V::kSize;
        static_assert(kWarps * kColumns * 4 <= 2 * S::kVectors * kThreads * 16, "the ring holds every warp's columns");
        float* const columns = reinterpret_cast<float*>(ring);
#pragma unroll
        for (int distance = S::kLanes; distance < kWarpSize; distance *= 2)
#pragma unroll
            for (int i = 0; i < S::kVectors; ++i)
#pragma unroll
                for (int e = 0; e < V::kSize; ++e)
                    dweight[i][e] += __shfl_xor_sync(0xffffffffu, dweight[i][e], distance);
        __syncthreads();
        if (threadIdx.x % kWarpSize < S::kLanes) {
#pragma unroll
            for (int i = 0; i < S::kVectors; ++i)
#pragma unroll
                for (int e = 0; e < V::kSize; ++e)
                    columns[threadIdx.x / kWarpSize * kColumns + (lane + i * S::kLanes) * V::kSize + e] = dweight[i][e];
        }
        __syncthreads();
        for (int c = threadIdx.x; c < a.width; c += kThreads) {
            float sum = 0;
#pragma unroll
            for (int warp = 0; warp < kWarps; ++warp) sum += columns[warp * kColumns + c];
            partial[c] = sum;
        }
    }
}

// Each block has a row; thread t owns the columns t, t + 256, ... of the row and of the block's part of dweight.
template <typename T>
__global__ void __launch_bounds__(kThreads) scalar_backward_kernel(const __grid_constant__ BackwardArgs<T> a) {
    __shared__ float scratch[2][kWarpSize];
    float* const partial = a.partial + static_cast<int64_t>(blockIdx.x) * a.width;
    for (int c = threadIdx.x; c < a.width; c += kThreads) partial[c] = 0;
    int parity = 0;
    for (uint32_t row = blockIdx.x; row < a.num_rows; row += gridDim.x) {
        const T *const x = a.x[row], *const dout = a.dout[row];
        const T* const dresidual = a.dresidual.data != nullptr ? a.dresidual[row] : nullptr;
        T* const dx = a.dx[row];
        const float rstd = a.rstd[row];
        float mean = 0;
        for (int c = threadIdx.x; c < a.width; c += kThreads)
            mean += to_float(dout[c]) * to_float(a.weight[c]) * to_float(x[c]);
        mean = block_sum(mean, scratch[parity]) / static_cast<float>(a.width);
        parity ^= 1;
        const float scale = mean * rstd * rstd;
        for (int c = threadIdx.x; c < a.width; c += kThreads) {
            const float g = to_float(dout[c]), value = to_float(x[c]);
            partial[c] += g * (value * rstd);
            const float d = rstd * (g * to_float(a.weight[c]) - value * scale);
            dx[c] = from_float<T>(dresidual != nullptr ? to_float(dresidual[c]) + d : d);
        }
    }
}

__global__ void __launch_bounds__(1024) sum_partials_kernel(PartialSums sums) {
    add_partial_sums(sums);
}

uint32_t num_rows(const Tensor& x) {
    const int64_t rows = x.rank == 3 ? x.shape[0] * x.shape[1] : x.shape[0];
    CHECK(rows < (int64_t{1} << 31) && x.shape[x.rank - 1] < (int64_t{1} << 30), "rmsnorm on CUDA: x is ", x.describe(),
          ": at most 2^31 - 1 rows of less than 2^30 columns");
    return static_cast<uint32_t>(rows);
}
int width(const Tensor& x) {
    return static_cast<int>(x.shape[x.rank - 1]);
}

template <typename T>
Rows<T> rows_of(const Tensor& x) {
    if (!x) return {};
    return {x.get<std::remove_const_t<T>>(), x.rank == 3 ? static_cast<uint32_t>(x.shape[1]) : 1u, x.stride[0],
            x.rank == 3 ? x.stride[1] : 0};
}

bool fits_vectors(const Tensor& tensor) {
    if (!tensor) return true;
    if (reinterpret_cast<uintptr_t>(tensor.data) % 16 != 0) return false;
    if (tensor.shape[tensor.rank - 1] * size_of(tensor.dtype) % 16 != 0) return false;
    for (int axis = 0; axis + 1 < tensor.rank; ++axis)
        if (tensor.stride[axis] * size_of(tensor.dtype) % 16 != 0) return false;
    return true;
}

// Returns the number of vectors of a row, or 0 if the scalar kernel must take it.
int vectors_of(const Tensor& x) {
    const int64_t bytes = x.shape[x.rank - 1] * size_of(x.dtype);
    return bytes % 16 == 0 && bytes / 16 <= kMaxVectors ? static_cast<int>(bytes / 16) : 0;
}

// Picks among the compiled ways to share a row. Rows of more than 256 vectors go to whole blocks: a
// warp with more than 8 vectors per lane would run out of registers in backward.
template <typename Function>
void with_share(int num_vectors, Function&& function) {
    if (num_vectors <= 8) return function(Share<4, 2>{});
    if (num_vectors <= 16) return function(Share<8, 2>{});
    if (num_vectors <= 32) return function(Share<16, 2>{});
    if (num_vectors <= 96) return function(Share<32, 3>{});  // 768 columns of a 16-bit type
    if (num_vectors <= 128) return function(Share<32, 4>{});
    if (num_vectors <= 192) return function(Share<32, 6>{});  // 1536 columns
    if (num_vectors <= 256) return function(Share<32, 8>{});
    return function(Share<kWholeBlock, 4>{});
}

template <typename S>
int threads_of(int num_vectors) {
    if (!S::kIsBlock) return kThreads;
    return (num_vectors + S::kVectors * kWarpSize - 1) / (S::kVectors * kWarpSize) * kWarpSize;
}

template <typename S>
uint32_t row_blocks(uint32_t rows) {
    return (rows + S::kRowsPerBlock - 1) / S::kRowsPerBlock;
}

// Returns how many blocks to start: as many as are resident at a time or, where a multiprocessor has several, a few
// less, so that all make the same number of rounds; with one each, a multiprocessor without a block costs more than an
// uneven last round.
template <typename S>
uint32_t backward_blocks(const cudaDeviceProp& gpu, int resident_on_each, uint32_t rows) {
    const int on_each = std::min(resident_on_each, S::kIsBlock ? kRmsNormBackwardBlocks : kBackwardBlocks<S>);
    const uint32_t resident = static_cast<uint32_t>(gpu.multiProcessorCount * on_each);
    const uint32_t rounds = on_each > 1 ? (row_blocks<S>(rows) + resident - 1) / resident : 1;
    return std::min(resident, (row_blocks<S>(rows) + rounds - 1) / rounds);
}
uint32_t scalar_backward_blocks(const cudaDeviceProp& gpu, uint32_t rows) {
    return std::min(rows, static_cast<uint32_t>(gpu.multiProcessorCount * kScalarBackwardBlocks));
}

template <typename T>
void launch_forward(const Device& device, const ForwardArgs<T>& args, int num_vectors) {
    const cudaStream_t stream = device.context().stream;
    if (num_vectors == 0) {
        constexpr uint32_t kRows = kThreads / kWarpSize;
        scalar_forward_kernel<T><<<(args.num_rows + kRows - 1) / kRows, kThreads, 0, stream>>>(args);
    } else {
        with_share(num_vectors, [&](auto share) {
            using S = decltype(share);
            forward_kernel<T, S><<<row_blocks<S>(args.num_rows), threads_of<S>(num_vectors), 0, stream>>>(args);
        });
    }
    CUDA_CHECK_LAUNCH("rmsnorm_forward");
}

template <typename T>
void launch_backward(const Device& device, const BackwardArgs<T>& args, float* dweight, bool accumulate,
                     int num_vectors) {
    const CudaContext& context = device.context();
    uint32_t blocks = 0;
    if (num_vectors == 0) {
        blocks = scalar_backward_blocks(context.properties, args.num_rows);
        scalar_backward_kernel<T><<<blocks, kThreads, 0, context.stream>>>(args);
    } else {
        with_share(num_vectors, [&](auto share) {
            using S = decltype(share);
            const int threads = threads_of<S>(num_vectors);
            const auto launch = [&](auto has_residual) {
                constexpr bool kHasResidual = decltype(has_residual)::value;
                const int bytes =
                    ((kHasResidual ? 3 : 2) * threads + (kSharesWeight<S> ? S::kLanes : 0)) * S::kVectors * 16;
                const auto kernel = backward_kernel<T, S, kHasResidual>;
                CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
                int resident = 0;
                CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, bytes));
                blocks = backward_blocks<S>(context.properties, std::max(resident, 1), args.num_rows);
                kernel<<<blocks, threads, bytes, context.stream>>>(args);
            };
            if (args.dresidual.data != nullptr)
                launch(std::true_type{});
            else
                launch(std::false_type{});
        });
    }
    CUDA_CHECK_LAUNCH("rmsnorm_backward");
    CHECK(blocks <= static_cast<uint32_t>(context.properties.multiProcessorCount * kRmsNormBackwardBlocks),
          "rmsnorm_backward starts ", blocks, " blocks, more than its workspace is planned for");
    launch_partial_sums(context, sum_partials_kernel,
                        {.out = dweight,
                         .partial = args.partial,
                         .num_blocks = static_cast<int>(blocks),
                         .width = args.width,
                         .accumulate = accumulate});
    CUDA_CHECK_LAUNCH("rmsnorm_backward (dweight)");
}

}  // namespace

void rmsnorm_forward_cuda(const Device& device, const RmsNormForward& a) {
    const uint32_t rows = num_rows(a.x);
    if (rows == 0) return;
    const bool fits = fits_vectors(a.out) && fits_vectors(a.x) && fits_vectors(a.weight);
    for_cuda_type(a.x.dtype, "rmsnorm", [&](auto element) {
        using T = decltype(element);
        launch_forward<T>(device,
                          {.out = rows_of<T>(a.out),
                           .x = rows_of<const T>(a.x),
                           .weight = a.weight.get<T>(),
                           .rstd = a.rstd.get<float>(),
                           .num_rows = rows,
                           .width = width(a.x),
                           .eps = static_cast<float>(a.eps)},
                          fits ? vectors_of(a.x) : 0);
    });
}

size_t rmsnorm_backward_workspace_cuda(const Device& device, const Tensor& x) {
    return static_cast<size_t>(device.context().properties.multiProcessorCount * kRmsNormBackwardBlocks) *
           static_cast<size_t>(width(x)) * sizeof(float);
}

void rmsnorm_backward_cuda(const Device& device, const RmsNormBackward& a) {
    const uint32_t rows = num_rows(a.x);
    if (rows == 0) {
        if (!a.accumulate) device.zero(a.dweight);
        return;
    }
    const bool fits = fits_vectors(a.dx) && fits_vectors(a.dout) && fits_vectors(a.x) && fits_vectors(a.dresidual) &&
                      fits_vectors(a.weight);
    for_cuda_type(a.x.dtype, "rmsnorm", [&](auto element) {
        using T = decltype(element);
        launch_backward<T>(device,
                           {.dx = rows_of<T>(a.dx),
                            .dout = rows_of<const T>(a.dout),
                            .x = rows_of<const T>(a.x),
                            .dresidual = rows_of<const T>(a.dresidual),
                            .weight = a.weight.get<T>(),
                            .rstd = a.rstd.get<float>(),
                            .partial = reinterpret_cast<float*>(a.workspace.data),
                            .num_rows = rows,
                            .width = width(a.x)},
                           a.dweight.get<float>(), a.accumulate, fits ? vectors_of(a.x) : 0);
    });
}

}  // namespace ingot
