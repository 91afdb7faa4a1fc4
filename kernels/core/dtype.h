// Element types, and the host's conversions between float and the two 16-bit formats.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/core/check.h"

namespace ingot {

enum class DType : uint8_t { f64, f32, bf16, f16, i32, u8 };

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
    }
    return "?";
}

// Statistics, losses and gradients of weights are kept in fp32; the double-precision oracle keeps them in fp64.
constexpr DType accumulation_dtype(DType dtype) {
    return dtype == DType::f64 ? DType::f64 : DType::f32;
}

// 16-bit types are for storage: arithmetic is in float.
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

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
