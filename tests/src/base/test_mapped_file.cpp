// Mapped files that become shorter: an error for whoever reads them, on any thread, and for nobody else.
//
// Seen to catch: no handler; a handler that takes every SIGBUS; the last page left out, that of the mapping or that of
// the shorter file.
#include "src/base/mapped_file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <thread>

#include "tests/support/errors.h"
#include "tests/support/in_folder.h"

namespace ingot {
namespace {

namespace fs = std::filesystem;

class MappedFiles : public test::InFolder {
  protected:
    // Writes a file of ones and returns its path.
    std::string file(const char* name, size_t bytes) const { return write(name, std::string(bytes, '\1')); }
};

constexpr size_t kBytes = size_t{1} << 20;

int64_t sum(const MappedFile& file, size_t begin, size_t end) {
    int64_t result = 0;
    for (size_t i = begin; i < end; ++i) result += file.data.get()[i];
    return result;
}

std::string fault_of(const MappedFile& file) {
    return test::user_error_of([&] { file.require_intact(); });
}

TEST_F(MappedFiles, OneThatBecomesShorterIsAnErrorAndOthersAreNot) {
    const std::string path = file("a", kBytes);
    const MappedFile mapped = map_file(path), other = map_file(file("b", kBytes));
    EXPECT_EQ(sum(mapped, 0, kBytes), static_cast<int64_t>(kBytes));
    EXPECT_EQ(fault_of(mapped), "");
    fs::resize_file(path, 100'000);
    // The page in which it ends now reads without a signal, and what lies behind the end as zeros.
    EXPECT_EQ(sum(mapped, 99'000, 101'000), 1000);
    EXPECT_THROW(mapped.require_intact(101'000), UserError);
    EXPECT_LT(sum(mapped, 0, kBytes), static_cast<int64_t>(kBytes));
    EXPECT_EQ(fault_of(mapped), path + " became shorter while it was read: restore the file");
    EXPECT_EQ(sum(other, 0, kBytes), static_cast<int64_t>(kBytes));
    EXPECT_EQ(fault_of(other), "");
}

TEST_F(MappedFiles, OneThatWasCutAndWrittenAgainStaysAnError) {
    const std::string path = file("a", kBytes);
    const MappedFile mapped = map_file(path);
    fs::resize_file(path, 0);
    EXPECT_EQ(sum(mapped, 10'000, 10'001), 0);
    file("a", kBytes);
    EXPECT_EQ(fault_of(mapped), path + " could not be read: it was cut short, or its disk failed: restore the file");
    // Opened again it is a file like any other.
    const MappedFile again = map_file(path);
    EXPECT_EQ(sum(again, 0, kBytes), static_cast<int64_t>(kBytes));
    EXPECT_EQ(fault_of(again), "");
}

TEST_F(MappedFiles, TheLastPageGivesNoSignal) {
    const std::string path = file("a", 5000);
    const MappedFile mapped = map_file(path);
    fs::resize_file(path, 4999);
    EXPECT_EQ(sum(mapped, 0, 5000), 4999);
    EXPECT_EQ(fault_of(mapped), path + " became shorter while it was read: restore the file");
}

TEST_F(MappedFiles, OneThatWasReplacedStaysWhatItWas) {
    const std::string path = file("a", 5000);
    const MappedFile mapped = map_file(path);
    fs::rename(file("b", 10), path);
    EXPECT_EQ(sum(mapped, 0, 5000), 5000);
    EXPECT_EQ(fault_of(mapped), "");
    fs::remove(path);
    EXPECT_EQ(fault_of(mapped), "");
}

TEST_F(MappedFiles, AnyThreadMayReadIt) {
    const std::string path = file("a", kBytes);
    const MappedFile mapped = map_file(path);
    fs::resize_file(path, 0);
    int64_t total = 0;
#pragma omp parallel for reduction(+ : total) num_threads(4)
    for (size_t i = 0; i < kBytes; i += 1024) total += sum(mapped, i, i + 1024);
    EXPECT_EQ(total, 0);
    EXPECT_NE(fault_of(mapped), "");
    const std::string other = file("b", kBytes);
    const MappedFile in_thread = map_file(other);
    fs::resize_file(other, 0);
    std::thread([&] { EXPECT_EQ(sum(in_thread, 0, kBytes), 0); }).join();
    EXPECT_NE(fault_of(in_thread), "");
}

TEST_F(MappedFiles, AnEmptyOneIsNothing) {
    const MappedFile mapped = map_file(file("a", 0));
    EXPECT_EQ(mapped.data, nullptr);
    EXPECT_EQ(fault_of(mapped), "");
}

// A mapping that is not ours, or one that was: the default action, as if there were no handler. (Under sanitizers that
// is their report.)
TEST_F(MappedFiles, EveryOtherBusErrorEndsTheProcess) {
    testing::FLAGS_gtest_death_test_style = "threadsafe";
    const std::string path = file("a", kBytes);
    const auto read_foreign = [&] {
        { const MappedFile ours = map_file(path); }
        std::FILE* const stream = std::fopen(path.c_str(), "rb");
        const auto* const memory =
            static_cast<const volatile char*>(mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, fileno(stream), 0));
        fs::resize_file(path, 0);
        std::exit(memory[kBytes - 1]);
    };
    EXPECT_DEATH(read_foreign(), "");
    EXPECT_DEATH(
        {
            const MappedFile ours = map_file(file("b", 10));
            kill(getpid(), SIGBUS);
            std::exit(0);
        },
        "");
}

}  // namespace
}  // namespace ingot
