// Cross-entropy on CUDA is bound by memory, so a row of logits is read once and written once if it fits on chip.
//
// The resident kernel keeps a row in the shared memory of one block or, on Hopper, of a cluster of up to eight blocks,
// which exchange one maximum and one sum each. Shares are kept small enough for two or four blocks
// on a multiprocessor, so that one reads while another computes. That holds up to about 450,000 columns in 16-bit
// types. Blocks are persistent: as soon as a vector of logits has turned into its gradient, the copy of the next row's
// starts into its place. An H200 leaves about 190 instructions of a warp for 32 vectors at the clock of a training
// step, and the two exponentials of each element take two thirds of the time in any case, so the loops do nothing else
// that could stand outside: no masks, no branches, one multiply-add for an exponent.
//
// The streaming kernel takes the rest: rows that do not fit or are not aligned to 16 bytes, which it reads again for
// the gradient, mostly from the L2, and calls without a gradient, which read a row only once.
#include <cooperative_groups.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "kernels/cross_entropy.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/mma_sm80.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vec.cuh"

namespace ingot {

namespace {

constexpr int kMaxThreads = 512;
constexpr int kStreamingThreads = 256;  // three blocks of 85 registers a thread on a multiprocessor
constexpr int kMaxWarps = kMaxThreads / kWarpSize;
constexpr int kMaxCluster = 8;     // what every Hopper GPU can schedule
constexpr int kLoadsAtOnce = 4;    // chunks that a thread of the streaming kernel has in flight
constexpr int kStoresAtOnce = 4;   // vectors that a thread of the resident kernel turns into their gradient together
constexpr int kChunksAThread = 8;  // of a resident row, before a block gets more threads

template <typename T>
struct Args {
    T* logits;
    float* losses;
    const int32_t* targets;
    const double* loss_scale;
    int64_t row_size, num_rows;  // VP, n
    int vocab_size, cluster_size;
    float z_loss;
    bool writes_gradient;
};

// e^x for x <= 0. 16-bit types use ex2.approx of the rounded x log2(e): the error, at most 2^-23 |x| of the result,
// matters only where the result itself is negligible.
template <typename T>
__device__ float exponential(float x) {
    if constexpr (sizeof(T) == 4)
        return expf(x);
    else
        return __expf(x);
}

// A part of a row: its maximum, and the sum of e^(x - maximum). An empty part has the maximum -inf and the sum 0.
struct Softmax {
    float maximum, sum;
    // The maximum that exponents are taken against; any finite number in an empty part or one of -inf alone.
    __device__ float origin() const { return maximum == -INFINITY ? 0.0f : maximum; }
};

// Merges over a warp, in a fixed order, with the same bits in all lanes: a butterfly.
template <typename T>
__device__ Softmax warp_softmax(Softmax part) {
    Softmax all = part;
#pragma unroll
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2)
        all.maximum = fmaxf(all.maximum, __shfl_xor_sync(0xffffffffu, all.maximum, distance));
    all.sum = group_sum<kWarpSize>(part.sum * exponential<T>(part.maximum - all.origin()));
    return all;
}

// Merges at most 32 parts in shared memory, in each warp.
template <typename T>
__device__ Softmax softmax_of(const Softmax* parts, int num_parts) {
    const int lane = threadIdx.x % kWarpSize;
    return warp_softmax<T>(lane < num_parts ? parts[lane] : Softmax{-INFINITY, 0});
}

// Merges over the block, in an order that the number of threads alone fixes, with the same bits in all threads. It has
// one barrier: a caller in a loop alternates between two arrays, as for block_sum.
template <typename T>
__device__ Softmax block_softmax(Softmax part, Softmax (&warps)[kMaxWarps]) {
    part = warp_softmax<T>(part);
    if (threadIdx.x % kWarpSize == 0) warps[threadIdx.x / kWarpSize] = part;
    __syncthreads();
    return softmax_of<T>(warps, blockDim.x / kWarpSize);
}

// Computes e^(x - origin) for x <= origin, but for a factor, `correction`. In 16-bit types that is 2^(x log2(e) -
// offset) with one multiply-add. The offset is rounded, which all x share, so that the correction makes up for it. At
// 2^16 and more the offset would be too coarse. But there elements of a 16-bit type are equal or differ by 256 at
// least, so that 2^(x - origin) is 1 or 0 just as e^(x - origin) is.
template <typename T>
struct Exponential {
    float scale, offset, correction;
    __device__ explicit Exponential(float origin) {
        constexpr float kLog2E = 1.44269504f;
        scale = sizeof(T) == 4 ? 1.0f : fabsf(origin) < 65536 ? kLog2E : 1.0f;
        offset = origin * scale;
        correction = sizeof(T) == 4 ? 1.0f : tiles::exp2_fast(-fmaf(origin, scale, -offset));
    }
    __device__ float operator()(float x) const {
        if constexpr (sizeof(T) == 4)
            return expf(x - offset);
        else
            return tiles::exp2_fast(fmaf(x, scale, -offset));
    }
};

// Returns the target of a row, -1 if it is ignored. The host has not seen it, so one outside the vocabulary traps.
template <typename T>
__device__ int target_of(const Args<T>& a, int64_t row) {
    const int target = a.targets[row];
    if (target < -1 || target >= a.vocab_size) __trap();
    return target;
}

// The numbers that turn a row of logits into its gradient.
struct Gradient {
    float origin, factor, loss_scale;
    int target, vocab_size;
};

template <typename T>
__device__ Gradient gradient_of(const Args<T>& a, Softmax row, float lse, int target) {
    const float S = a.loss_scale != nullptr ? static_cast<float>(*a.loss_scale) : 1.0f;
    return {row.origin(), S * (1 + 2 * a.z_loss * lse) / row.sum, S, target, a.vocab_size};
}

// Turns columns [column, column + kSize), at least one of which is in the vocabulary, into their gradient.
template <typename T, int kSize>
__device__ void to_gradient(float (&x)[kSize], int64_t column, const Gradient& g) {
#pragma unroll
    for (int e = 0; e < kSize; ++e) x[e] = exponential<T>(x[e] - g.origin) * g.factor;
    if (g.target >= column && g.target < column + kSize) {
#pragma unroll
        for (int e = 0; e < kSize; ++e) x[e] -= g.target == column + e ? g.loss_scale : 0.0f;
    }
    if (column + kSize > g.vocab_size) {
#pragma unroll
        for (int e = 0; e < kSize; ++e) x[e] = column + e < g.vocab_size ? x[e] : 0.0f;
    }
}

// Sets padding to -inf, so that it does not count, whatever it holds.
template <int kSize>
__device__ void mask_padding(float (&x)[kSize], int64_t column, int vocab_size) {
    if (column + kSize <= vocab_size) return;
#pragma unroll
    for (int e = 0; e < kSize; ++e) x[e] = column + e < vocab_size ? x[e] : -INFINITY;
}

// Every thread copies, reads and overwrites vectors of its own, so that only the merging of the parts has barriers.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads, 2) resident_kernel(const __grid_constant__ Args<T> a) {
    using V = Vec<T>;
    extern __shared__ uint4 share[];  // this block's part of a row
    __shared__ Softmax warps[2][kMaxWarps];
    [[maybe_unused]] __shared__ Softmax parts[2][kMaxCluster];  // one for each block of the cluster
    const int num_blocks = a.cluster_size;
    const int64_t first_row = blockIdx.x / num_blocks, stride = gridDim.x / num_blocks;
    const int rank = static_cast<int>(blockIdx.x - first_row * num_blocks);
    const int num_vectors = static_cast<int>(a.row_size / V::kSize);
    const int per_block = (num_vectors + num_blocks - 1) / num_blocks;
    const int begin = min(rank * per_block, num_vectors), count = min(per_block, num_vectors - begin);
    // Vectors that are all padding are not read.
    const int live = min(count, max((a.vocab_size + V::kSize - 1) / V::kSize - begin, 0));
    const int first = threadIdx.x, step = blockDim.x;
    const auto owns = [&](int i) { return i >= 0 && i < live && i % step == first; };
    const int end_vector = a.vocab_size / V::kSize - begin;  // the one with some padding, if there is one
    const bool owns_end = a.vocab_size % V::kSize != 0 && owns(end_vector);
    const float loss_scale = a.loss_scale != nullptr ? static_cast<float>(*a.loss_scale) : 1.0f;
    const auto fetch_row = [&](const T* logits) {
        for (int i = first; i < live; i += step) copy_async(share + i, logits, i);
    };
    T* logits = a.logits + first_row * a.row_size + int64_t{begin} * V::kSize;
    int target = target_of(a, first_row);
    if (target >= 0) fetch_row(logits);
#if __CUDA_ARCH__ >= 900
    // Before a block writes into another's shared memory, that one must have started.
    const auto cluster = cooperative_groups::this_cluster();
    if (num_blocks > 1) cluster.sync();
#endif
    int parity = 0;
    for (int64_t row = first_row; row < a.num_rows; row += stride) {
        T* const next_logits = logits + stride * a.row_size;
        // This one is loaded early and first looked at late.
        const int next_target = row + stride < a.num_rows ? a.targets[row + stride] : -1;
        if (target < 0) {
            for (int i = first; i < count; i += step) store(logits, i, V::zero());
            if (rank == 0 && first == 0) a.losses[row] = 0;
            if (next_target >= 0) fetch_row(next_logits);
        } else {
            wait_for_copies();
            if (owns_end) {
                float x[V::kSize];
                V{share[end_vector]}.unpack(x);
                mask_padding(x, int64_t{begin + end_vector} * V::kSize, a.vocab_size);
                share[end_vector] = V::pack(x).raw;
            }
            V maxima = V::filled(-INFINITY);
#pragma unroll 4
            for (int i = first; i < live; i += step) maxima = V::max(maxima, V{share[i]});
            float x[V::kSize];
            maxima.unpack(x);
            Softmax part{-INFINITY, 0};
#pragma unroll
            for (int e = 0; e < V::kSize; ++e) part.maximum = fmaxf(part.maximum, x[e]);
            const Exponential<T> part_exponential(part.origin());
#pragma unroll 4
            for (int i = first; i < live; i += step) {
                V{share[i]}.unpack(x);
#pragma unroll
                for (int e = 0; e < V::kSize; ++e) part.sum += part_exponential(x[e]);
            }
            part.sum *= part_exponential.correction;
            Softmax total = block_softmax<T>(part, warps[parity]);
#if __CUDA_ARCH__ >= 900
            if (num_blocks > 1) {
                if (first < num_blocks) *cluster.map_shared_rank(parts[parity] + rank, first) = total;
                cluster.sync();
                total = softmax_of<T>(parts[parity], num_blocks);
            }
#endif
            parity ^= 1;
            const float lse = total.maximum + logf(total.sum);
            const Exponential<T> exponential(total.origin());
            const float factor = loss_scale * (1 + 2 * a.z_loss * lse) / total.sum * exponential.correction;
            const auto write_gradient = [&](int i, V packed, int target_element) {
                packed.unpack(x);
#pragma unroll
                for (int e = 0; e < V::kSize; ++e) {
                    x[e] = exponential(x[e]) * factor;
                    if (e == target_element) x[e] -= loss_scale;
                }
                store(logits, i, V::pack(x));
            };
            // The target's vector is written twice, the second time with the target.
            const int target_vector = target / V::kSize - begin, target_element = target % V::kSize;
            const bool owns_target = owns(target_vector);
            const V with_target = owns_target ? V{share[target_vector]} : V::zero();
            const bool has_next = next_target >= 0;
            int i = first;
            for (; i + (kStoresAtOnce - 1) * step < live; i += kStoresAtOnce * step) {
                V packed[kStoresAtOnce];
#pragma unroll
                for (int u = 0; u < kStoresAtOnce; ++u) packed[u] = V{share[i + u * step]};
                if (has_next) {
#pragma unroll
                    for (int u = 0; u < kStoresAtOnce; ++u) copy_async(share + i + u * step, next_logits, i + u * step);
                }
#pragma unroll
                for (int u = 0; u < kStoresAtOnce; ++u) write_gradient(i + u * step, packed[u], -1);
            }
            for (; i < live; i += step) {
                const V packed{share[i]};
                if (has_next) copy_async(share + i, next_logits, i);
                write_gradient(i, packed, -1);
            }
            if (owns_target) {
                write_gradient(target_vector, with_target, target_element);
                with_target.unpack(x);
#pragma unroll
                for (int e = 0; e < V::kSize; ++e)
                    if (e == target_element) a.losses[row] = lse - x[e];
            }
            for (i = live + first; i < count; i += step) store(logits, i, V::zero());
        }
        if (next_target < -1 || next_target >= a.vocab_size) __trap();
        target = next_target;
        logits = next_logits;
    }
}

template <typename T, bool kIsVector>
__global__ void __launch_bounds__(kStreamingThreads, 3) streaming_kernel(const __grid_constant__ Args<T> a) {
    using C = Chunk<T, kIsVector>;
    __shared__ Softmax warps[kMaxWarps];
    const int64_t row = blockIdx.x;
    T* const logits = a.logits + row * a.row_size;
    const int num_chunks = static_cast<int>(a.row_size / C::kSize);
    const int live_chunks = (a.vocab_size + C::kSize - 1) / C::kSize;
    const int step = blockDim.x;
    const int target = target_of(a, row);
    if (target < 0) {
        if (threadIdx.x == 0) a.losses[row] = 0;
        float zeros[C::kSize] = {};
        for (int i = threadIdx.x; a.writes_gradient && i < num_chunks; i += step)
            C::store(logits + int64_t{i} * C::kSize, zeros);
        return;
    }
    const float target_logit = to_float(logits[target]);
    Softmax part{-INFINITY, 0};
    for (int first = threadIdx.x; first < live_chunks; first += kLoadsAtOnce * step) {
        typename C::Packed packed[kLoadsAtOnce] = {};
#pragma unroll
        for (int u = 0; u < kLoadsAtOnce; ++u)
            if (first + u * step < live_chunks) packed[u] = C::fetch(logits + int64_t{first + u * step} * C::kSize);
        // Chunks are unpacked twice, since the floats of all chunks at once do not fit the registers.
        const auto load = [&](int u, float(&x)[C::kSize]) {
            const int64_t column = int64_t{first + u * step} * C::kSize;
            if (first + u * step < live_chunks) C::unpack(packed[u], x);
            mask_padding(x, column, a.vocab_size);
        };
        const float before = part.origin();
#pragma unroll
        for (int u = 0; u < kLoadsAtOnce; ++u) {
            float x[C::kSize];
            load(u, x);
            if constexpr (kIsVector) packed[u].stay_packed();
#pragma unroll
            for (int e = 0; e < C::kSize; ++e) part.maximum = fmaxf(part.maximum, x[e]);
        }
        const float origin = part.origin();
        // Without a sum so far there is nothing to rescale, and `before` has no meaning.
        if (part.sum != 0) part.sum *= exponential<T>(before - origin);
#pragma unroll
        for (int u = 0; u < kLoadsAtOnce; ++u) {
            float x[C::kSize];
            load(u, x);
#pragma unroll
            for (int e = 0; e < C::kSize; ++e) part.sum += exponential<T>(x[e] - origin);
        }
    }
    const Softmax total = block_softmax<T>(part, warps);
    const float lse = total.maximum + logf(total.sum);
    if (threadIdx.x == 0) a.losses[row] = lse - target_logit;
    if (!a.writes_gradient) return;
    const Gradient gradient = gradient_of(a, total, lse, target);
#pragma unroll 2
    for (int i = threadIdx.x; i < live_chunks; i += step) {
        float x[C::kSize];
        C::load(logits + int64_t{i} * C::kSize, x);
        to_gradient<T>(x, int64_t{i} * C::kSize, gradient);
        C::store(logits + int64_t{i} * C::kSize, x);
    }
    float zeros[C::kSize] = {};
    for (int i = live_chunks + threadIdx.x; i < num_chunks; i += step) C::store(logits + int64_t{i} * C::kSize, zeros);
}

int threads_for(int64_t chunks) {
    const int64_t warps = (chunks + kChunksAThread * kWarpSize - 1) / (kChunksAThread * kWarpSize);
    return static_cast<int>(std::clamp<int64_t>(warps, 1, kMaxWarps)) * kWarpSize;
}

// Returns how many bytes of a row a block may hold, so that so many blocks fit on a multiprocessor.
int64_t share_limit(const cudaDeviceProp& gpu, int num_blocks) {
    constexpr int64_t kStatic = 2 * (kMaxWarps + kMaxCluster) * sizeof(Softmax) + 128;  // and some for alignment
    const auto part = static_cast<int64_t>(gpu.sharedMemPerMultiprocessor) / num_blocks;
    return std::min(part - static_cast<int64_t>(gpu.reservedSharedMemPerBlock),
                    static_cast<int64_t>(gpu.sharedMemPerBlockOptin)) -
           kStatic;
}

int64_t share_of(int64_t num_vectors, int cluster_size) {
    return (num_vectors + cluster_size - 1) / cluster_size * static_cast<int64_t>(sizeof(uint4));
}

// Returns over how many blocks the resident kernel spreads a row; 0 if it does not fit. A row that two blocks of a
// multiprocessor can hold each stays in one. Blocks of a cluster wait for each other, so there four on a
// multiprocessor do better than two.
int cluster_for(const cudaDeviceProp& gpu, bool has_clusters, int64_t num_vectors) {
    if (!has_clusters) return share_of(num_vectors, 1) <= share_limit(gpu, 1) ? 1 : 0;
    if (share_of(num_vectors, 1) <= share_limit(gpu, 2)) return 1;
    for (const int per_multiprocessor : {4, 2})
        for (int size = 2; size <= kMaxCluster; ++size)
            if (share_of(num_vectors, size) <= share_limit(gpu, per_multiprocessor)) return size;
    return 0;
}

// Returns whether the kernel that runs on this GPU was compiled with the code for clusters, found once for each GPU.
// The GPU alone does not tell, since a build for older ones runs on Hopper too, from its PTX.
template <typename T>
bool has_cluster_code(const CudaContext& context) {
    static std::mutex mutex;
    static std::map<int, bool> all;
    const std::lock_guard lock(mutex);
    const auto found = all.find(context.index);
    if (found != all.end()) return found->second;
    cudaFuncAttributes attributes{};
    CUDA_CHECK(cudaFuncGetAttributes(&attributes, resident_kernel<T>));
    return all.emplace(context.index, attributes.ptxVersion >= 90).first->second;
}

template <typename T>
void launch_resident(const Device& device, const Args<T>& args) {
    const cudaDeviceProp& gpu = device.context().properties;
    const int64_t num_vectors = args.row_size / Vec<T>::kSize;
    const int64_t bytes = share_of(num_vectors, args.cluster_size);
    // Where four blocks fit a multiprocessor's shared memory, its registers must not limit them to fewer.
    const bool is_small = bytes <= share_limit(gpu, 4);
    const int threads = std::min(threads_for(bytes / 16), is_small ? kMaxThreads / 2 : kMaxThreads);
    const auto kernel = resident_kernel<T>;
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(args.cluster_size);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(args.cluster_size));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(bytes);
    config.stream = device.context().stream;
    config.attrs = &cluster;
    config.numAttrs = args.cluster_size > 1 ? 1 : 0;
    // So many rows can be worked on at a time; a few less are, so that all blocks take the same number of rows.
    int resident = 0;
    if (args.cluster_size > 1) {
        CUDA_CHECK(cudaOccupancyMaxActiveClusters(&resident, kernel, &config));
    } else {
        CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, config.dynamicSmemBytes));
        resident *= gpu.multiProcessorCount;
    }
    CHECK(resident > 0, "cross_entropy: no block of ", threads, " threads with ", bytes, " bytes fits this GPU");
    const int64_t rounds = (args.num_rows + resident - 1) / resident, rows = (args.num_rows + rounds - 1) / rounds;
    config.gridDim = dim3(static_cast<unsigned>(rows * args.cluster_size));
    CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args));
    CUDA_CHECK_LAUNCH("cross_entropy");
}

template <typename T>
void launch_streaming(const Device& device, const Args<T>& args, bool fits_vectors) {
    const auto kernel = fits_vectors ? streaming_kernel<T, true> : streaming_kernel<T, false>;
    const int threads = std::min(threads_for(args.row_size / (fits_vectors ? Vec<T>::kSize : 1)), kStreamingThreads);
    kernel<<<static_cast<unsigned>(args.num_rows), threads, 0, device.context().stream>>>(args);
    CUDA_CHECK_LAUNCH("cross_entropy");
}

// One block adds all losses: 65,536 tokens are half a megabyte, and more blocks would need a second launch.
constexpr int kSumThreads = 1024;
__global__ void __launch_bounds__(kSumThreads)
    loss_sum_kernel(StepBlock* step, const float* losses, const int32_t* targets, int64_t n) {
    constexpr int kBatch = 8;
    __shared__ double sums[kWarpSize];
    __shared__ int64_t counts[kWarpSize];
    double sum = 0;
    int64_t count = 0;
    for (int64_t first = threadIdx.x; first < n; first += kBatch * kSumThreads) {
        float loss[kBatch];
        int32_t target[kBatch];
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
            const int64_t i = first + u * kSumThreads;
            loss[u] = i < n ? losses[i] : 0.0f;
            target[u] = i < n ? targets[i] : -1;
        }
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
            sum += double{loss[u]};
            count += target[u] >= 0 ? 1 : 0;
        }
    }
    sum = block_sum(sum, sums);
    count = block_sum(count, counts);
    if (threadIdx.x == 0) {
        step->sums.loss += sum;
        step->sums.targets += count;
    }
}

}  // namespace

void cross_entropy_cuda(const Device& device, const CrossEntropy& a) {
    const int64_t n = a.logits.shape[0], VP = a.logits.shape[1];
    if (n == 0) return;
    CHECK(n < (int64_t{1} << 28) && VP < (int64_t{1} << 30), "cross_entropy on CUDA: logits are ", a.logits.describe(),
          ": at most 2^28 - 1 rows of less than 2^30 columns");
    for_cuda_type(a.logits.dtype, "cross_entropy", [&](auto element) {
        using T = decltype(element);
        Args<T> args = {.logits = a.logits.get<T>(),
                        .losses = a.losses.get<float>(),
                        .targets = a.targets.get<int32_t>(),
                        .loss_scale = a.loss_scale,
                        .row_size = VP,
                        .num_rows = n,
                        .vocab_size = static_cast<int>(a.vocab_size),
                        .cluster_size = 1,
                        .z_loss = static_cast<float>(a.z_loss),
                        .writes_gradient = a.write_gradient};
        const bool fits_vectors = VP % Vec<T>::kSize == 0 && is_aligned(args.logits);
        args.cluster_size =
            cluster_for(device.context().properties, has_cluster_code<T>(device.context()), VP / Vec<T>::kSize);
        if (a.write_gradient && fits_vectors && args.cluster_size > 0)
            launch_resident(device, args);
        else
            launch_streaming(device, args, fits_vectors);
    });
}

void loss_sum_cuda(const Device& device, const LossSum& a) {
    if (a.losses.shape[0] == 0) return;
    loss_sum_kernel<<<1, kSumThreads, 0, device.context().stream>>>(a.step, a.losses.get<float>(),
                                                                    a.targets.get<int32_t>(), a.losses.shape[0]);
    CUDA_CHECK_LAUNCH("loss_sum");
}

}  // namespace ingot
