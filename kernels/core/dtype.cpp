#include "kernels/core/dtype.h"

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

}  // namespace ingot
