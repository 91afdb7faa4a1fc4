#include <algorithm>
#include <cmath>

#include "kernels/fp8.h"

namespace ingot {

namespace {

template <typename Format>
Format to_fp8(float value);
template <>
e4m3 to_fp8<e4m3>(float value) {
    return to_e4m3(value);
}
template <>
e5m2 to_fp8<e5m2>(float value) {
    return to_e5m2(value);
}

template <typename Format, typename T>
void quantize(const Fp8Quantize& a) {
    const int64_t N = a.in.shape[0], W = a.in.shape[1];
    const T* const in = a.in.get<T>();
    Format* const rows = a.out.rows ? a.out.rows.get<Format>() : nullptr;
    Format* const columns = a.out.columns ? a.out.columns.get<Format>() : nullptr;
    Fp8Scale& scale = *a.out.scale;
    for (int64_t n = 0; n < N; ++n)
        for (int64_t w = 0; w < W; ++w) {
            const auto value = static_cast<float>(in[n * W + w]);
            const bool is_finite = std::isfinite(value);
            const Format rounded = to_fp8<Format>(is_finite ? value * scale.quantize : std::nanf(""));
            if (rows != nullptr) rows[n * W + w] = rounded;
            if (columns != nullptr) columns[w * N + n] = rounded;
            if (is_finite)
                scale.largest = std::max(scale.largest, std::fabs(value));
            else
                scale.largest = HUGE_VALF;
        }
}

}  // namespace

void check_fp8_operand(const char* op, const char* name, const Fp8Operand& operand, int64_t rows, int64_t columns,
                       DeviceKind device) {
    CHECK(operand.scale != nullptr && (operand.rows || operand.columns), op, ": ", name, " has no scale or no memory");
    const DType format = operand.format();
    CHECK(format == DType::e4m3 || format == DType::e5m2, op, ": ", name, " is ", name_of(format), ", not fp8");
    CHECK(rows % 16 == 0 && columns % 16 == 0, op, ": ", name, " is (", rows, ", ", columns,
          "), and fp8 goes by multiples of 16");
    if (operand.rows) check_tensor(op, name, operand.rows, {rows, columns}, format, device);
    if (operand.columns) check_tensor(op, name, operand.columns, {columns, rows}, format, device);
}

void fp8_quantize_cpu(const Fp8Quantize& a) {
    for_cpu_scalar(a.in.dtype, "fp8_quantize", [&](auto scalar) {
        using T = decltype(scalar);
        if (a.out.format() == DType::e4m3)
            quantize<e4m3, T>(a);
        else
            quantize<e5m2, T>(a);
    });
}

bool supports_fp8(const Device& device) {
    if (device.is_cpu()) return false;
    return device.is_planned() || supports_fp8_cuda(device);
}

void fp8_quantize(const Device& device, const Fp8Quantize& a) {
    CHECK(a.in.rank == 2, "fp8_quantize: in is ", a.in.describe(), ", it must be (N, W)");
    const int64_t N = a.in.shape[0], W = a.in.shape[1];
    check_tensor("fp8_quantize", "in", a.in, {N, W}, a.in.dtype, device.kind());
    check_fp8_operand("fp8_quantize", "out", a.out, N, W, device.kind());
    if (!device.is_cpu()) return fp8_quantize_cuda(device, a);
    fp8_quantize_cpu(a);
}

void fp8_update_scales(const Device& device, const Fp8UpdateScales& a) {
    CHECK(a.count >= 0 && (a.scales != nullptr || a.count == 0), "fp8_update_scales of ", a.count, " scales");
    if (!device.is_cpu()) return fp8_update_scales_cuda(device, a);
    for (int64_t i = 0; i < a.count; ++i) fp8_update_scale(a.scales[i], fp8_largest(a.format));
}

}  // namespace ingot
