// AdamW and the gradient norm on CUDA. Both are bound by memory and make one pass.
//
// Both take parts of a flat space that may begin anywhere, so a range is cut into a head of at most three elements up
// to the first 16-byte boundary, whole vectors, and a tail of at most three. Where the tensors of one AdamW are
// aligned differently, or have both a head and decay blocks (no caller does that), it goes element by element.
#include <algorithm>

#include "kernels/adamw.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vec.cuh"

namespace ingot {

namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 2;  // chunks of a thread, so that eight loads of 16 bytes are in flight

struct Coefficients {
    float lr, eps, beta1, beta2, one_minus_beta1, one_minus_beta2, factor, inverse_bias1, inverse_bias2, decay;
};

__device__ Coefficients coefficients_of(const StepBlock& step) {
    const StepSettings& settings = step.settings;
    const StepDecision& decision = step.decision;
    return {.lr = static_cast<float>(settings.lr),
            .eps = static_cast<float>(settings.eps),
            .beta1 = static_cast<float>(settings.beta1),
            .beta2 = static_cast<float>(settings.beta2),
            .one_minus_beta1 = static_cast<float>(1 - settings.beta1),
            .one_minus_beta2 = static_cast<float>(1 - settings.beta2),
            .factor = static_cast<float>(decision.gradient_factor),
            .inverse_bias1 = static_cast<float>(1 / decision.bias_correction1),
            .inverse_bias2 = static_cast<float>(1 / decision.bias_correction2),
            .decay = static_cast<float>(settings.weight_decay)};
}

// The fmas are explicit, so that the bits do not depend on which of the kernels below computes the element.
__device__ void update(float& w, float& m, float& v, float gradient, const Coefficients& c, bool decays) {
    const float g = gradient * c.factor;
    m = fmaf(c.beta1, m, __fmul_rn(c.one_minus_beta1, g));
    v = fmaf(c.beta2, v, __fmul_rn(__fmul_rn(c.one_minus_beta2, g), g));
    const float step = __fdiv_rn(__fmul_rn(m, c.inverse_bias1), __fadd_rn(sqrtf(__fmul_rn(v, c.inverse_bias2)), c.eps));
    w = fmaf(-c.lr, fmaf(decays ? c.decay : 0.0f, w, step), w);
}

// Copy is float where there is no compute copy.
template <typename Copy>
struct Args {
    float *weights, *m, *v;
    const float* gradient;
    Copy* compute;
    const StepBlock* step;
    int64_t n, head;  // all elements; those before the first chunk
    const uint8_t* decay_blocks;
    __device__ bool decays_at(int64_t i) const { return decay_blocks == nullptr || decay_blocks[i / kDecayBlock] != 0; }
};

template <typename Copy, int kSize>
__device__ void store_compute(Copy* compute, const float (&weights)[kSize]) {
    if constexpr (kSize == 4) {
        // Four elements are 8 bytes, half of what Vec packs.
        const float eight[8] = {weights[0], weights[1], weights[2], weights[3]};
        const uint4 raw = Vec<Copy>::pack(eight).raw;
        *reinterpret_cast<uint2*>(compute) = make_uint2(raw.x, raw.y);
    } else {
        *compute = from_float<Copy>(weights[0]);
    }
}

template <typename Copy, bool kIsVector>
__global__ void __launch_bounds__(kThreads) adamw_kernel(const __grid_constant__ Args<Copy> a) {
    using F = Chunk<float, kIsVector>;
    constexpr bool kHasCopy = sizeof(Copy) == 2;
    if (!a.step->decision.apply) return;
    __shared__ Coefficients coefficients;
    if (threadIdx.x == 0) coefficients = coefficients_of(*a.step);
    __syncthreads();
    const Coefficients c = coefficients;
    const int64_t num_chunks = (a.n - a.head) / F::kSize;
    const int64_t first = int64_t{blockIdx.x} * (kUnroll * kThreads) + threadIdx.x;
    typename F::Packed packed[kUnroll][4];
    bool decays[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
        if (first + u * kThreads >= num_chunks) continue;
        const int64_t i = a.head + (first + u * kThreads) * F::kSize;
        packed[u][0] = F::fetch(a.weights + i);
        packed[u][1] = F::fetch(a.m + i);
        packed[u][2] = F::fetch(a.v + i);
        packed[u][3] = F::fetch(a.gradient + i);
        decays[u] = a.decays_at(i);  // a chunk lies in one block: see launch_adamw()
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
        if (first + u * kThreads >= num_chunks) continue;
        const int64_t i = a.head + (first + u * kThreads) * F::kSize;
        float w[F::kSize], m[F::kSize], v[F::kSize], g[F::kSize];
        F::unpack(packed[u][0], w);
        F::unpack(packed[u][1], m);
        F::unpack(packed[u][2], v);
        F::unpack(packed[u][3], g);
#pragma unroll
        for (int e = 0; e < F::kSize; ++e) update(w[e], m[e], v[e], g[e], c, decays[u]);
        F::store(a.weights + i, w);
        F::store(a.m + i, m);
        F::store(a.v + i, v);
        if constexpr (kHasCopy) store_compute(a.compute + i, w);
    }
    if (kIsVector && blockIdx.x == 0) {
        const int64_t tail = a.head + num_chunks * F::kSize + threadIdx.x;
        for (const int64_t i : {threadIdx.x < a.head ? int64_t{threadIdx.x} : a.n, tail}) {
            if (i >= a.n) continue;
            float w[1] = {a.weights[i]};
            update(w[0], a.m[i], a.v[i], a.gradient[i], c, a.decays_at(i));
            a.weights[i] = w[0];
            if constexpr (kHasCopy) store_compute(a.compute + i, w);
        }
    }
}

// Returns the number of elements before the next 16-byte boundary.
int64_t elements_to_boundary(const float* data, int64_t n) {
    const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(data) / sizeof(float) % 4);
    return std::min(n, (4 - past) % 4);
}

template <typename Copy>
void launch_adamw(const Device& device, const AdamW& a, Copy* compute) {
    Args<Copy> args = {.weights = a.weights.get<float>(),
                       .m = a.m.get<float>(),
                       .v = a.v.get<float>(),
                       .gradient = a.gradient.get<float>(),
                       .compute = compute,
                       .step = a.step,
                       .n = a.weights.shape[0],
                       .head = 0,
                       .decay_blocks = a.decay_blocks ? a.decay_blocks.get<uint8_t>() : nullptr};
    const int64_t head = elements_to_boundary(args.weights, args.n);
    const bool fits = is_aligned(args.weights + head) && is_aligned(args.m + head) && is_aligned(args.v + head) &&
                      is_aligned(args.gradient + head) && (compute == nullptr || is_aligned(compute + head, 8)) &&
                      (head == 0 || args.decay_blocks == nullptr);
    if (fits) args.head = head;
    const int64_t chunks = fits ? (args.n - head) / 4 : args.n;
    const int64_t blocks = std::max<int64_t>(1, (chunks + kUnroll * kThreads - 1) / (kUnroll * kThreads));
    CHECK(blocks < (int64_t{1} << 31), "adamw on CUDA: ", args.n, " elements in one call, at most 2^40");
    const auto kernel = fits ? adamw_kernel<Copy, true> : adamw_kernel<Copy, false>;
    kernel<<<static_cast<uint32_t>(blocks), kThreads, 0, device.context().stream>>>(args);
    CUDA_CHECK_LAUNCH("adamw");
}

// ---- The norm ----

// The grid of each gradient is fixed, so that the order of the sum, and with it the bits, are the same on every GPU. It
// is eight blocks on each of 128 multiprocessors.
constexpr int kNormBlocks = kGradientNormBlocks;
constexpr int kNormUnroll = 4;

// The gradients of one launch. They travel in the launch itself, whose parameters may take 4 KiB.
struct NormArgs {
    static constexpr int kMost = 64;
    struct {
        const float* gradient;
        int64_t n;
        int head;
    } parts[kMost];
};
static_assert(sizeof(NormArgs) <= 4000);

// partial (gradients, kNormBlocks): each row of blocks (blockIdx.y) has a gradient.
__global__ void __launch_bounds__(kThreads) gradient_norm_kernel(double* partial, const __grid_constant__ NormArgs a) {
    using V = Vec<float>;
    __shared__ double scratch[kWarpSize];
    const float* const gradient = a.parts[blockIdx.y].gradient;
    const int64_t n = a.parts[blockIdx.y].n, head = a.parts[blockIdx.y].head;
    const int64_t num_vectors = (n - head) / V::kSize, stride = int64_t{kNormBlocks} * kThreads;
    const float* const vectors = gradient + head;
    double sums[V::kSize] = {};
    const auto add = [&](const V& vector) {
        float values[V::kSize];
        vector.unpack(values);
#pragma unroll
        for (int e = 0; e < V::kSize; ++e) sums[e] = fma(double{values[e]}, double{values[e]}, sums[e]);
    };
    int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    for (; index + (kNormUnroll - 1) * stride < num_vectors; index += kNormUnroll * stride) {
        V loaded[kNormUnroll];
#pragma unroll
        for (int u = 0; u < kNormUnroll; ++u) loaded[u] = load_streaming(vectors, index + u * stride);
#pragma unroll
        for (int u = 0; u < kNormUnroll; ++u) add(loaded[u]);
    }
    for (; index < num_vectors; index += stride) add(load_streaming(vectors, index));
    if (blockIdx.x == 0) {
        const int64_t tail = head + num_vectors * V::kSize + threadIdx.x;
        if (threadIdx.x < head) sums[0] = fma(double{gradient[threadIdx.x]}, double{gradient[threadIdx.x]}, sums[0]);
        if (tail < n) sums[1] = fma(double{gradient[tail]}, double{gradient[tail]}, sums[1]);
    }
    const double sum = block_sum((sums[0] + sums[1]) + (sums[2] + sums[3]), scratch);
    if (threadIdx.x == 0) partial[int64_t{blockIdx.y} * kNormBlocks + blockIdx.x] = sum;
}

// One block: thread i has the i-th partial sum of each gradient. As block_sum() does, warps add up their lanes, and
// then one thread the warps; here each of 32 threads does so for a gradient of its own, and the first adds up the
// gradients.
__global__ void __launch_bounds__(kNormBlocks)
    add_partials_kernel(StepBlock* step, const double* partial, int num_gradients) {
    constexpr int kWarps = kNormBlocks / kWarpSize;
    __shared__ double of_warps[kWarpSize][kWarps + 1];  // (gradients, warps)
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    double total = step->sums.squared_norm;
    for (int first = 0; first < num_gradients; first += kWarpSize) {
        const int count = min(kWarpSize, num_gradients - first);
        for (int i = 0; i < count; ++i) {
            const double sum = group_sum<kWarpSize>(partial[int64_t{first + i} * kNormBlocks + threadIdx.x]);
            if (lane == 0) of_warps[i][warp] = sum;
        }
        __syncthreads();
        if (warp == 0) {
            double sum = 0;
            for (int w = 0; lane < count && w < kWarps; ++w) sum += of_warps[lane][w];
            for (int i = 0; i < count; ++i) total += __shfl_sync(0xffffffffu, sum, i);
        }
        __syncthreads();  // before the next gradients' sums overwrite these
    }
    if (threadIdx.x == 0) step->sums.squared_norm = total;
}

}  // namespace

void adamw_cuda(const Device& device, const AdamW& a) {
    if (a.weights.shape[0] == 0) return;
    if (!a.compute || a.compute.data == a.weights.data)
        launch_adamw<float>(device, a, nullptr);
    else if (a.compute.dtype == DType::bf16)
        launch_adamw(device, a, a.compute.get<__nv_bfloat16>());
    else
        launch_adamw(device, a, a.compute.get<__half>());
}

void gradient_norm_cuda(const Device& device, const GradientNorm& a) {
    const cudaStream_t stream = device.context().stream;
    auto* const partial = static_cast<double*>(a.workspace.data);  // (gradients, kNormBlocks)
    const auto num_gradients = static_cast<int>(a.gradients.size());
    for (int first = 0; first < num_gradients; first += NormArgs::kMost) {
        const int count = std::min(NormArgs::kMost, num_gradients - first);
        NormArgs args{};
        for (int i = 0; i < count; ++i) {
            const Tensor& of = a.gradients[static_cast<size_t>(first + i)];
            const float* const gradient = of.get<float>();
            const int64_t n = of.shape[0];
            args.parts[i] = {gradient, n, static_cast<int>(elements_to_boundary(gradient, n))};
        }
        gradient_norm_kernel<<<dim3(kNormBlocks, static_cast<uint32_t>(count)), kThreads, 0, stream>>>(
            partial + int64_t{first} * kNormBlocks, args);
        CUDA_CHECK_LAUNCH("gradient_norm");
    }
    add_partials_kernel<<<1, kNormBlocks, 0, stream>>>(a.step, partial, num_gradients);
    CUDA_CHECK_LAUNCH("gradient_norm (sum of the blocks)");
}

}  // namespace ingot
