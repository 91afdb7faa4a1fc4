// Element types, and the host's conversions between float and the formats of 16 and 8 bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/core/check.h"

namespace ingot {

enum class DType : uint8_t { f64, f32, bf16, f16, i32, u8, e4m3, e5m2 };

constexpr int64_t size_of(DType dtype) {
    switch (dtype) {
        case DType::f64:
            return 8;
        case DType::f32:
        case DType::i32:
            return 4;
        case DType::bf16:
        case DType::f16:
            return 2;
        case DType::u8:
        case DType::e4m3:
        case DType::e5m2:
            return 1;
    }
    return 0;
}

constexpr const char* name_of(DType dtype) {
    switch (dtype) {
        case DType::f64:
            return "fp64";
        case DType::f32:
            return "fp32";
        case DType::bf16:
            return "bf16";
        case DType::f16:
            return "fp16";
        case DType::i32:
            return "int32";
        case DType::u8:
            return "uint8";
        case DType::e4m3:
            return "e4m3";
        case DType::e5m2:
            return "e5m2";
    }
    return "?";
}

// Statistics, losses and gradients of weights are kept in fp32; the double-precision oracle keeps them in fp64.
constexpr DType accumulation_dtype(DType dtype) {
    return dtype == DType::f64 ? DType::f64 : DType::f32;
}

// Types of 16 and 8 bits are for storage: arithmetic is in float.
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};
// The two fp8 formats (Micikevicius et al. 2022, "FP8 formats for deep learning", table 1). e4m3 has 3 bits of mantissa
// and no infinity; e5m2 has 2 and the exponents of fp16.
struct e4m3 {
    uint8_t bits;
};
struct e5m2 {
    uint8_t bits;
};
constexpr float kLargestE4m3 = 448, kLargestE5m2 = 57344;

// Round to nearest even; NaN stays NaN (quiet), overflow becomes infinity.
inline bf16 to_bf16(float value) {
    uint32_t u;
    std::memcpy(&u, &value, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
    u += 0x7fffu + ((u >> 16) & 1u);
    return {static_cast<uint16_t>(u >> 16)};
}

inline float to_float(bf16 value) {
    const uint32_t u = static_cast<uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &u, sizeof result);
    return result;
}

// IEEE binary16, round to nearest even, subnormals kept.
f16 to_f16(float value);
float to_float(f16 value);

// Round to nearest even, subnormals kept; beyond the largest number it is taken, for infinity too. NaN stays NaN.
e4m3 to_e4m3(float value);
e5m2 to_e5m2(float value);
float to_float(e4m3 value);
float to_float(e5m2 value);

// The DType of a C++ type. It is declared for element types alone, so that Tensor::get<T>() of another one does not
// compile.
template <typename T>
constexpr DType kDTypeOf = T::is_no_element_type;
template <>
constexpr DType kDTypeOf<double> = DType::f64;
template <>
constexpr DType kDTypeOf<float> = DType::f32;
template <>
constexpr DType kDTypeOf<bf16> = DType::bf16;
template <>
constexpr DType kDTypeOf<f16> = DType::f16;
template <>
constexpr DType kDTypeOf<e4m3> = DType::e4m3;
template <>
constexpr DType kDTypeOf<e5m2> = DType::e5m2;
template <>
constexpr DType kDTypeOf<int32_t> = DType::i32;
template <>
constexpr DType kDTypeOf<uint8_t> = DType::u8;

// Calls function(T{}) with the scalar type of the CPU twins: float is the device, double the oracle.
template <typename Function>
void for_cpu_scalar(DType dtype, const char* op, Function&& function) {
    CHECK(dtype == DType::f32 || dtype == DType::f64, op, " on the CPU runs in fp32 or fp64, not in ", name_of(dtype),
          ": convert the tensors first");
    if (dtype == DType::f32)
        function(float{});
    else
        function(double{});
}

}  // namespace ingot
