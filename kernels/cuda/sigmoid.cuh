#pragma once

namespace ingot {

// 1 / (1 + e^-x). In 16-bit types the fast exponential and reciprocal (ex2.approx and rcp.approx, a few fp32 ulps) lie
// far below the rounding of the store, and the exact ones would cost more time than the memory does. For x below about
// -88 e^-x is infinite and the result 0, as it should be. Subnormal results, which do not matter beside 1, are taken
// for 0, without the instructions that would keep them.
template <typename T>
__device__ float sigmoid(float x) {
    if constexpr (sizeof(T) == 4) {
        return 1.0f / (1.0f + expf(-x));
    } else {
        float power, result;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.44269504f));
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1.0f + power));
        return result;
    }
}

}  // namespace ingot
