// The clock for measuring durations.
#pragma once

#include <chrono>

namespace ingot {

// Returns the seconds of a steady clock, whose zero has no meaning: subtract two of them.
inline double seconds_now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace ingot
