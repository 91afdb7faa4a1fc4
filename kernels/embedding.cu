// Embedding on CUDA. Forward copies rows. Backward must add the rows of equal tokens, always in the same order, and a
// token that fills a fifth of the batch must not make one thread add a fifth of the batch:
//
//   1. The tokens are sorted, together with their positions, by a stable radix sort: equal tokens become runs, in index
//      order.
//   2. The sorted list is cut into pieces of kPiece. Each piece is summed from left to right, and a run within one
//   piece
//      is added to dweight at once. A run that crosses pieces leaves one partial sum in every piece that it touches.
//   3. The partial sums of each such run are added up, in a fixed order, and added to dweight.
//
// Counting uses atomics on integers in shared memory, whose order cannot show.
#include <algorithm>

#include "kernels/cuda/context.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vec.cuh"
#include "kernels/embedding.h"
#include "kernels/embedding_workspace.h"

namespace ingot {

namespace {

constexpr int kThreads = 256;

// ---- Forward: a warp per row ----

template <typename T, bool kIsVector>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(T* out, const T* weight, const int32_t* tokens, int64_t num_rows, int64_t vocabulary, int64_t C) {
    using Elements = Chunk<T, kIsVector>;
    const int64_t row = int64_t{blockIdx.x} * (kThreads / kWarpSize) + threadIdx.x / kWarpSize;
    if (row >= num_rows) return;
    const int32_t token = tokens[row];
    if (token < 0 || token >= vocabulary) __trap();
    const T* const from = weight + token * C;
    T* const to = out + row * C;
#pragma unroll 4
    for (int64_t c = threadIdx.x % kWarpSize * Elements::kSize; c < C; c += kWarpSize * Elements::kSize)
        Elements::put(to + c, Elements::fetch_constant(from + c));
}

// ---- Backward, 1: the sort ----

constexpr int kMaxDigitBits = 9;  // 2^18 tokens in two passes
constexpr int kMaxBins = 1 << kMaxDigitBits;
constexpr int kSortThreads = 512;
constexpr int kSortWarps = kSortThreads / kWarpSize;
constexpr int kSortRounds = 8;
constexpr int kTile = kSortThreads * kSortRounds;  // tokens of a block
static_assert(kSortThreads == kMaxBins, "a thread per bin");
static_assert(kTile == EmbeddingWorkspace::kTile && kMaxBins == EmbeddingWorkspace::kBins);

// The arguments of one pass of the sort, by the digit at `shift`.
struct SortPass {
    const int32_t* tokens;
    const uint32_t* order;  // null in the first pass: position i is i
    int32_t* sorted_tokens;
    uint32_t* sorted_order;
    uint32_t* counts;  // (tiles, kMaxBins)
    uint32_t num_tokens, num_tiles;
    int64_t vocabulary;
    int shift, bits;
};

constexpr uint32_t kNoDigit = 0xffffffffu;

// A warp owns kSortRounds * 32 consecutive tokens of the tile, 32 in each round.
__device__ uint32_t position_of(int round) {
    const uint32_t warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    return blockIdx.x * kTile + (warp * kSortRounds + round) * kWarpSize + lane;
}

__device__ uint32_t digit_of(const SortPass& a, int32_t token) {
    if (token < 0 || token >= a.vocabulary) __trap();
    return static_cast<uint32_t>(token) >> a.shift & ((1u << a.bits) - 1);
}

__global__ void __launch_bounds__(kSortThreads) count_kernel(const __grid_constant__ SortPass a) {
    __shared__ uint32_t bins[kMaxBins];
    bins[threadIdx.x] = 0;
    __syncthreads();
#pragma unroll
    for (int round = 0; round < kSortRounds; ++round) {
        const uint32_t i = position_of(round);
        const uint32_t digit = i < a.num_tokens ? digit_of(a, a.tokens[i]) : kNoDigit;
        // One lane counts for all that have the same digit: a frequent token costs no more than others.
        const uint32_t peers = __match_any_sync(0xffffffffu, digit);
        if (digit != kNoDigit && __ffs(peers) - 1 == threadIdx.x % kWarpSize) atomicAdd(&bins[digit], __popc(peers));
    }
    __syncthreads();
    a.counts[int64_t{blockIdx.x} * kMaxBins + threadIdx.x] = bins[threadIdx.x];
}

__global__ void __launch_bounds__(kSortThreads) scatter_kernel(const __grid_constant__ SortPass a) {
    __shared__ uint32_t
        bins[kSortWarps][kMaxBins];  // of each warp: first its own count, then that of the warps before it
    __shared__ uint32_t starts[kMaxBins], warp_sums[kSortWarps];
    const uint32_t warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, bin = threadIdx.x;
    for (int i = lane; i < kMaxBins; i += kWarpSize) bins[warp][i] = 0;
    __syncwarp();
    // Each token's place among those of its digit in this warp.
    int32_t tokens[kSortRounds];
    uint32_t digits[kSortRounds], ranks[kSortRounds];
#pragma unroll
    for (int round = 0; round < kSortRounds; ++round) {
        const uint32_t i = position_of(round);
        tokens[round] = i < a.num_tokens ? a.tokens[i] : 0;
        digits[round] = i < a.num_tokens ? digit_of(a, tokens[round]) : kNoDigit;
    }
#pragma unroll
    for (int round = 0; round < kSortRounds; ++round) {
        const uint32_t digit = digits[round], peers = __match_any_sync(0xffffffffu, digit);
        ranks[round] = digit != kNoDigit ? bins[warp][digit] + __popc(peers & ((1u << lane) - 1)) : 0;
        __syncwarp();
        if (digit != kNoDigit && __ffs(peers) - 1 == lane) bins[warp][digit] += __popc(peers);
        __syncwarp();
    }
    // This tile's part of each bin starts after all smaller digits, and after the tiles before this one.
    uint32_t total = 0, before = 0;
#pragma unroll 8
    for (uint32_t tile = 0; tile < a.num_tiles; ++tile) {
        const uint32_t count = a.counts[int64_t{tile} * kMaxBins + bin];
        before += tile < blockIdx.x ? count : 0;
        total += count;
    }
    uint32_t through = total;  // inclusive sum over the bins up to this one
#pragma unroll
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
        const uint32_t other = __shfl_up_sync(0xffffffffu, through, distance);
        if (lane >= distance) through += other;
    }
    if (lane == kWarpSize - 1) warp_sums[warp] = through;
    __syncthreads();
    for (uint32_t w = 0; w < warp; ++w) through += warp_sums[w];
    starts[bin] = through - total + before;
    uint32_t sum = 0;
    for (int w = 0; w < kSortWarps; ++w) {
        const uint32_t count = bins[w][bin];
        bins[w][bin] = sum;
        sum += count;
    }
    __syncthreads();
#pragma unroll
    for (int round = 0; round < kSortRounds; ++round) {
        const uint32_t i = position_of(round), digit = digits[round];
        if (digit == kNoDigit) continue;
        const uint32_t to = starts[digit] + bins[warp][digit] + ranks[round];
        a.sorted_tokens[to] = tokens[round];
        a.sorted_order[to] = a.order != nullptr ? a.order[i] : i;
    }
}

// ---- Backward, 2 and 3: adding up ----

constexpr int kPiece = EmbeddingWorkspace::kPiece;  // sorted tokens: 1,024 pieces at 65,536 tokens
constexpr int kPiecesABlock = 8;                    // at most, where rows are short
constexpr int kSumThreads = 128;
constexpr int kRowsAtOnce = 4;  // loads of a thread that are in flight at once

template <typename T>
struct SumArgs {
    float* dweight;
    const T* dout;
    const int32_t* tokens;      // sorted
    const uint32_t* order;      // the position of each of them
    float *leading, *trailing;  // (pieces, C): partial sums of a piece's run that began before it, or goes on after it
    int64_t num_tokens, num_pieces, C;
};

// Threads (x, y): chunk blockIdx.y * blockDim.x + x of the columns, piece blockIdx.x * blockDim.y + y.
template <typename T, bool kIsVector>
__global__ void __launch_bounds__(kSumThreads) sum_pieces_kernel(const __grid_constant__ SumArgs<T> a) {
    using Elements = Chunk<T, kIsVector>;
    constexpr int kSize = Elements::kSize;
    __shared__ int32_t piece_tokens[kPiecesABlock][kPiece];
    __shared__ uint32_t piece_order[kPiecesABlock][kPiece];
    const int64_t piece = int64_t{blockIdx.x} * blockDim.y + threadIdx.y, first = piece * kPiece;
    const int count = static_cast<int>(min(int64_t{kPiece}, max(int64_t{0}, a.num_tokens - first)));
    int32_t* const tokens = piece_tokens[threadIdx.y];
    uint32_t* const order = piece_order[threadIdx.y];
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        tokens[i] = a.tokens[first + i];
        order[i] = a.order[first + i];
    }
    __syncthreads();
    const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kSize;
    if (count == 0 || column >= a.C) return;
    const bool begins_before = first > 0 && a.tokens[first - 1] == tokens[0];
    const bool goes_on = first + count < a.num_tokens && a.tokens[first + count] == tokens[count - 1];
    const T* const dout = a.dout + column;
    float* const dweight = a.dweight + column;
    float sum[kSize] = {};
    for (int base = 0; base < count; base += kRowsAtOnce) {
        typename Elements::Packed rows[kRowsAtOnce];
        float old[kRowsAtOnce][kSize];
        float* results[kRowsAtOnce];  // the place of a run's sum, where the run ends
        bool accumulates[kRowsAtOnce];
#pragma unroll
        for (int u = 0; u < kRowsAtOnce; ++u) {
            const int i = base + u;
            results[u] = nullptr;
            if (i >= count) continue;
            rows[u] = Elements::fetch(dout + order[i] * a.C);
            if (i + 1 < count && tokens[i + 1] == tokens[i]) continue;
            accumulates[u] = false;
            if (begins_before && tokens[i] == tokens[0]) {
                results[u] = a.leading + piece * a.C + column;
            } else if (goes_on && i + 1 == count) {
                results[u] = a.trailing + piece * a.C + column;
            } else {
                results[u] = dweight + tokens[i] * a.C;
                accumulates[u] = true;
                load_floats(results[u], old[u]);
            }
        }
#pragma unroll
        for (int u = 0; u < kRowsAtOnce; ++u) {
            if (base + u >= count) continue;
            float row[kSize];
            Elements::unpack(rows[u], row);
#pragma unroll
            for (int e = 0; e < kSize; ++e) sum[e] += row[e];
            if (results[u] == nullptr) continue;
#pragma unroll
            for (int e = 0; e < kSize; ++e) {
                old[u][e] = accumulates[u] ? old[u][e] + sum[e] : sum[e];
                sum[e] = 0;
            }
            store_floats(results[u], old[u]);
        }
    }
}

// Each piece and kColumns columns have a block, which has work if a run begins in the piece and goes on after it. Warp
// w adds the run's partial sums w, w + 8, ..., then the warps' sums are added in index order.
constexpr int kColumnsALane = 4;
constexpr int kColumns = kColumnsALane * kWarpSize;
constexpr int kWarps = kThreads / kWarpSize;
__global__ void __launch_bounds__(kThreads)
    add_runs_kernel(float* dweight, const float* leading, const float* trailing, const int32_t* tokens,
                    int64_t num_tokens, int64_t num_pieces, int64_t C) {
    __shared__ float sums[kWarps][kColumns];
    const int64_t piece = blockIdx.x, first = piece * kPiece, next = first + kPiece;
    if (next >= num_tokens || tokens[next] != tokens[next - 1]) return;
    const int32_t token = tokens[next];
    if (first > 0 && tokens[first - 1] == token) return;
    // The run reaches through the following pieces that begin with its token.
    int64_t num_parts = 1;
    while (true) {
        const int64_t other = piece + num_parts + threadIdx.x;
        const int more = __syncthreads_count(other < num_pieces && tokens[other * kPiece] == token);
        num_parts += more;
        if (more < kThreads) break;
    }
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    const int64_t column = int64_t{blockIdx.y} * kColumns + lane;
    float sum[kColumnsALane] = {};
#pragma unroll 4
    for (int64_t part = warp; part < num_parts; part += kWarps) {
        const float* const row = (part == 0 ? trailing : leading) + (piece + part) * C + column;
#pragma unroll
        for (int i = 0; i < kColumnsALane; ++i)
            if (column + i * kWarpSize < C) sum[i] += row[i * kWarpSize];
    }
#pragma unroll
    for (int i = 0; i < kColumnsALane; ++i) sums[warp][lane + i * kWarpSize] = sum[i];
    __syncthreads();
    const int64_t mine = int64_t{blockIdx.y} * kColumns + threadIdx.x;
    if (threadIdx.x >= kColumns || mine >= C) return;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += sums[w][threadIdx.x];
    dweight[token * C + mine] += total;
}

int64_t ceil_divide(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

template <typename T, bool kIsVector>
void launch_sum_pieces(cudaStream_t stream, const SumArgs<T>& args) {
    const int64_t chunks = args.C / Chunk<T, kIsVector>::kSize;
    const auto x = static_cast<unsigned>(std::min<int64_t>(chunks, kSumThreads));
    const unsigned y = std::min<unsigned>(kSumThreads / x, kPiecesABlock);
    const dim3 grid(static_cast<unsigned>(ceil_divide(args.num_pieces, y)),
                    static_cast<unsigned>(ceil_divide(chunks, x)));
    sum_pieces_kernel<T, kIsVector><<<grid, dim3(x, y), 0, stream>>>(args);
    CUDA_CHECK_LAUNCH("embedding_backward (sums)");
}

}  // namespace

void embedding_forward_cuda(const Device& device, const EmbeddingForward& a) {
    const int64_t N = a.out.shape[0], C = a.out.shape[1];
    CHECK(N < (int64_t{1} << 31), "embedding on CUDA: ", N, " tokens, at most 2^31 - 1");
    if (N == 0 || C == 0) return;
    for_cuda_type(a.out.dtype, "embedding", [&](auto element) {
        using T = decltype(element);
        const bool fits = C % Vec<T>::kSize == 0 && is_aligned(a.out.data) && is_aligned(a.weight.data);
        const auto kernel = fits ? forward_kernel<T, true> : forward_kernel<T, false>;
        const auto blocks = static_cast<unsigned>(ceil_divide(N, kThreads / kWarpSize));
        kernel<<<blocks, kThreads, 0, device.context().stream>>>(a.out.get<T>(), a.weight.get<T>(),
                                                                 a.tokens.get<int32_t>(), N, a.weight.shape[0], C);
        CUDA_CHECK_LAUNCH("embedding_forward");
    });
}

void embedding_backward_cuda(const Device& device, const EmbeddingBackward& a) {
    const int64_t N = a.dout.shape[0], C = a.dout.shape[1], V = a.dweight.shape[0];
    CHECK(N < (int64_t{1} << 31) && C < (int64_t{1} << 22), "embedding on CUDA: dout is ", a.dout.describe(),
          ": at most 2^31 - 1 tokens of less than 2^22 columns");
    if (N == 0 || C == 0) return;
    const cudaStream_t stream = device.context().stream;
    const EmbeddingWorkspace layout(N, C);
    uint8_t* const workspace = static_cast<uint8_t*>(a.workspace.data);
    const auto tokens_at = [&](int i) { return reinterpret_cast<int32_t*>(workspace + layout.tokens[i]); };
    const auto order_at = [&](int i) { return reinterpret_cast<uint32_t*>(workspace + layout.order[i]); };

    int bits = 1;
    while (bits < 31 && (int64_t{1} << bits) < V) ++bits;
    const int num_passes = (bits + kMaxDigitBits - 1) / kMaxDigitBits,
              digit_bits = (bits + num_passes - 1) / num_passes;
    for (int pass = 0; pass < num_passes; ++pass) {
        const int from = (pass + 1) % 2, to = pass % 2;
        const SortPass args = {.tokens = pass == 0 ? a.tokens.get<int32_t>() : tokens_at(from),
                               .order = pass == 0 ? nullptr : order_at(from),
                               .sorted_tokens = tokens_at(to),
                               .sorted_order = order_at(to),
                               .counts = reinterpret_cast<uint32_t*>(workspace + layout.counts),
                               .num_tokens = static_cast<uint32_t>(N),
                               .num_tiles = static_cast<uint32_t>(ceil_divide(N, kTile)),
                               .vocabulary = V,
                               .shift = pass * digit_bits,
                               .bits = digit_bits};
        count_kernel<<<args.num_tiles, kSortThreads, 0, stream>>>(args);
        CUDA_CHECK_LAUNCH("embedding_backward (count)");
        scatter_kernel<<<args.num_tiles, kSortThreads, 0, stream>>>(args);
        CUDA_CHECK_LAUNCH("embedding_backward (scatter)");
    }
    const int last = (num_passes - 1) % 2;
    for_cuda_type(a.dout.dtype, "embedding", [&](auto element) {
        using T = decltype(element);
        const SumArgs<T> args = {.dweight = a.dweight.get<float>(),
                                 .dout = a.dout.get<T>(),
                                 .tokens = tokens_at(last),
                                 .order = order_at(last),
                                 .leading = reinterpret_cast<float*>(workspace + layout.leading),
                                 .trailing = reinterpret_cast<float*>(workspace + layout.trailing),
                                 .num_tokens = N,
                                 .num_pieces = ceil_divide(N, kPiece),
                                 .C = C};
        if (C % Vec<T>::kSize == 0 && is_aligned(a.dout.data) && is_aligned(a.dweight.data))
            launch_sum_pieces<T, true>(stream, args);
        else
            launch_sum_pieces<T, false>(stream, args);
        const dim3 grid(static_cast<unsigned>(args.num_pieces), static_cast<unsigned>(ceil_divide(C, kColumns)));
        add_runs_kernel<<<grid, kThreads, 0, stream>>>(args.dweight, args.leading, args.trailing, args.tokens, N,
                                                       args.num_pieces, C);
        CUDA_CHECK_LAUNCH("embedding_backward (runs across pieces)");
    });
}

}  // namespace ingot
