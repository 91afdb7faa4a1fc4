// Elementary functions of the CPU twins, written so that loops over them vectorise.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ingot {

// Returns e^x in fp32: x = n ln 2 + r, |r| <= ln 2 / 2, and a minimax polynomial of degree 6 for e^r (error below 2
// ulp). Below -87.3 the result is 0, above 88.7 infinity; NaN stays NaN. No branch, no table: `omp simd` loops stay
// vector code.
inline float fast_exp(float x) {
    constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
    const float clamped = x > 88.8f ? 88.8f : (x < -87.4f ? -87.4f : x);
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low mantissa bits.
    const float shifted = std::fma(clamped, kLog2e, 12582912.0f);
    const float n = shifted - 12582912.0f;
    const float r = std::fma(-n, kLn2Low, std::fma(-n, kLn2High, clamped));
    float p = 1.9875691500e-4f;
    p = std::fma(p, r, 1.3981999507e-3f);
    p = std::fma(p, r, 8.3334519073e-3f);
    p = std::fma(p, r, 4.1665795894e-2f);
    p = std::fma(p, r, 1.6666665459e-1f);
    p = std::fma(p, r, 5.0000001201e-1f);
    p = std::fma(p * r, r, r) + 1.0f;
    // Scale by 2^n in two steps, so that n = 128 does not overflow the exponent field before the result does.
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    const int32_t exponent = bits - 0x4b400000;
    const int32_t half = exponent >> 1;
    const int32_t first_bits = (half + 127) << 23, second_bits = (exponent - half + 127) << 23;
    float first, second;
    std::memcpy(&first, &first_bits, sizeof first);
    std::memcpy(&second, &second_bits, sizeof second);
    const float result = p * first * second;
    return x < -87.3f ? 0.0f : (x != x ? x : result);
}

// The oracle in double precision takes the exact function.
inline double fast_exp(double x) {
    return std::exp(x);
}

}  // namespace ingot
