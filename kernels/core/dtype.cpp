#include "kernels/core/dtype.h"

#include <algorithm>
#include <cmath>

namespace ingot {

f16 to_f16(float value) {
    uint32_t u;
    std::memcpy(&u, &value, sizeof u);
    const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
    const uint32_t magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
    if (magnitude >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 2^16 and above
    if (magnitude < 0x38800000u) {
        // Below 2^-14 the result is subnormal: adding 0.5 aligns its last bit (2^-24) with that of a float in [0.5, 1),
        // so that the addition itself rounds to nearest even.
        float absolute;
        std::memcpy(&absolute, &magnitude, sizeof absolute);
        const float shifted = absolute + 0.5f;
        uint32_t bits;
        std::memcpy(&bits, &shifted, sizeof bits);
        return {static_cast<uint16_t>(sign | (bits - 0x3f000000u))};
    }
    // Rebias the exponent (127 -> 15), then round the 13 bits that fall away. A carry runs into the exponent as it
    // should, up to infinity.
    uint32_t rounded = magnitude - (112u << 23);
    rounded += 0xfffu + ((rounded >> 13) & 1u);
    return {static_cast<uint16_t>(sign | (rounded >> 13))};
}

float to_float(f16 value) {
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
    const uint32_t exponent = (value.bits >> 10) & 0x1fu;
    const uint32_t fraction = value.bits & 0x3ffu;
    float result;
    if (exponent == 0) {
        result = static_cast<float>(fraction) * 0x1p-24f;
        return sign != 0 ? -result : result;
    }
    const uint32_t u = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112u) << 23) | (fraction << 13);
    std::memcpy(&result, &u, sizeof result);
    return result;
}

namespace {

// A format of 8 bits: its numbers from 2^kMinExponent on have kMantissa bits after the point, those below the same last
// bit.
template <int kMantissa, int kMinExponent>
uint8_t encode(float value, float largest) {
    const uint8_t sign = std::signbit(value) ? 0x80 : 0;
    if (std::isnan(value)) return 0x7f;  // in both formats
    const float magnitude = std::min(std::fabs(value), largest);
    const int exponent = magnitude > 0 ? std::max(std::ilogb(magnitude), kMinExponent) : kMinExponent;
    const double scaled = std::ldexp(static_cast<double>(magnitude), kMantissa - exponent);  // exact
    const int units = static_cast<int>(std::nearbyint(scaled));
    // A carry runs into the exponent as it should.
    const int bits = ((exponent - kMinExponent) << kMantissa) + units;
    return static_cast<uint8_t>(sign | bits);
}

template <int kMantissa, int kMinExponent>
float decode(uint8_t bits) {
    const int field = (bits & 0x7f) >> kMantissa, mantissa = bits & ((1 << kMantissa) - 1);
    const int units = field == 0 ? mantissa : mantissa | 1 << kMantissa;
    const float magnitude = std::ldexp(static_cast<float>(units), std::max(field, 1) - 1 + kMinExponent - kMantissa);
    return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

}  // namespace

e4m3 to_e4m3(float value) {
    return {encode<3, -6>(value, kLargestE4m3)};
}

e5m2 to_e5m2(float value) {
    return {encode<2, -14>(value, kLargestE5m2)};
}

float to_float(e4m3 value) {
    if ((value.bits & 0x7f) == 0x7f) return std::nanf("");
    return decode<3, -6>(value.bits);
}

float to_float(e5m2 value) {
    const int magnitude = value.bits & 0x7f;
    if (magnitude > 0x7c) return std::nanf("");
    if (magnitude == 0x7c) return std::copysign(HUGE_VALF, value.bits & 0x80 ? -1.0f : 1.0f);
    return decode<2, -14>(value.bits);
}

}  // namespace ingot
