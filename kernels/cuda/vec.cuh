// CUDA's element types, and accesses of 16 bytes, the widest that one thread can make: 8 elements of a 16-bit type or 4
// of fp32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_pipeline.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/core/tensor.h"

static_assert(__cplusplus >= 202002L,
              "CUDA files need C++20: with CMake before 3.26 set CMAKE_CUDA20_STANDARD_COMPILE_OPTION to -std=c++20");

namespace ingot {

// Tensor::get<__nv_bfloat16>() is the storage of bf16 as kernels see it.
template <>
constexpr DType kDTypeOf<__nv_bfloat16> = DType::bf16;
template <>
constexpr DType kDTypeOf<__half> = DType::f16;
template <>
constexpr DType kDTypeOf<__nv_fp8_e4m3> = DType::e4m3;
template <>
constexpr DType kDTypeOf<__nv_fp8_e5m2> = DType::e5m2;

// Calls function(T{}) with the element type of a CUDA kernel.
template <typename Function>
void for_cuda_type(DType dtype, const char* op, Function&& function) {
    switch (dtype) {
        case DType::f32:
            return function(float{});
        case DType::bf16:
            return function(__nv_bfloat16{});
        case DType::f16:
            return function(__half{});
        default:
            CHECK(false, op, " on CUDA runs in fp32, bf16 or fp16, not in ", name_of(dtype));
    }
}

__device__ inline float to_float(float value) {
    return value;
}
__device__ inline float to_float(__nv_bfloat16 value) {
    return __bfloat162float(value);
}
__device__ inline float to_float(__half value) {
    return __half2float(value);
}

// Round to nearest even.
template <typename T>
__device__ T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
    return value;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}
template <>
__device__ inline __half from_float<__half>(float value) {
    return __float2half_rn(value);
}
// These take the largest number where a value is beyond it.
template <>
__device__ inline __nv_fp8_e4m3 from_float<__nv_fp8_e4m3>(float value) {
    return __nv_fp8_e4m3(value);
}
template <>
__device__ inline __nv_fp8_e5m2 from_float<__nv_fp8_e5m2>(float value) {
    return __nv_fp8_e5m2(value);
}

// 16 bytes of T, in four registers as long as they are not unpacked.
template <typename T>
struct Vec {
    static constexpr int kSize = 16 / static_cast<int>(sizeof(T));
    uint4 raw;

    __device__ void unpack(float (&values)[kSize]) const {
        const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
        if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (int i = 0; i < 4; ++i) values[i] = __uint_as_float(words[i]);
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float2 pair = unpack_pair(words[i]);
                values[2 * i] = pair.x;
                values[2 * i + 1] = pair.y;
            }
        }
    }

    __device__ static Vec pack(const float (&values)[kSize]) {
        uint32_t words[4];
        if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (int i = 0; i < 4; ++i) words[i] = __float_as_uint(values[i]);
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) words[i] = pack_pair(values[2 * i], values[2 * i + 1]);
        }
        return {make_uint4(words[0], words[1], words[2], words[3])};
    }

    // Makes the compiler unpack the value again where it is used next, instead of keeping the unpacked floats alive,
    // which take twice the registers (of 16-bit types).
    __device__ void stay_packed() {
        asm volatile("" : "+r"(raw.x), "+r"(raw.y), "+r"(raw.z), "+r"(raw.w));
    }

    __device__ static Vec zero() {
        return {make_uint4(0, 0, 0, 0)};
    }
    __device__ static Vec filled(float value) {
        float values[kSize];
#pragma unroll
        for (int i = 0; i < kSize; ++i) values[i] = value;
        return pack(values);
    }

    // Returns the larger of each two elements; a NaN only where both are.
    __device__ static Vec max(Vec a, Vec b) {
        return {make_uint4(max_of_words(a.raw.x, b.raw.x), max_of_words(a.raw.y, b.raw.y),
                           max_of_words(a.raw.z, b.raw.z), max_of_words(a.raw.w, b.raw.w))};
    }

  private:
    __device__ static float2 unpack_pair(uint32_t word) {
        if constexpr (kDTypeOf<T> == DType::bf16) {
            // A bf16 is the upper half of a float.
            return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
        } else {
            const __half2_raw pair = {static_cast<unsigned short>(word), static_cast<unsigned short>(word >> 16)};
            return __half22float2(__half2(pair));
        }
    }
    __device__ static uint32_t max_of_words(uint32_t a, uint32_t b) {
        if constexpr (sizeof(T) == 4) {
            return __float_as_uint(fmaxf(__uint_as_float(a), __uint_as_float(b)));
        } else {
            using Pair = std::conditional_t<kDTypeOf<T> == DType::bf16, __nv_bfloat162, __half2>;
            Pair pairs[2];
            memcpy(&pairs[0], &a, sizeof a);
            memcpy(&pairs[1], &b, sizeof b);
            const Pair larger = __hmax2(pairs[0], pairs[1]);
            memcpy(&a, &larger, sizeof a);
            return a;
        }
    }
    __device__ static uint32_t pack_pair(float low, float high) {
        if constexpr (kDTypeOf<T> == DType::bf16) {
            const __nv_bfloat162_raw pair = __floats2bfloat162_rn(low, high);
            return static_cast<uint32_t>(pair.y) << 16 | pair.x;
        } else {
            const __half2_raw pair = __floats2half2_rn(low, high);
            return static_cast<uint32_t>(pair.y) << 16 | pair.x;
        }
    }
};

// Pointers are aligned to 16 bytes; `index` counts vectors.
//
// Loads data that is read once: it is evicted first, so that it does not push weights out of the caches. (It does not
// take the read-only path, since an output may be the same memory.)
template <typename T>
__device__ Vec<T> load_streaming(const T* data, int64_t index) {
    return {__ldcs(reinterpret_cast<const uint4*>(data) + index)};
}

// Loads data that no output of the kernel overlaps, and that is read again and again, such as weights.
template <typename T>
__device__ Vec<T> load_constant(const T* data, int64_t index) {
    return {__ldg(reinterpret_cast<const uint4*>(data) + index)};
}

// Starts a copy of 16 bytes into shared memory that no register passes through (cp.async, sm_80 and up).
template <typename T>
__device__ void copy_async(uint4* shared, const T* data, int64_t index) {
    __pipeline_memcpy_async(shared, reinterpret_cast<const uint4*>(data) + index, sizeof(uint4));
}

// Waits until all copies that this thread started have arrived, for this thread to read.
__device__ inline void wait_for_copies() {
    __pipeline_commit();
    __pipeline_wait_prior(0);
}

template <typename T>
__device__ void store(T* data, int64_t index, Vec<T> value) {
    reinterpret_cast<uint4*>(data)[index] = value.raw;
}

// kSize consecutive elements: 16 bytes, or a single one where a pointer, stride or width is not aligned.
template <typename T, bool kIsVector>
struct Chunk {
    static constexpr int kSize = kIsVector ? Vec<T>::kSize : 1;
    using Packed = std::conditional_t<kIsVector, Vec<T>, T>;

    __device__ static Packed fetch(const T* data) {
        if constexpr (kIsVector)
            return load_streaming(data, 0);
        else
            return *data;
    }
    __device__ static Packed fetch_constant(const T* data) {
        if constexpr (kIsVector)
            return load_constant(data, 0);
        else
            return __ldg(data);
    }
    __device__ static void put(T* data, Packed value) {
        if constexpr (kIsVector)
            ingot::store(data, 0, value);
        else
            *data = value;
    }
    __device__ static void unpack(Packed packed, float (&values)[kSize]) {
        if constexpr (kIsVector)
            packed.unpack(values);
        else
            values[0] = to_float(packed);
    }
    __device__ static void load(const T* data, float (&values)[kSize]) { unpack(fetch(data), values); }
    __device__ static void store(T* data, const float (&values)[kSize]) {
        if constexpr (kIsVector)
            put(data, Vec<T>::pack(values));
        else
            put(data, from_float<T>(values[0]));
    }
};

// kSize consecutive floats, accessed 16 bytes at a time if they are that many and aligned.
template <int kSize>
__device__ void load_floats(const float* data, float (&values)[kSize]) {
    if constexpr (kSize % 4 == 0) {
#pragma unroll
        for (int i = 0; i < kSize / 4; ++i) {
            const float4 four = reinterpret_cast<const float4*>(data)[i];
            values[4 * i] = four.x, values[4 * i + 1] = four.y, values[4 * i + 2] = four.z, values[4 * i + 3] = four.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < kSize; ++i) values[i] = data[i];
    }
}
template <int kSize>
__device__ void store_floats(float* data, const float (&values)[kSize]) {
    if constexpr (kSize % 4 == 0) {
#pragma unroll
        for (int i = 0; i < kSize / 4; ++i)
            reinterpret_cast<float4*>(data)[i] =
                make_float4(values[4 * i], values[4 * i + 1], values[4 * i + 2], values[4 * i + 3]);
    } else {
#pragma unroll
        for (int i = 0; i < kSize; ++i) data[i] = values[i];
    }
}

inline bool is_aligned(const void* data, int bytes = 16) {
    return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0;
}

// Calls launch(first, count) over parts of the rows whose chunks, per_row of them in a row, can be counted in 31 bits.
template <typename Launch>
void for_row_parts(const char* op, int64_t rows, int64_t per_row, Launch&& launch) {
    if (rows == 0 || per_row == 0) return;
    constexpr int64_t kMost = (int64_t{1} << 31) - 1;
    CHECK(per_row <= kMost, op, " on CUDA: rows of ", per_row, " elements, at most 2^31 - 1");
    const int64_t most_rows = kMost / per_row;
    for (int64_t first = 0; first < rows; first += most_rows) launch(first, std::min(most_rows, rows - first));
}

}  // namespace ingot
