// Starts the ranks of a run on this machine, as copies of this program, and waits for them: what torchrun, srun and
// mpirun do elsewhere.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace ingot {

struct Launch {
    std::string program;                 // its file
    std::vector<std::string> arguments;  // with the name of the program
    int64_t num_ranks = 1;
    double timeout_seconds = 300;  // of the control plane: in it the ranks notice that one of them has failed
};

// Starts the ranks with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT and a nonce in their environment, and
// with an equal part of the cores each, unless OMP_NUM_THREADS is set. Needs start_signal_thread(): the signals that
// ask to stop are passed on to all ranks, and a second Ctrl-C kills them. What ranks other than the first write is put
// on stderr, with "[rank R] " before each line. When a rank has failed, the others get the timeout to end by
// themselves, and are then ended. No rank outlives this process.
//
// Returns the exit code of the run: that of the rank that was the first to fail for a reason of its own (4 if a signal
// ended it), else 4 if a rank missed another, else 75 if one was interrupted, else 0. Throws UserError if the ranks
// cannot be started.
int launch_ranks(const Launch& launch);

// Calls the function in a process of its own, so that what it opens (a CUDA driver) is not open in this one, and
// returns what it returns, or 0 if it fails.
int64_t count_in_child(const std::function<int64_t()>& count);

}  // namespace ingot
