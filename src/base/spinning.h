// How long OpenMP's threads spin at the end of a loop before they sleep.
#pragma once

#include <string>

namespace ingot {

// For the first line of main(). By default a thread of GCC's OpenMP spins for about ten milliseconds, which takes the
// core away from whatever else runs: beside a compiler, training was seen to fall from 28k to 8k tokens/s, and beside
// eight busy processes from 28k to 0.7k. Unless the user has said how threads wait (OMP_WAIT_POLICY, GOMP_SPINCOUNT or
// KMP_BLOCKTIME), this sets a count that costs nothing on idle cores, and starts the program again: GCC's library reads
// its settings before main(). Returns where there is nothing to do, or where the program cannot be started again.
void limit_spinning(char** argv);

// For `./train info`: "GOMP_SPINCOUNT=300 KMP_BLOCKTIME=0", or what the user has set.
std::string describe_waiting_threads();

}  // namespace ingot
