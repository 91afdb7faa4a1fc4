// Limits how long OpenMP's threads spin at the end of a loop before they sleep.
#pragma once

#include <string>

namespace ingot {

// Call this first in main(). By default a thread of GCC's OpenMP spins for about ten milliseconds and so takes the
// core from other processes: beside a compiler, training fell from 28k to 8k tokens/s, and beside eight busy processes
// from 28k to 0.7k. Unless the user has set OMP_WAIT_POLICY, GOMP_SPINCOUNT or KMP_BLOCKTIME, this sets a count that
// costs nothing on idle cores and starts the program again, because GCC's library reads its settings before main().
// Returns if there is nothing to do, or if the program cannot be started again.
void limit_spinning(char** argv);

// Returns "GOMP_SPINCOUNT=300 KMP_BLOCKTIME=0", or what the user has set, for `./train info`.
std::string describe_waiting_threads();

}  // namespace ingot
