#include "src/train/peak_rate.h"

namespace ingot {

namespace {

// NVIDIA's data sheets; without sparsity, and for GeForce cards with sums in fp32 (half the rate of fp16 sums). The
// first that the device's name contains counts, so that the longer of two names stands first.
constexpr PeakRate kPeaks[] = {
    {"B200", 2250e12},    {"GH200", 989.4e12}, {"H200", 989.4e12},     {"H100 PCIe", 756e12}, {"H100 NVL", 835e12},
    {"H100", 989.4e12},   {"H800", 989.4e12},  {"H20", 148e12},        {"A100", 312e12},      {"A800", 312e12},
    {"A40", 149.7e12},    {"A30", 165e12},     {"A10G", 70e12},        {"A10", 125e12},       {"L40S", 362e12},
    {"L40", 181e12},      {"L4", 121e12},      {"6000 Ada", 364.2e12}, {"A6000", 154.8e12},   {"5090", 209.5e12},
    {"4090 D", 147.1e12}, {"4090", 165.2e12},  {"4080", 97.5e12},      {"3090 Ti", 80e12},    {"3090", 71.2e12},
    {"3080 Ti", 68.2e12},
};

}  // namespace

std::optional<PeakRate> peak_rate(const std::string& device_name, DType dtype) {
    if (dtype != DType::bf16 && dtype != DType::f16) return std::nullopt;
    for (const PeakRate& peak : kPeaks)
        if (device_name.find(peak.name) != std::string::npos) return peak;
    return std::nullopt;
}

}  // namespace ingot
