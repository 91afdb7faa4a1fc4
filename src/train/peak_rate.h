// What a GPU's products reach at most, by its data sheet: what MFU is measured against.
#pragma once

#include <optional>
#include <string>

#include "kernels/core/dtype.h"

namespace ingot {

struct PeakRate {
    const char* name;  // the entry of the table: "H100"
    double flops;      // FLOP/s, dense, 16-bit inputs, fp32 sums
};

// By the device's name as CUDA gives it. None for a GPU that the table does not know, and for fp32.
std::optional<PeakRate> peak_rate(const std::string& device_name, DType dtype);

}  // namespace ingot
