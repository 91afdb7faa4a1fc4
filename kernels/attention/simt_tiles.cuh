// Building blocks of the SIMT attention kernels: tiles in shared memory, and a warp's part of the GEMMs with them.
#pragma once

#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vec.cuh"

namespace ingot::simt {

constexpr int kColumns = 32;  // columns of a tile
constexpr int kWarpRows = 8;  // rows of a tile that a warp has to itself
constexpr int kLaneRows = 2;  // rows of these that a lane has
constexpr int kLaneColumns = 4;

// ---- Tiles in shared memory ----

// Rows of a tile are HS elements, then four of padding: eight rows at one d then lie in different banks, 16 bytes each.
template <int HS>
constexpr int kPitch = HS + 4;
// Four rows of probabilities, at one column, lie eight banks apart, for writes of 4 and reads of 16 bytes.
constexpr int kProbabilityPitch = kColumns + 8;

template <int HS, int kRows>
using TileOf = float[kRows][kPitch<HS>];

// A (N, heads, HS) view: strides in elements, the last axis contiguous.
template <typename T>
struct View {
    T* data;
    int64_t token_stride, head_stride;
    __device__ T* at(int token, int head) const { return data + token * token_stride + head * head_stride; }
};

// Loads tokens [begin, begin + kRows) of one head into shared memory, as fp32, with zeros from token N on.
template <typename T, int HS, int kRows, bool kIsVector>
__device__ void load_chunks(TileOf<HS, kRows>& tile, const View<const T>& view, int head, int begin, int N) {
    using C = Chunk<T, kIsVector>;
    constexpr int kPerRow = HS / C::kSize;
#pragma unroll 4
    for (int chunk = threadIdx.x; chunk < kRows * kPerRow; chunk += blockDim.x) {
        const int row = chunk / kPerRow, d = chunk % kPerRow * C::kSize;
        float values[C::kSize] = {};
        if (begin + row < N) C::unpack(C::fetch_constant(view.at(begin + row, head) + d), values);
        store_floats<C::kSize>(&tile[row][d], values);
    }
}
template <typename T, int HS, int kRows>
__device__ void load_tile(TileOf<HS, kRows>& tile, const View<const T>& view, int head, int begin, int N,
                          bool is_vector) {
    if (is_vector)
        load_chunks<T, HS, kRows, true>(tile, view, head, begin, N);
    else
        load_chunks<T, HS, kRows, false>(tile, view, head, begin, N);
}

// ---- A warp's part of a tile ----

// A warp has kWarpRows of a block's rows. A lane has rows row(i) of the block; in a GEMM with the tile's columns it has
// columns column(j), and in one whose rows have HS elements those with index 32 f + 4 (lane % 8) + e.
struct Lane {
    int first_row = threadIdx.x / kWarpSize * kWarpRows + threadIdx.x % kWarpSize / 8;
    int eighth = threadIdx.x % 8;
    __device__ int row(int i) const { return first_row + 4 * i; }
    __device__ int column(int j) const { return eighth + 8 * j; }
};
constexpr int kLanesOfARow = 8;
static_assert(kLaneRows * 4 == kWarpRows && kLaneColumns * kLanesOfARow == kColumns);

// dots[i][j] = rows[row(i)] . columns[column(j)]
template <int HS, int kRows>
__device__ void multiply(float (&dots)[kLaneRows][kLaneColumns], const TileOf<HS, kRows>& rows,
                         const TileOf<HS, kColumns>& columns, const Lane& lane) {
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i)
#pragma unroll
        for (int j = 0; j < kLaneColumns; ++j) dots[i][j] = 0;
#pragma unroll 4
    for (int d = 0; d < HS; d += 4) {
        float a[kLaneRows][4], b[kLaneColumns][4];
#pragma unroll
        for (int i = 0; i < kLaneRows; ++i) load_floats<4>(&rows[lane.row(i)][d], a[i]);
#pragma unroll
        for (int j = 0; j < kLaneColumns; ++j) load_floats<4>(&columns[lane.column(j)][d], b[j]);
#pragma unroll
        for (int e = 0; e < 4; ++e)
#pragma unroll
            for (int i = 0; i < kLaneRows; ++i)
#pragma unroll
                for (int j = 0; j < kLaneColumns; ++j) dots[i][j] += a[i][e] * b[j][e];
    }
}

// Makes a warp's probabilities readable to all of its lanes, once all have read the previous ones.
__device__ inline void share_probabilities(float (*probabilities)[kProbabilityPitch],
                                           const float (&values)[kLaneRows][kLaneColumns], const Lane& lane) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i)
#pragma unroll
        for (int j = 0; j < kLaneColumns; ++j) probabilities[lane.row(i)][lane.column(j)] = values[i][j];
    __syncwarp();
}

template <int HS>
using Sums = float[kLaneRows][HS / 32][4];

// accumulator[i] += sum over columns c of p[row(i)][c] * columns[c]
template <int HS>
__device__ void accumulate(Sums<HS>& accumulator, const float (*probabilities)[kProbabilityPitch],
                           const TileOf<HS, kColumns>& columns, const Lane& lane) {
#pragma unroll 2
    for (int c = 0; c < kColumns; c += 4) {
        float w[kLaneRows][4];
#pragma unroll
        for (int i = 0; i < kLaneRows; ++i) load_floats<4>(&probabilities[lane.row(i)][c], w[i]);
#pragma unroll
        for (int u = 0; u < 4; ++u)
#pragma unroll
            for (int f = 0; f < HS / 32; ++f) {
                float values[4];
                load_floats<4>(&columns[c + u][32 * f + 4 * lane.eighth], values);
#pragma unroll
                for (int i = 0; i < kLaneRows; ++i)
#pragma unroll
                    for (int e = 0; e < 4; ++e) accumulator[i][f][e] += w[i][u] * values[e];
            }
    }
}

// Stores a row of the accumulator times `factor`, rounded once.
template <typename T, int HS>
__device__ void store_row(T* data, const float (&accumulator)[HS / 32][4], float factor, const Lane& lane,
                          bool is_vector) {
    struct alignas(4 * sizeof(T)) Four {
        T values[4];
    };
#pragma unroll
    for (int f = 0; f < HS / 32; ++f) {
        Four four;
#pragma unroll
        for (int e = 0; e < 4; ++e) four.values[e] = from_float<T>(accumulator[f][e] * factor);
        T* const to = data + 32 * f + 4 * lane.eighth;
        if (is_vector) {
            *reinterpret_cast<Four*>(to) = four;
        } else {
#pragma unroll
            for (int e = 0; e < 4; ++e) to[e] = four.values[e];
        }
    }
}

}  // namespace ingot::simt
