// The peak rate of a GPU's GEMMs by its data sheet. MFU is the share of it that a run reaches.
#pragma once

#include <optional>
#include <string>

#include "kernels/core/dtype.h"

namespace ingot {

struct PeakRate {
    const char* name;  // the entry of the table: "H100"
    double flops;      // FLOP/s, dense, 16-bit inputs, fp32 sums
};

// Looks the device up by the name that CUDA gives it. Returns nothing for a GPU that the table does not know, and for
// fp32.
std::optional<PeakRate> peak_rate(const std::string& device_name, DType dtype);

}  // namespace ingot
