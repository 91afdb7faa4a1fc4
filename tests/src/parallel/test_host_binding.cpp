// Seen to catch: an affinity mask of the launcher that is widened, the -1 of an unknown node taken for a node, a PCI
// bus id in capital letters that is not found, threads that were there before and are left out.
#include "src/parallel/host_binding.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <future>
#include <thread>

#include "kernels/core/check.h"
#include "src/parallel/ranks.h"
#include "tests/support/in_folder.h"

namespace ingot::test {
namespace {

using Cpus = std::vector<int>;

TEST(CpuList, ReadsWhatSysfsWrites) {
    EXPECT_EQ(parse_cpu_list("0"), Cpus({0}));
    EXPECT_EQ(parse_cpu_list("0-3,8,10-11"), Cpus({0, 1, 2, 3, 8, 10, 11}));
    EXPECT_EQ(parse_cpu_list("8,0-1,1"), Cpus({0, 1, 8}));
    for (const char* const bad : {"", "-1", "1-", "1,", ",1", "3-1", "a", "1 2", "0-3x", "99999", "0-999999999", "--"})
        EXPECT_EQ(parse_cpu_list(bad), Cpus()) << bad;
}

TEST(CpuList, IsWrittenAsItIsRead) {
    for (const char* const text : {"", "0", "0-1", "0-3,8,10-11", "1,3,5", "64-127"})
        EXPECT_EQ(format_cpu_list(parse_cpu_list(text)), text);
}

// A machine of 16 CPUs in two nodes, with hyperthreads, and a GPU at each.
class HostBindingOf : public InFolder {
  protected:
    void SetUp() override {
        file("devices/system/cpu/online", "0-15");
        file("devices/system/node/online", "0-1");
        gpu("0000:1b:00.0", "0", "0-3,8-11");
        gpu("0000:9b:00.0", "1", "4-7,12-15");
    }
    void file(const std::string& name, const std::string& text) const {
        std::filesystem::create_directories((folder_ / name).parent_path());
        write(name, text + "\n");
    }
    void gpu(const std::string& id, const std::string& node, const std::string& cpus) const {
        file("bus/pci/devices/" + id + "/numa_node", node);
        file("bus/pci/devices/" + id + "/local_cpulist", cpus);
    }
    std::string near(const std::string& id, const std::string& allowed = "0-15") const {
        return binding_near(folder_.string(), id, parse_cpu_list(allowed)).describe();
    }
};

constexpr const char* kNoAnswer = "not bound, since /sys does not say which CPUs are near the GPU";

TEST_F(HostBindingOf, IsThatOfTheNodeOfTheGpu) {
    EXPECT_EQ(near("0000:1B:00.0"), "CPUs 0-3,8-11, memory node 0");
    EXPECT_EQ(near("0000:9B:00.0"), "CPUs 4-7,12-15, memory node 1");
    EXPECT_EQ(near("0000:9b:00.0", "0-99"), "CPUs 4-7,12-15, memory node 1");
}

TEST_F(HostBindingOf, AProcessThatIsBoundStaysAsItIs) {
    for (const char* const allowed : {"4-7,12-15", "0-14", "0", "0-3,8-11", ""})
        EXPECT_EQ(near("0000:1B:00.0", allowed), "") << allowed;
}

TEST_F(HostBindingOf, AMachineOfOneNodeHasNothingToBind) {
    file("devices/system/node/online", "0");
    EXPECT_EQ(near("0000:1B:00.0"), "");
    gpu("0000:1b:00.0", "-1", "0-15");
    EXPECT_EQ(near("0000:1B:00.0"), "");
}

TEST_F(HostBindingOf, IsNoneWhereAllCpusAreNear) {
    file("devices/system/node/online", "0,8");  // the second node is memory of the GPU
    gpu("0000:1b:00.0", "0", "0-15");
    EXPECT_EQ(near("0000:1B:00.0"), "");
}

TEST_F(HostBindingOf, SaysWhereSysfsHasNoAnswer) {
    EXPECT_EQ(near("0000:77:00.0"), kNoAnswer);
    EXPECT_EQ(near(""), kNoAnswer);
    gpu("0000:1b:00.0", "-1", "0-15");
    EXPECT_EQ(near("0000:1B:00.0"), kNoAnswer);
    gpu("0000:1b:00.0", "-1", "0-3,8-11");
    EXPECT_EQ(near("0000:1B:00.0"), kNoAnswer);
    gpu("0000:9b:00.0", "1", "");
    EXPECT_EQ(near("0000:9B:00.0"), kNoAnswer);
    EXPECT_EQ(binding_near(path("nothing"), "0000:1B:00.0", {0, 1}).describe(), kNoAnswer);
}

TEST(HostBinding, HoldsForAllThreadsAndTheirMemory) {
    const Cpus allowed = allowed_cpus();
    ASSERT_FALSE(allowed.empty());
    const Cpus last = {allowed.back()};
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const pid_t process = fork();
    if (process == 0) {  // what is bound stays so
        std::promise<void> is_bound;
        std::promise<Cpus> of_former;
        std::thread former([&] {
            is_bound.get_future().wait();
            of_former.set_value(allowed_cpus());
        });
        const HostBinding bound = bind_process({.cpus = last, .node = 0, .reason = ""});
        is_bound.set_value();
        former.join();
        Cpus of_later;
        int policy = -1;
        std::thread later([&] {
            of_later = allowed_cpus();
            if (syscall(SYS_get_mempolicy, &policy, nullptr, 0ul, nullptr, 0ul) != 0) policy = -1;
        });
        later.join();
        const std::string text =
            join(format_cpu_list(allowed_cpus()), " ", format_cpu_list(of_former.get_future().get()), " ",
                 format_cpu_list(of_later), " ", bound.node < 0 || policy == 1);
        (void)!write(ends[1], text.data(), text.size());
        _exit(0);
    }
    ASSERT_GT(process, 0);
    waitpid(process, nullptr, 0);
    close(ends[1]);
    char text[256] = "";
    (void)!read(ends[0], text, sizeof text - 1);
    close(ends[0]);
    EXPECT_EQ(std::string(text), join(last[0], " ", last[0], " ", last[0], " 1"));
    EXPECT_EQ(allowed_cpus(), allowed);
}

TEST(HostBinding, SaysThatLinuxRefuses) {
    const Cpus allowed = allowed_cpus();
    const HostBinding bound = bind_process({.cpus = {60000}, .node = 0, .reason = ""});
    EXPECT_EQ(bound.describe(), "not bound, since Linux refuses it: Invalid argument");
    EXPECT_EQ(allowed_cpus(), allowed);
}

TEST(HostBinding, OfAllRanksIsOneLine) {
    EXPECT_EQ(summary_of_ranks({"", "", ""}), "");
    EXPECT_EQ(summary_of_ranks({"a", "b", "", "a"}), "ranks 0, 3: a; rank 1: b");
    EXPECT_EQ(summary_of_ranks(std::vector<std::string>(512, "a")),
              "ranks 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 and 496 more: a");
}

}  // namespace
}  // namespace ingot::test
