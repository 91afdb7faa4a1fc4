// Sums over threads in an order that the shape alone fixes: the same bits every time.
#pragma once

namespace ingot {

constexpr int kWarpSize = 32;

// Returns the sum over each aligned group of kLanes lanes, in all of its lanes. All 32 lanes of the warp take part. In
// a butterfly both partners add the same two numbers, so that every lane ends with the same bits.
template <int kLanes, typename T>
__device__ T group_sum(T value) {
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

// Returns the sum over the block (whole warps, at most 32), in all of its threads. `scratch` holds a number per warp.
// The function has one barrier: a caller in a loop alternates between two scratches, so that no thread overwrites what
// another still reads.
template <typename T>
__device__ T block_sum(T value, T* scratch) {
    value = group_sum<kWarpSize>(value);
    if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = value;
    __syncthreads();
    T sum = 0;
    const int num_warps = blockDim.x / kWarpSize;
    for (int warp = 0; warp < num_warps; ++warp) sum += scratch[warp];
    return sum;
}

}  // namespace ingot
