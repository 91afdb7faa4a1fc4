// Gradients by finite differences in double precision: the first rung of the ladder, which shares no arithmetic with
// the backward passes that it checks.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/core/tensor.h"

namespace ingot::test {

// An fp64 tensor on the host that `loss` reads, contiguous, and the gradient that a backward pass gave for it.
struct Differentiated {
    std::string name;
    Tensor values;
    std::vector<double> gradient;
};

// d loss / d values by central differences with one Richardson step: the error is O(h^4) and, in double, about 1e-12 of
// loss / h. The values are put back bit for bit.
std::vector<double> numeric_gradient(const std::function<double()>& loss, const Tensor& values);

// Fails the test unless each gradient agrees within a relative L2 error of 1e-6, and three derivatives along random
// directions through all inputs at once within 1e-8. A gradient that is 0 but for rounding (below 1e-9 of the joint
// norm) is compared absolutely.
void check_gradients(const std::function<double()>& loss, const std::vector<Differentiated>& inputs, uint64_t seed = 1);

// The second half of it alone.
void check_directions(const std::function<double()>& loss, const std::vector<Differentiated>& inputs,
                      uint64_t seed = 1);

}  // namespace ingot::test
