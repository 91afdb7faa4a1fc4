// The clock and the median of measurements.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

namespace ingot {

// Returns the seconds of a steady clock, whose zero has no meaning: subtract two of them.
inline double seconds_now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Returns the median, of an even number of samples the upper of the middle two. There must be at least one.
inline double median(std::vector<double> samples) {
    const auto middle = samples.begin() + static_cast<int64_t>(samples.size() / 2);
    std::nth_element(samples.begin(), middle, samples.end());
    return *middle;
}

}  // namespace ingot
