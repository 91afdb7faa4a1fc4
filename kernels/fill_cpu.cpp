#include <algorithm>

#include "kernels/core/rng.h"
#include "kernels/fill.h"

namespace ingot {

namespace {

void check_whole(const Device& device, const char* op, const char* name, const Tensor& tensor) {
    CHECK(tensor.is_contiguous() && tensor.device == device.kind(), op, ": ", name, " is ", tensor.describe(),
          ", it must be contiguous and on ", device.name());
}

template <typename T>
void normal_cpu(const FillNormal& a) {
    T* const data = a.out.get<T>();
    const float std = static_cast<float>(a.std);
    const FillRows rows = fill_rows(a.out);
    const int64_t count = a.out.numel();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; ++i)
        data[i / rows.columns * rows.row_stride + i % rows.columns] =
            static_cast<T>(std * random_normal(a.seed, a.stream, static_cast<uint64_t>(i)));
}

template <typename T>
void value_cpu(const FillValue& a) {
    std::fill_n(a.out.get<T>(), a.out.numel(), static_cast<T>(a.value));
}

void round_cpu(const RoundTo& a) {
    const int64_t n = a.in.numel();
    const float* const in = a.in.get<float>();
#pragma omp parallel for
    for (int64_t i = 0; i < n; ++i) {
        if (a.out.dtype == DType::bf16)
            a.out.get<bf16>()[i] = to_bf16(in[i]);
        else
            a.out.get<f16>()[i] = to_f16(in[i]);
    }
}

}  // namespace

FillRows fill_rows(const Tensor& out) {
    if (out.is_contiguous()) return {std::max<int64_t>(out.numel(), 1), 0};
    return {out.shape[1], out.stride[0]};
}

void fill_normal(const Device& device, const FillNormal& a) {
    CHECK((a.out.is_contiguous() || (a.out.rank == 2 && a.out.stride[1] == 1 && !a.out.overlaps_itself())) &&
              a.out.device == device.kind(),
          "fill_normal: out is ", a.out.describe(),
          ", it must be contiguous, or a matrix with contiguous rows that do not overlap, and on ", device.name());
    if (a.out.numel() == 0) return;
    if (!device.is_cpu()) return fill_normal_cuda(device, a);
    for_cpu_scalar(a.out.dtype, "fill_normal", [&](auto scalar) { normal_cpu<decltype(scalar)>(a); });
}

void fill_value(const Device& device, const FillValue& a) {
    check_whole(device, "fill_value", "out", a.out);
    if (!device.is_cpu()) return fill_value_cuda(device, a);
    for_cpu_scalar(a.out.dtype, "fill_value", [&](auto scalar) { value_cpu<decltype(scalar)>(a); });
}

void round_to(const Device& device, const RoundTo& a) {
    check_whole(device, "round_to", "out", a.out);
    check_whole(device, "round_to", "in", a.in);
    CHECK(a.in.dtype == DType::f32 && a.in.numel() == a.out.numel() &&
              (a.out.dtype == DType::bf16 || a.out.dtype == DType::f16),
          "round_to of ", a.in.describe(), " to ", a.out.describe());
    if (!device.is_cpu()) return round_to_cuda(device, a);
    round_cpu(a);
}

}  // namespace ingot
