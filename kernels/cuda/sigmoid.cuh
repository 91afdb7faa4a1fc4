#pragma once

namespace ingot {

// 1 / (1 + e^-x). In 16-bit types the fast exponential and division (ex2.approx and rcp.approx, a few fp32 ulps) lie
// far below the rounding of the store, and the exact ones would cost more time than the memory does. For x below about
// -88 e^-x is infinite and the result 0, as it should be.
template <typename T>
__device__ float sigmoid(float x) {
    if constexpr (sizeof(T) == 4)
        return 1.0f / (1.0f + expf(-x));
    else
        return __fdividef(1.0f, 1.0f + __expf(-x));
}

}  // namespace ingot
