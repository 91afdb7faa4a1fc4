#include <cmath>

#include "kernels/core/parallel.h"
#include "kernels/rope.h"

namespace ingot {

namespace {

template <typename T>
void rotate_cpu(const Rope& a, T direction) {
    const int64_t N = a.x.shape[0], H = a.x.shape[1], half = a.x.shape[2] / 2;
    const int32_t* const positions = a.positions.get<int32_t>();
    const T* const table = a.table.get<T>();
    T* const x = a.x.get<T>();
    for (int64_t n = 0; n < N; ++n)
        CHECK(positions[n] >= 0 && positions[n] < a.table.shape[0], "rope: position ", positions[n], " of token ", n,
              " is outside the table of ", a.table.shape[0]);
#pragma omp parallel for schedule(static) if (is_worth_threads(2 * N * H * half))
    for (int64_t n = 0; n < N; ++n) {
        const T* const cosine = table + positions[n] * 2 * half;
        const T* const sine = cosine + half;
        for (int64_t h = 0; h < H; ++h) {
            T* const head = x + n * a.x.stride[0] + h * a.x.stride[1];
#pragma omp simd
            for (int64_t d = 0; d < half; ++d) {
                const T first = head[d], second = head[d + half], s = direction * sine[d];
                head[d] = first * cosine[d] - second * s;
                head[d + half] = second * cosine[d] + first * s;
            }
        }
    }
}

void rotate(const Device& device, const Rope& a, int direction) {
    CHECK(a.x.rank == 3 && a.x.shape[2] % 2 == 0, "rope: x is ", a.x.describe(),
          ", it must be (N, H, HS) with an even HS");
    check_output_view("rope", "x", a.x, {a.x.shape[0], a.x.shape[1], a.x.shape[2]}, a.x.dtype, device.kind());
    check_tensor("rope", "positions", a.positions, {a.x.shape[0]}, DType::i32, device.kind());
    check_tensor("rope", "table", a.table, {a.table.shape[0], a.x.shape[2]}, accumulation_dtype(a.x.dtype),
                 device.kind());
    if (!device.is_cpu()) return rope_cuda(device, a, direction);
    for_cpu_scalar(a.x.dtype, "rope", [&](auto scalar) {
        using T = decltype(scalar);
        rotate_cpu<T>(a, static_cast<T>(direction));
    });
}

}  // namespace

void rope_forward(const Device& device, const Rope& a) {
    rotate(device, a, 1);
}
void rope_backward(const Device& device, const Rope& a) {
    rotate(device, a, -1);
}

double rope_stretch_of(double frequency, const RopeStretch& s) {
    constexpr double kTwoPi = 6.283185307179586;
    const double wavelength = kTwoPi / frequency;
    if (wavelength < s.original_context / s.high_freq_factor) return 1;
    if (wavelength > s.original_context / s.low_freq_factor) return s.factor;
    // 0 where fully stretched, 1 where untouched.
    const double share =
        (s.original_context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
    return 1 / ((1 - share) / s.factor + share);
}

void fill_rope_table(const Tensor& table, double theta, const RopeStretch* stretch) {
    CHECK(table.rank == 2 && table.shape[1] % 2 == 0, "fill_rope_table: table is ", table.describe(),
          ", it must be (T, HS) with an even HS");
    check_tensor("fill_rope_table", "table", table, {table.shape[0], table.shape[1]}, table.dtype, DeviceKind::cpu);
    const int64_t T = table.shape[0], half = table.shape[1] / 2;
    for_cpu_scalar(table.dtype, "rope table", [&](auto scalar) {
        using S = decltype(scalar);
        S* const out = table.get<S>();
        for (int64_t d = 0; d < half; ++d) {
            double frequency = std::pow(theta, -static_cast<double>(d) / static_cast<double>(half));
            if (stretch != nullptr) frequency /= rope_stretch_of(frequency, *stretch);
            for (int64_t t = 0; t < T; ++t) {
                const double angle = static_cast<double>(t) * frequency;
                out[t * 2 * half + d] = static_cast<S>(std::cos(angle));
                out[t * 2 * half + half + d] = static_cast<S>(std::sin(angle));
            }
        }
    });
}

}  // namespace ingot
