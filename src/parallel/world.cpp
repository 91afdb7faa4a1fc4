#include "src/parallel/world.h"

#include <charconv>
#include <cstdlib>
#include <cstring>

#include "kernels/core/check.h"
#include "src/base/text.h"

namespace ingot {

namespace {

constexpr const char* kLoopback = "127.0.0.1";
// Without MASTER_PORT the port is taken from the number of the job: below the ports that Linux gives to outgoing
// connections (32768 and above), and above those of most services.
constexpr int kFirstPort = 20000, kNumPorts = 10000;
// Slurm numbers the steps that are no tasks of srun (batch script, external, interactive) from here on.
constexpr int64_t kFirstSpecialStep = 0xfffffff0;

class Environment {
  public:
    explicit Environment(const Variables& variables) : variables_(variables) {}

    // An empty value counts as none.
    std::string text(const char* name) const {
        const char* const value = variables_(name);
        return value == nullptr ? "" : value;
    }
    bool has(const char* name) const { return !text(name).empty(); }
    std::string required(const char* name, const std::string& launcher) const {
        REQUIRE(has(name), name, " is not set, which ", launcher, " needs: set it on all ranks alike");
        return text(name);
    }
    int64_t integer(const char* name, int64_t low, int64_t high) const {
        const std::string value = text(name);
        int64_t number = 0;
        const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
        REQUIRE(error == std::errc() && end == value.data() + value.size() && number >= low && number <= high, name,
                " is ", excerpt(value, 80), ": it must be an integer from ", low, " to ", high,
                ": start the ranks with torchrun, srun or mpirun, or unset it");
        return number;
    }
    // Returns the first of the names that is set, or null.
    const char* first_of(std::initializer_list<const char*> names) const {
        for (const char* const name : names)
            if (has(name)) return name;
        return nullptr;
    }

  private:
    const Variables& variables_;
};

// A launcher's answer, with the names of its variables for messages.
struct Place {
    const char* launcher;
    const char *rank_name, *size_name;
    int64_t rank = 0, size = 1;

    bool agrees_with(const Place& other) const { return rank == other.rank && size == other.size; }
    bool is_slurm() const { return std::strcmp(launcher, "srun") == 0; }
    std::string describe() const { return join(rank_name, "=", rank, " ", size_name, "=", size); }
};

std::optional<Place> place_of(const Environment& environment, const char* launcher, const char* rank_name,
                              const char* size_name) {
    const bool has_rank = environment.has(rank_name), has_size = environment.has(size_name);
    if (!has_rank && !has_size) return std::nullopt;
    REQUIRE(has_rank && has_size, has_rank ? rank_name : size_name, " is set, but ", has_rank ? size_name : rank_name,
            " is not: start the ranks with torchrun, srun or mpirun, or unset ", has_rank ? rank_name : size_name);
    Place place{launcher, rank_name, size_name};
    place.size = environment.integer(size_name, 1, kMostRanks);
    place.rank = environment.integer(rank_name, 0, kMostRanks);
    REQUIRE(place.rank < place.size, place.describe(), ": the ranks count from 0, so the rank must be smaller");
    return place;
}

// Inside the shell of sbatch or salloc the variables of the job are set too, but the shell is no task of srun.
std::optional<Place> place_in_slurm(const Environment& environment) {
    const char* const step = environment.first_of({"SLURM_STEP_ID", "SLURM_STEPID"});
    if (step == nullptr || !environment.has("SLURM_PROCID")) return std::nullopt;
    const std::string value = environment.text(step);
    if (value == "batch" || value == "interactive" || value == "extern") return std::nullopt;
    if (environment.integer(step, 0, int64_t{1} << 32) >= kFirstSpecialStep) return std::nullopt;
    const char* const size = environment.first_of({"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"});
    REQUIRE(size != nullptr, "SLURM_PROCID is set, but SLURM_NTASKS is not: start the ranks with srun, or unset it");
    const std::optional<Place> place = place_of(environment, "srun", "SLURM_PROCID", size);
    return place && place->size == 1 ? std::nullopt : place;
}

// torchrun and mpirun start a daemon on each host, under Slurm as a task of srun: the variables of Slurm, which the
// ranks inherit, are then those of the daemon.
bool is_started_by_daemon(const Environment& environment, const Place& inner, const Place& slurm) {
    if (std::strcmp(inner.launcher, "Open MPI") == 0) return true;
    if (std::strcmp(inner.launcher, "mpirun") == 0) return environment.has("MPI_LOCALRANKID");
    return environment.has("TORCHELASTIC_RUN_ID") && environment.has("GROUP_WORLD_SIZE") &&
           environment.integer("GROUP_WORLD_SIZE", 1, kMostRanks) == slurm.size;
}

// FNV-1a, the same on every host.
uint32_t hash_of(const std::string& text) {
    uint32_t hash = 2166136261;
    for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619;
    return hash;
}

int port_of_job(const std::string& nonce) {
    return kFirstPort + static_cast<int>(hash_of(nonce) % kNumPorts);
}

std::string joined(std::initializer_list<std::string> parts) {
    std::string text;
    for (const std::string& part : parts) {
        if (part.empty()) continue;
        text += (text.empty() ? "" : ".") + part;
    }
    return text;
}

void finish_torchrun(const Environment& environment, bool has_slurm_beside, World* world) {
    if (environment.has("LOCAL_RANK"))
        world->local_rank = environment.integer("LOCAL_RANK", 0, kMostRanks);
    else if (has_slurm_beside && environment.has("SLURM_LOCALID"))
        world->local_rank = environment.integer("SLURM_LOCALID", 0, kMostRanks);
    else
        REQUIRE(world->size == 1, "RANK and WORLD_SIZE are set, but LOCAL_RANK is not: set it to the number of this ",
                "rank among those of its machine, or start the ranks with torchrun");
    if (world->size == 1) return;
    world->master_address = environment.required("MASTER_ADDR", "a run with RANK and WORLD_SIZE");
    environment.required("MASTER_PORT", "a run with RANK and WORLD_SIZE");
    world->master_port = static_cast<int>(environment.integer("MASTER_PORT", 1, 65535));
    const std::string id = environment.text("TORCHELASTIC_RUN_ID");
    world->nonce = environment.text(kNonceVariable);
    if (world->nonce.empty() && !id.empty())
        world->nonce =
            joined({"torchrun", id, environment.text("MASTER_PORT"), environment.text("TORCHELASTIC_RESTART_COUNT")});
    // torchrun's agent itself listens on MASTER_PORT then.
    if (environment.text("TORCHELASTIC_USE_AGENT_STORE") == "True")
        world->master_port = world->master_port < 65535 ? world->master_port + 1 : 65534;
}

// MASTER_ADDR and MASTER_PORT, or else `address`, and a port that depends on the nonce.
void finish_master(const Environment& environment, const std::string& address, World* world) {
    world->master_address = environment.has("MASTER_ADDR") ? environment.text("MASTER_ADDR") : address;
    REQUIRE(!world->master_address.empty(),
            "MASTER_ADDR is not set, and the ranks are on several hosts: set it to the host of rank 0 on all of them, ",
            "e.g. mpirun -x MASTER_ADDR=node1");
    world->master_port = environment.has("MASTER_PORT") ? static_cast<int>(environment.integer("MASTER_PORT", 1, 65535))
                                                        : port_of_job(world->nonce);
}

void finish_slurm(const Environment& environment, World* world) {
    world->launcher = "srun";
    REQUIRE(environment.has("SLURM_LOCALID"), "SLURM_PROCID is set, but SLURM_LOCALID is not: start the ranks with ",
            "srun, or unset it");
    world->local_rank = environment.integer("SLURM_LOCALID", 0, kMostRanks);
    world->nonce = joined({"slurm", environment.text("SLURM_JOB_ID"),
                           environment.text(environment.first_of({"SLURM_STEP_ID", "SLURM_STEPID"})),
                           environment.text("SLURM_RESTART_COUNT")});
    const char* const num_nodes = environment.first_of({"SLURM_STEP_NUM_NODES", "SLURM_NNODES"});
    const char* const hosts = environment.first_of({"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"});
    std::string address;
    if (num_nodes != nullptr && environment.integer(num_nodes, 1, kMostRanks) == 1)
        address = kLoopback;
    else if (hosts != nullptr)
        address = first_host(environment.text(hosts));  // srun gives it task 0
    finish_master(environment, address, world);
}

// `local_size` names a variable with the number of ranks on this machine, or is null.
void finish_mpi(const Environment& environment, const char* local_rank, const char* local_size, World* world) {
    REQUIRE(local_rank != nullptr, world->launcher, " does not say which rank of its machine this is: ",
            "set RANK, WORLD_SIZE and LOCAL_RANK, or use another launcher");
    world->local_rank = environment.integer(local_rank, 0, kMostRanks);
    const char* const job = environment.first_of({"OMPI_MCA_ess_base_jobid", "PMIX_NAMESPACE", "PMI_JOBID"});
    if (job != nullptr) world->nonce = joined({"mpi", environment.text(job)});
    const bool is_local = local_size != nullptr && environment.integer(local_size, 1, kMostRanks) == world->size;
    finish_master(environment, is_local ? kLoopback : "", world);
}

}  // namespace

bool is_loopback(const std::string& address) {
    return address == "localhost" || address == "::1" || address.starts_with("127.");
}

std::string first_host(const std::string& hosts) {
    const size_t end = hosts.find_first_of("[,");
    const std::string prefix = hosts.substr(0, end);
    const std::string refusal = join("the list of hosts \"", excerpt(hosts, 80), "\" is not in Slurm's notation: set ",
                                     "MASTER_ADDR to the host of rank 0");
    if (end == std::string::npos || hosts[end] == ',') {
        REQUIRE(!prefix.empty() && prefix.find(']') == std::string::npos, refusal);
        return prefix;
    }
    // "[03-07,9]": the first number, with its zeros. Several groups may follow one another: "rack[1-2]node[1-4]-ib".
    const size_t close = hosts.find(']', end);
    const size_t number_end = hosts.find_first_of("-,]", end + 1);
    REQUIRE(close != std::string::npos && number_end > end + 1 && number_end <= close, refusal);
    const std::string number = hosts.substr(end + 1, number_end - end - 1);
    REQUIRE(number.find_first_not_of("0123456789") == std::string::npos, refusal);
    const std::string rest = hosts.substr(close + 1);
    return prefix + number + (rest.empty() || rest[0] == ',' ? "" : first_host(rest));
}

std::optional<World> world_of(const Variables& variables) {
    const Environment environment(variables);
    const bool is_own = environment.has(kNonceVariable);
    const std::optional<Place> by_rank = place_of(environment,
                                                  is_own                                   ? "./train"
                                                  : environment.has("TORCHELASTIC_RUN_ID") ? "torchrun"
                                                                                           : "RANK and WORLD_SIZE",
                                                  "RANK", "WORLD_SIZE");
    const std::optional<Place> by_open_mpi =
        place_of(environment, "Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE");
    const std::optional<Place> by_pmi = place_of(environment, "mpirun", "PMI_RANK", "PMI_SIZE");
    const std::optional<Place> by_slurm = place_in_slurm(environment);

    std::optional<Place> place;
    for (const std::optional<Place>& each : {by_rank, by_open_mpi, by_pmi, by_slurm}) {
        if (!each) continue;
        if (!place) place = each;
        REQUIRE(place->agrees_with(*each) || (each->is_slurm() && is_started_by_daemon(environment, *place, *each)),
                "two launchers disagree: ", place->describe(), " and ", each->describe(),
                ": unset the variables of the launcher that did not start the ranks");
    }
    if (!place) return std::nullopt;
    World world;
    world.rank = place->rank;
    world.size = place->size;
    world.launcher = place->launcher;
    const bool is_in_slurm = by_slurm && by_slurm->agrees_with(*place);
    if (by_rank)
        finish_torchrun(environment, is_in_slurm, &world);
    else if (world.size == 1)
        world.local_rank = 0;
    else if (by_open_mpi)
        finish_mpi(environment, environment.first_of({"OMPI_COMM_WORLD_LOCAL_RANK"}),
                   environment.first_of({"OMPI_COMM_WORLD_LOCAL_SIZE"}), &world);
    else if (is_in_slurm)  // also with PMI, which Slurm itself speaks
        finish_slurm(environment, &world);
    else
        finish_mpi(environment, environment.first_of({"MPI_LOCALRANKID", "PMI_LOCAL_RANK"}),
                   environment.first_of({"MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"}), &world);
    return world;
}

std::optional<World> world_of_process() {
    return world_of([](const char* name) { return std::getenv(name); });
}

}  // namespace ingot
