// Seen to catch: the shell of sbatch taken for a task, a rank as large as the world, torchrun's agent that has the
// port.
#include "src/parallel/world.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/support/errors.h"

namespace ingot::test {
namespace {

using Environment = std::map<std::string, std::string>;

std::optional<World> world_in(const Environment& environment) {
    return world_of([&](const char* name) {
        const auto found = environment.find(name);
        return found == environment.end() ? nullptr : found->second.c_str();
    });
}

Environment with(Environment environment, const Environment& more) {
    for (const auto& [name, value] : more) environment[name] = value;
    return environment;
}

std::string refusal(const Environment& environment) {
    return error_of([&] { world_in(environment); });
}

void expect_world(const Environment& environment, int64_t rank, int64_t size, int64_t local_rank,
                  const std::string& address, const std::string& launcher) {
    const std::optional<World> world = world_in(environment);
    ASSERT_TRUE(world.has_value());
    EXPECT_EQ(world->rank, rank);
    EXPECT_EQ(world->size, size);
    EXPECT_EQ(world->local_rank, local_rank);
    EXPECT_EQ(world->master_address, address);
    EXPECT_EQ(world->launcher, launcher);
    if (size > 1) {
        EXPECT_GT(world->master_port, 0);
        EXPECT_LT(world->master_port, 65536);
    }
}

const Environment kTorchrun = {{"RANK", "5"},
                               {"WORLD_SIZE", "8"},
                               {"LOCAL_RANK", "1"},
                               {"MASTER_ADDR", "node1"},
                               {"MASTER_PORT", "29500"},
                               {"TORCHELASTIC_RUN_ID", "none"},
                               {"GROUP_WORLD_SIZE", "2"}};
const Environment kSlurm = {{"SLURM_PROCID", "3"},  {"SLURM_NTASKS", "4"},
                            {"SLURM_LOCALID", "1"}, {"SLURM_JOB_ID", "8123"},
                            {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NODELIST", "node[03-04]"},
                            {"SLURM_NNODES", "2"},  {"SLURM_JOB_NODELIST", "node[01-04]"}};
const Environment kOpenMpi = {{"OMPI_COMM_WORLD_RANK", "1"},
                              {"OMPI_COMM_WORLD_SIZE", "2"},
                              {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                              {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                              {"OMPI_MCA_ess_base_jobid", "3829661697"}};
const Environment kPmi = {{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}};

TEST(World, AProcessThatWasStartedAlone) {
    EXPECT_FALSE(world_in({}).has_value());
    EXPECT_FALSE(world_in({{"RANK", ""}, {"WORLD_SIZE", ""}}).has_value());
    EXPECT_FALSE(world_in({{"MASTER_ADDR", "node1"}, {"MASTER_PORT", "1"}, {"LOCAL_RANK", "0"}}).has_value());
}

TEST(World, Torchrun) {
    expect_world(kTorchrun, 5, 8, 1, "node1", "torchrun");
    EXPECT_EQ(world_in(kTorchrun)->master_port, 29500);
    // The agent of torchrun listens on MASTER_PORT itself.
    EXPECT_EQ(world_in(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "True"}}))->master_port, 29501);
    EXPECT_EQ(world_in(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "False"}}))->master_port, 29500);
    // Another run, or another start of the same, has another nonce.
    const std::string nonce = world_in(kTorchrun)->nonce;
    EXPECT_FALSE(nonce.empty());
    EXPECT_EQ(world_in(with(kTorchrun, {{"RANK", "2"}, {"LOCAL_RANK", "0"}}))->nonce, nonce);
    EXPECT_NE(world_in(with(kTorchrun, {{"TORCHELASTIC_RUN_ID", "7"}}))->nonce, nonce);
    EXPECT_NE(world_in(with(kTorchrun, {{"TORCHELASTIC_RESTART_COUNT", "1"}}))->nonce, nonce);
    EXPECT_NE(world_in(with(kTorchrun, {{"MASTER_PORT", "29600"}}))->nonce, nonce);
}

TEST(World, VariablesSetByHand) {
    const Environment hand = {
        {"RANK", "0"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "0"}, {"MASTER_ADDR", "::1"}, {"MASTER_PORT", "4000"}};
    expect_world(hand, 0, 2, 0, "::1", "RANK and WORLD_SIZE");
    EXPECT_EQ(world_in(hand)->nonce, "");
    EXPECT_EQ(world_in(with(hand, {{kNonceVariable, "ab12"}}))->nonce, "ab12");
    expect_world({{"RANK", "0"}, {"WORLD_SIZE", "1"}, {"LOCAL_RANK", "2"}}, 0, 1, 2, "", "RANK and WORLD_SIZE");
}

TEST(World, Slurm) {
    expect_world(kSlurm, 3, 4, 1, "node03", "srun");
    const int port = world_in(kSlurm)->master_port;
    EXPECT_EQ(world_in(with(kSlurm, {{"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}}))->master_port, port);
    EXPECT_NE(world_in(with(kSlurm, {{"SLURM_STEP_ID", "1"}}))->master_port, port);
    EXPECT_NE(world_in(with(kSlurm, {{"SLURM_JOB_ID", "8124"}}))->nonce, world_in(kSlurm)->nonce);
    EXPECT_NE(world_in(with(kSlurm, {{"SLURM_RESTART_COUNT", "1"}}))->nonce, world_in(kSlurm)->nonce);
    expect_world(with(kSlurm, {{"SLURM_NNODES", "1"}}), 3, 4, 1, "127.0.0.1", "srun");
    expect_world(with(kSlurm, {{"SLURM_STEP_NUM_NODES", "1"}}), 3, 4, 1, "127.0.0.1", "srun");
    expect_world(with(kSlurm, {{"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "77"}}), 3, 4, 1, "10.0.0.1", "srun");
    EXPECT_EQ(world_in(with(kSlurm, {{"MASTER_PORT", "77"}}))->master_port, 77);
    // A step of fewer tasks than the job.
    expect_world(with(kSlurm, {{"SLURM_NTASKS", "16"}, {"SLURM_STEP_NUM_TASKS", "4"}}), 3, 4, 1, "node03", "srun");
}

TEST(World, AShellOfSlurmIsNoTask) {
    Environment shell = kSlurm;
    shell.erase("SLURM_STEP_ID");
    shell["SLURM_PROCID"] = "0";
    EXPECT_FALSE(world_in(shell).has_value());
    for (const char* const step : {"batch", "interactive", "4294967290", "4294967291"})
        EXPECT_FALSE(world_in(with(shell, {{"SLURM_STEP_ID", step}})).has_value()) << step;
    // srun -n 1 ./train --gpus 8
    EXPECT_FALSE(world_in(with(kSlurm, {{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "1"}})).has_value());
}

TEST(World, OpenMpiAndPmi) {
    expect_world(kOpenMpi, 1, 2, 1, "127.0.0.1", "Open MPI");
    expect_world(with(kOpenMpi, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}, {"MASTER_ADDR", "node1"}}), 1, 2, 1, "node1",
                 "Open MPI");
    EXPECT_NE(refusal(with(kOpenMpi, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}})).find("2 MASTER_ADDR is not set"),
              std::string::npos);
    expect_world(kPmi, 1, 2, 1, "127.0.0.1", "mpirun");
    expect_world({{"PMI_RANK", "0"}, {"PMI_SIZE", "1"}}, 0, 1, 0, "", "mpirun");
    EXPECT_NE(world_in(with(kOpenMpi, {{"OMPI_MCA_ess_base_jobid", "2"}}))->nonce, world_in(kOpenMpi)->nonce);
}

TEST(World, TwoLaunchersThatAgree) {
    // export RANK=$SLURM_PROCID, as many scripts do; LOCAL_RANK may then be Slurm's.
    Environment both = with(kSlurm, {{"RANK", "3"}, {"WORLD_SIZE", "4"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "5"}});
    expect_world(both, 3, 4, 1, "a", "RANK and WORLD_SIZE");
    // srun --mpi=pmi2
    expect_world(with(kSlurm, {{"PMI_RANK", "3"}, {"PMI_SIZE", "4"}}), 3, 4, 1, "node03", "srun");
    // srun starts one torchrun, or one daemon of mpirun, on each of two hosts.
    const Environment daemons = with(kSlurm, {{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "2"}, {"SLURM_LOCALID", "0"}});
    expect_world(with(daemons, kTorchrun), 5, 8, 1, "node1", "torchrun");
    expect_world(with(daemons, with(kOpenMpi, {{"OMPI_COMM_WORLD_RANK", "0"}})), 0, 2, 1, "127.0.0.1", "Open MPI");
    expect_world(with(daemons, with(kPmi, {{"PMI_RANK", "0"}})), 0, 2, 1, "127.0.0.1", "mpirun");
}

TEST(World, TwoLaunchersThatDisagree) {
    for (const Environment& environment :
         {with(kTorchrun, kOpenMpi), with(kTorchrun, kPmi), with(kOpenMpi, {{"PMI_RANK", "0"}, {"PMI_SIZE", "2"}}),
          with(kTorchrun, with(kSlurm, {{"SLURM_NTASKS", "8"}})),
          with(kSlurm, {{"PMI_RANK", "2"}, {"PMI_SIZE", "4"}})}) {
        const std::string text = refusal(environment);
        EXPECT_EQ(text.find("2 two launchers disagree: "), 0u) << text;
    }
    const std::string text = refusal(with(kTorchrun, kOpenMpi));
    for (const char* const name : {"RANK=5 WORLD_SIZE=8", "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2"})
        EXPECT_NE(text.find(name), std::string::npos) << text;
}

TEST(World, RefusesWhatIsNoPlace) {
    const std::pair<Environment, const char*> cases[] = {
        {{{"RANK", "0"}}, "2 RANK is set, but WORLD_SIZE is not"},
        {{{"WORLD_SIZE", "2"}}, "2 WORLD_SIZE is set, but RANK is not"},
        {with(kTorchrun, {{"RANK", "8"}}), "2 RANK=8 WORLD_SIZE=8: the ranks count from 0"},
        {with(kTorchrun, {{"RANK", "-1"}}), "2 RANK is -1: it must be an integer"},
        {with(kTorchrun, {{"RANK", "5x"}}), "2 RANK is 5x: it must be an integer"},
        {with(kTorchrun, {{"RANK", "99999999999999999999"}}), "2 RANK is 99999999999999999999: it must be an integer"},
        {with(kTorchrun, {{"WORLD_SIZE", "0"}}), "2 WORLD_SIZE is 0: it must be an integer from 1"},
        {with(kTorchrun, {{"LOCAL_RANK", ""}}), "2 RANK and WORLD_SIZE are set, but LOCAL_RANK is not"},
        {with(kTorchrun, {{"MASTER_ADDR", ""}}), "2 MASTER_ADDR is not set"},
        {with(kTorchrun, {{"MASTER_PORT", ""}}), "2 MASTER_PORT is not set"},
        {with(kTorchrun, {{"MASTER_PORT", "65536"}}), "2 MASTER_PORT is 65536: it must be an integer from 1 to 65535"},
        {with(kSlurm, {{"SLURM_LOCALID", ""}}), "2 SLURM_PROCID is set, but SLURM_LOCALID is not"},
        {with(kSlurm, {{"SLURM_NTASKS", ""}}), "2 SLURM_PROCID is set, but SLURM_NTASKS is not"},
        {with(kSlurm, {{"SLURM_STEP_ID", "x"}}), "2 SLURM_STEP_ID is x: it must be an integer"},
        {with(kSlurm, {{"SLURM_STEP_NODELIST", "[[,"}}), "2 the list of hosts \"[[,\" is not in Slurm's notation"},
        {with(kOpenMpi, {{"OMPI_COMM_WORLD_LOCAL_RANK", ""}}), "2 Open MPI does not say which rank of its machine"},
    };
    for (const auto& [environment, start] : cases)
        EXPECT_EQ(refusal(environment).find(start), 0u) << refusal(environment);
}

TEST(World, FirstHostOfAList) {
    const std::pair<const char*, const char*> cases[] = {
        {"node1", "node1"},
        {"node1,node2", "node1"},
        {"node[03-07,9],gpu1", "node03"},
        {"node[9,03-07]", "node9"},
        {"gpu1,node[03-07]", "gpu1"},
        {"rack[1-2]node[08-10]-ib", "rack1node08-ib"},
        {"rack[1-2]node[08-10]-ib,x", "rack1node08-ib"},
        {"n[0007]", "n0007"},
        {"a.b-c_d", "a.b-c_d"},
    };
    for (const auto& [hosts, first] : cases) EXPECT_EQ(first_host(hosts), first);
    for (const char* const hosts :
         {"", ",a", "node[", "node[]", "node[-3]", "node[x-y]", "node]", "node[3", "n[1][", "[,"})
        EXPECT_EQ(error_of([&] { first_host(hosts); }).find("2 the list of hosts"), 0u) << hosts;
}

TEST(World, Loopback) {
    for (const char* const address : {"localhost", "127.0.0.1", "127.0.1.1", "::1"}) EXPECT_TRUE(is_loopback(address));
    for (const char* const address : {"node1", "10.0.0.1", "128.0.0.1", "localhost.example.org", ""})
        EXPECT_FALSE(is_loopback(address));
}

}  // namespace
}  // namespace ingot::test
