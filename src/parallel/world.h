// Which of the processes that train together this one is, as the launcher that started it says in the environment:
// ./train itself or torchrun (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), Slurm's srun (SLURM_*), Open MPI
// (OMPI_COMM_WORLD_*), or another mpirun (PMI_*).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace ingot {

struct World {
    int64_t rank = 0, size = 1;
    int64_t local_rank = 0;  // among the ranks of this machine
    // Where the first rank listens for the others.
    std::string master_address;
    int master_port = 0;
    std::string launcher;  // for messages: "torchrun", "srun"
    std::string nonce;     // the same for all ranks of this run and for no other run; empty where the launcher has none
};

constexpr int64_t kMostRanks = 65536;

// ./train passes a random text to the ranks that it starts.
constexpr const char* kNonceVariable = "INGOT_RUN_NONCE";

// Returns the value of an environment variable, or null.
using Variables = std::function<const char*(const char*)>;

// Returns the place that a launcher gave this process, or nothing if it was started alone. A task of srun that has no
// others beside it is alone, since that is how single programs are started on a cluster. Throws UserError naming the
// variables if two launchers disagree, or if a value is missing, no integer, or outside its range.
std::optional<World> world_of_process();
std::optional<World> world_of(const Variables& variables);

// Returns the first host of a list in Slurm's notation: "node03" of "node[03-07,9],gpu1". Throws UserError.
std::string first_host(const std::string& hosts);

// Returns whether only processes of this machine can connect to the address: "localhost", 127.0.0.0/8 or ::1. The name
// of a host is not, though it may resolve to 127.0.1.1 on the host itself.
bool is_loopback(const std::string& address);

}  // namespace ingot
