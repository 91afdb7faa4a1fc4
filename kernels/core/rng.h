// Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") and
// standard normals by a polynomial inverse CDF (Giles 2010, "Approximating the erfinv function", single precision).
//
// A number is a pure function of (seed, stream, index): the initial model depends neither on the number of GPUs nor on
// threads, and host and device draw the same bits. For that every float operation below is an explicit fma,
// multiplication or square root: operations that IEEE 754 rounds exactly, and that no compiler may contract.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/core/hd.h"

namespace ingot {

struct Philox4 {
    uint32_t x[4];
};

INGOT_HD inline Philox4 philox4x32_10(Philox4 counter, uint64_t key) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * counter.x[0];
        const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * counter.x[2];
        counter = {{static_cast<uint32_t>(p1 >> 32) ^ counter.x[1] ^ k0, static_cast<uint32_t>(p1),
                    static_cast<uint32_t>(p0 >> 32) ^ counter.x[3] ^ k1, static_cast<uint32_t>(p0)}};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return counter;
}

// Returns 32 random bits: word `index % 4` of block `index / 4` of `stream`.
INGOT_HD inline uint32_t random_bits(uint64_t seed, uint64_t stream, uint64_t index) {
    const uint64_t block = index / 4;
    const Philox4 counter = {{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                              static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)}};
    const Philox4 out = philox4x32_10(counter, seed);
    return out.x[index % 4];
}

namespace rng_detail {

INGOT_HD inline float multiply(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;  // the project is compiled with -ffp-contract=off
#endif
}

INGOT_HD inline float fused(float a, float b, float c) {
    return fmaf(a, b, c);
}

INGOT_HD inline float root(float a) {
#ifdef __CUDA_ARCH__
    return __fsqrt_rn(a);
#else
    return std::sqrt(a);
#endif
}

// Not by memcpy, since GCC 11 warns then that the result may be uninitialized.
INGOT_HD inline uint32_t bits_of(float a) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(a);
#else
    return std::bit_cast<uint32_t>(a);
#endif
}

INGOT_HD inline float float_of(uint32_t a) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(a);
#else
    return std::bit_cast<float>(a);
#endif
}

// Returns the natural logarithm of a normal float: x = 2^e * m with m in [sqrt(1/2), sqrt(2)), and the polynomial of
// Cephes logf (Moshier 1989) in m - 1.
INGOT_HD inline float natural_log(float x) {
    uint32_t bits = bits_of(x);
    int32_t exponent = static_cast<int32_t>(bits >> 23) - 126;
    bits = (bits & 0x007fffffu) | 0x3f000000u;
    float m = float_of(bits);  // in [0.5, 1)
    if (m < 0.70710678f) {
        exponent -= 1;
        m = m + m;
    }
    m = m - 1.0f;
    const float square = multiply(m, m);
    float p = 7.0376836292e-2f;
    p = fused(p, m, -1.1514610310e-1f);
    p = fused(p, m, 1.1676998740e-1f);
    p = fused(p, m, -1.2420140846e-1f);
    p = fused(p, m, 1.4249322787e-1f);
    p = fused(p, m, -1.6668057665e-1f);
    p = fused(p, m, 2.0000714765e-1f);
    p = fused(p, m, -2.4999993993e-1f);
    p = fused(p, m, 3.3333331174e-1f);
    p = multiply(multiply(p, m), square);
    p = fused(-0.5f, square, p);
    const float e = static_cast<float>(exponent);
    return fused(e, 0.693359375f, fused(e, -2.12194440e-4f, m + p));
}

}  // namespace rng_detail

// Returns the standard normal whose upper or lower tail probability is (bits31 + 1/2) / 2^32, signed by the top bit.
// Values lie within +-6.34. The relative error of the quantile is below 1e-6, in the last 2^-25 of each tail below
// 4e-4.
INGOT_HD inline float normal_from_bits(uint32_t bits) {
    using namespace rng_detail;
    const float tail = multiply(fused(static_cast<float>(bits & 0x7fffffffu), 1.0f, 0.5f), 0x1p-32f);  // (0, 1/2]
    const float x = fused(-2.0f, tail, 1.0f);  // erf^-1's argument, [0, 1)
    // 1 - x^2 = 4 tail (1 - tail): computed from the tail, so that nothing cancels.
    float w = -natural_log(multiply(multiply(4.0f, tail), fused(-1.0f, tail, 1.0f)));
    float p;
    if (w < 5.0f) {
        w = w - 2.5f;
        p = 2.81022636e-08f;
        p = fused(p, w, 3.43273939e-07f);
        p = fused(p, w, -3.5233877e-06f);
        p = fused(p, w, -4.39150654e-06f);
        p = fused(p, w, 0.00021858087f);
        p = fused(p, w, -0.00125372503f);
        p = fused(p, w, -0.00417768164f);
        p = fused(p, w, 0.246640727f);
        p = fused(p, w, 1.50140941f);
    } else {
        w = root(w) - 3.0f;
        p = -0.000200214257f;
        p = fused(p, w, 0.000100950558f);
        p = fused(p, w, 0.00134934322f);
        p = fused(p, w, -0.00367342844f);
        p = fused(p, w, 0.00573950773f);
        p = fused(p, w, -0.0076224613f);
        p = fused(p, w, 0.00943887047f);
        p = fused(p, w, 1.00167406f);
        p = fused(p, w, 2.83297682f);
    }
    const float z = multiply(multiply(p, x), 1.41421356f);
    return (bits & 0x80000000u) ? -z : z;
}

INGOT_HD inline float random_normal(uint64_t seed, uint64_t stream, uint64_t index) {
    return normal_from_bits(random_bits(seed, stream, index));
}

// Returns the stream number of a name (FNV-1a, 64 bits), so that a tensor's numbers depend on its name alone.
inline uint64_t stream_of(const char* name) {
    uint64_t hash = 0xcbf29ce484222325ull;
    for (; *name != '\0'; ++name) hash = (hash ^ static_cast<uint8_t>(*name)) * 0x100000001b3ull;
    return hash;
}

}  // namespace ingot
