// Tests how much of the host's memory the limits of control groups leave, on trees of files as Linux shows them, and
// that a plan is held against it.
//
// Seen to catch: limits not looked at, the innermost group alone looked at, a group's path taken for the mounted one
// where a container sees itself as the top, pages of files that can be dropped counted as taken, the first of a v1
// line's controllers alone read, "max" read as 0, usage above the limit wrapped around, the page-locked part not held
// against what is free.
#include "src/base/available_memory.h"

#include <gtest/gtest.h>

#include "src/train/training_plan.h"
#include "tests/support/errors.h"
#include "tests/support/in_folder.h"

namespace ingot::test {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMiB = uint64_t{1} << 20;

// A machine with 1000 MiB free.
class AvailableMemoryTest : public InFolder {
  protected:
    void SetUp() override {
        write("/proc/meminfo",
              "MemTotal:        2048000 kB\nMemFree:          512000 kB\nMemAvailable:    1024000 kB\n");
    }

    void write(const std::string& path, const std::string& text) {
        fs::create_directories(fs::path(root_ + path).parent_path());
        InFolder::write(path.substr(1), text);
    }
    // A group of version 2 with a limit and what is taken; of that, pages of files.
    void group(const std::string& folder, const std::string& limit, uint64_t taken, uint64_t inactive = 0,
               uint64_t active = 0) {
        write(folder + "/memory.max", limit + "\n");
        write(folder + "/memory.current", join(taken, "\n"));
        write(folder + "/memory.stat", join("anon ", taken - inactive - active, "\nfile ", inactive + active,
                                            "\ninactive_file ", inactive, "\nactive_file ", active, "\n"));
    }
    void expect(uint64_t mib, const std::string& limited_by) {
        const AvailableMemory available = available_memory(root_);
        EXPECT_TRUE(available.is_known());
        EXPECT_EQ(available.bytes, mib * kMiB);
        EXPECT_EQ(available.limited_by, limited_by);
    }
    static std::string mib(uint64_t count) { return join(count * kMiB); }

    const std::string root_ = folder_.string();
};

TEST_F(AvailableMemoryTest, OfTheMachine) {
    expect(1000, "");
    EXPECT_EQ(available_memory(root_).describe(), "1000.00 MiB are free");
    write("/proc/self/cgroup", "0::/\n");  // the top of the hierarchy has no limit
    write("/sys/fs/cgroup/memory.stat", "anon 5\n");
    expect(1000, "");
    fs::remove(root_ + "/proc/meminfo");
    EXPECT_FALSE(available_memory(root_).is_known());
}

TEST_F(AvailableMemoryTest, OfAGroupAndThoseAroundIt) {
    write("/proc/self/cgroup", "0::/slurm/job_7/step_0\n");
    group("/sys/fs/cgroup/slurm", "max", 700 * kMiB);
    group("/sys/fs/cgroup/slurm/job_7", mib(600), 100 * kMiB);
    group("/sys/fs/cgroup/slurm/job_7/step_0", "max", 50 * kMiB);
    group("/sys/fs/cgroup/slurm/job_8", mib(1), 0);
    expect(500, "/sys/fs/cgroup/slurm/job_7/memory.max");
    EXPECT_EQ(available_memory(root_).describe(),
              "500.00 MiB are free within the limit in /sys/fs/cgroup/slurm/job_7/memory.max");
    group("/sys/fs/cgroup/slurm/job_7/step_0", mib(200), 50 * kMiB);
    expect(150, "/sys/fs/cgroup/slurm/job_7/step_0/memory.max");
    group("/sys/fs/cgroup/slurm", mib(710), 700 * kMiB);
    expect(10, "/sys/fs/cgroup/slurm/memory.max");
    group("/sys/fs/cgroup/slurm", mib(690), 700 * kMiB);  // the limit was lowered below what is taken
    expect(0, "/sys/fs/cgroup/slurm/memory.max");
    // A limit above what the machine has is none.
    for (const char* folder : {"/slurm", "/slurm/job_7", "/slurm/job_7/step_0"})
        group(join("/sys/fs/cgroup", folder), mib(4000), 800 * kMiB);
    expect(1000, "");
}

// Training data that was read stays in memory as long as nobody else needs it: it is not in the way.
TEST_F(AvailableMemoryTest, PagesOfFilesCanBeDropped) {
    write("/proc/self/cgroup", "0::/box\n");
    group("/sys/fs/cgroup/box", mib(500), 480 * kMiB, 300 * kMiB, 80 * kMiB);
    expect(400, "/sys/fs/cgroup/box/memory.max");
    fs::remove(root_ + "/sys/fs/cgroup/box/memory.stat");
    expect(20, "/sys/fs/cgroup/box/memory.max");
}

// Without a namespace of its own, a container's /proc names the group as the host sees it, and /sys shows the
// container's as the top.
TEST_F(AvailableMemoryTest, OfAContainer) {
    for (const char* path : {"/", "/docker/0123abcd", "/../../kubepods/pod1"}) {
        write("/proc/self/cgroup", join("0::", path, "\n"));
        group("/sys/fs/cgroup", mib(64), 4 * kMiB);
        expect(60, "/sys/fs/cgroup/memory.max");
    }
}

TEST_F(AvailableMemoryTest, OfVersion1) {
    write("/proc/self/cgroup", "9:cpu,cpuacct:/elsewhere\n4:hugetlb,memory:/job/step\n1:name=systemd:/a:b\n0::/\n");
    const auto group = [&](const std::string& folder, const std::string& limit, uint64_t taken) {
        write(folder + "/memory.limit_in_bytes", limit + "\n");
        write(folder + "/memory.usage_in_bytes", join(taken, "\n"));
        write(folder + "/memory.stat", join("inactive_file 7\nactive_file 7\ntotal_inactive_file ", 10 * kMiB,
                                            "\ntotal_active_file ", 20 * kMiB, "\n"));
    };
    const std::string none = "9223372036854771712";
    group("/sys/fs/cgroup/memory", none, 900 * kMiB);
    group("/sys/fs/cgroup/memory/job", mib(300), 130 * kMiB);
    group("/sys/fs/cgroup/memory/job/step", none, 130 * kMiB);
    group("/sys/fs/cgroup/memory/elsewhere", mib(1), 0);
    expect(200, "/sys/fs/cgroup/memory/job/memory.limit_in_bytes");
}

Config config_with(const std::string& device, const std::string& host_memory) {
    return parse_config(R"({"model": {"n_layers": 1, "d_model": 64, "n_heads": 1, "context_length": 16,
                            "vocab_size": 100}, "data": {"train": ["x.bin"]},
                            "training": {"steps": 1, "batch_tokens": 16, "micro_batch_size": 1}})",
                        "test", {"training.device=" + device, "checkpoint.host_memory=" + host_memory});
}

// Beyond a limit the system kills the process as it touches the pages, in the middle of a start: the plan says so
// first.
TEST(TrainingPlanMemory, IsHeldAgainstTheLimitOfTheHost) {
    const auto refusal = [](const Device& device, const std::string& host_memory, uint64_t bytes) -> std::string {
        const Config config = config_with(device.is_cpu() ? "cpu" : "cuda", host_memory);
        return user_error_of([&] { TrainingPlan(config, device, one_rank().get()).check_host_memory({bytes, "/limit"}); });
    };
    const std::string cpu = refusal(Device::cpu(), "0", kMiB / 4);
    EXPECT_NE(cpu.find(" of memory, 256.00 KiB are free within the limit in /limit: use a smaller "), std::string::npos)
        << cpu;
    EXPECT_EQ(refusal(Device::cpu(), "0", 64 * kMiB), "");
    // The snapshot of a save, three times the weights, is page-locked; without it some KiB of batches are left.
    const Device planned = Device::planned_cuda();
    const std::string locked = refusal(planned, "1000000000", kMiB / 4);
    EXPECT_NE(locked.find(" of page-locked host memory, 256.00 KiB are free within the limit in /limit: set a lower "
                          "checkpoint.host_memory"),
              std::string::npos)
        << locked;
    EXPECT_EQ(refusal(planned, "0", kMiB / 4), "");
    EXPECT_EQ(refusal(planned, "1000000000", AvailableMemory::kUnknown), "");
}

}  // namespace
}  // namespace ingot::test
