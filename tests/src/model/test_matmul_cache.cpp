// The machine's cache of GEMM algorithms: choices that are written are read, and nothing that is wrong with it stops a
// run.
// Seen to catch: a cache of another machine that is taken; a file that is written in place.
#include "src/model/matmul_cache.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>

#include "tests/support/in_folder.h"

namespace ingot::test {
namespace {

namespace fs = std::filesystem;

const std::string kMachine = "NVIDIA H100 80GB HBM3, cuBLASLt 13.1.0";

// The environment is the test's own, and put back at its end.
class MatmulCache : public InFolder {
  protected:
    void SetUp() override {
        for (const char* name : {"XDG_CACHE_HOME", "HOME"}) {
            const char* const value = std::getenv(name);
            before_.emplace_back(name, value == nullptr ? std::nullopt : std::optional<std::string>(value));
        }
        setenv("XDG_CACHE_HOME", path("cache").c_str(), 1);
    }
    void TearDown() override {
        for (const auto& [name, value] : before_) value ? setenv(name, value->c_str(), 1) : unsetenv(name);
    }

    std::vector<MatmulChoice> read(const std::string& machine = kMachine) { return read_matmul_cache(machine, &note_); }
    void write(const std::vector<MatmulChoice>& choices, const std::string& machine = kMachine) {
        write_matmul_cache(machine, choices, &note_);
    }
    // Puts other bytes into the cache's file.
    void damage(const std::string& bytes) const { InFolder::write(file_, bytes); }
    size_t num_files() const {
        return static_cast<size_t>(std::distance(fs::directory_iterator(path("cache/ingot")), {}));
    }

    const std::string file_ = "cache/ingot/matmul-NVIDIA-H100-80GB-HBM3-cuBLASLt-13.1.0.json";
    std::string note_;
    std::vector<std::pair<const char*, std::optional<std::string>>> before_;
};

MatmulChoice timed(const std::string& gemm, const std::string& algorithm) {
    return {gemm, algorithm, MatmulSource::timed};
}

std::string describe(const std::vector<MatmulChoice>& choices) {
    std::string text;
    for (const MatmulChoice& choice : choices) text += choice.gemm + "=" + choice.algorithm + ";";
    return text;
}

TEST_F(MatmulCache, WhatIsWrittenIsRead) {
    EXPECT_TRUE(read().empty());
    EXPECT_EQ(note_, "");
    write({timed("a", "01"), timed("b", "02")});
    EXPECT_EQ(note_, "");
    EXPECT_EQ(matmul_cache_path(kMachine), path(file_));
    const std::vector<MatmulChoice> found = read();
    EXPECT_EQ(describe(found), "a=01;b=02;");
    for (const MatmulChoice& choice : found) EXPECT_EQ(choice.source, MatmulSource::cache);
    // Later choices are added, and replace those of the same GEMM.
    write({timed("b", "03"), timed("c", "04")});
    EXPECT_EQ(describe(read()), "a=01;b=03;c=04;");
    EXPECT_EQ(num_files(), 1u);
}

// A first choice in the cache would keep all later runs from timing the GEMM.
TEST_F(MatmulCache, OnlyWhatWasTimedIsKept) {
    write({timed("a", "01"),
           {"b", "02", MatmulSource::first_choice},
           {"c", "03", MatmulSource::record},
           {"d", "04", MatmulSource::cache}});
    EXPECT_EQ(describe(read()), "a=01;");
    fs::remove_all(path("cache"));
    write({{"b", "02", MatmulSource::first_choice}});
    EXPECT_FALSE(fs::exists(path("cache")));
    EXPECT_EQ(note_, "");
}

TEST_F(MatmulCache, OtherMachinesHaveTheirOwn) {
    const std::string newer = "NVIDIA H100 80GB HBM3, cuBLASLt 13.2.0";
    write({timed("a", "01")});
    EXPECT_TRUE(read(newer).empty());
    EXPECT_EQ(note_, "");
    write({timed("a", "02")}, newer);
    EXPECT_EQ(describe(read()), "a=01;");
    EXPECT_EQ(describe(read(newer)), "a=02;");
    // A file under the wrong name, and names that look alike in a file's name.
    fs::copy_file(matmul_cache_path(kMachine), matmul_cache_path(newer), fs::copy_options::overwrite_existing);
    EXPECT_TRUE(read(newer).empty());
    EXPECT_NE(note_.find("another GPU or library version"), std::string::npos) << note_;
    write({timed("a", "03")}, newer);
    EXPECT_EQ(describe(read(newer)), "a=03;");
}

TEST_F(MatmulCache, DamageIsNotedAndMendedByTheNextWrite) {
    write({timed("a", "01"), timed("b", "02")});
    const std::string whole = InFolder::read(file_);
    const std::string deep(100000, '[');
    for (const std::string& text :
         {std::string(), std::string("{"), std::string("null"), std::string("[]"), std::string("\xff\xfe\0x", 4),
          whole.substr(0, whole.size() / 2), deep, "{\"machine\": " + deep, std::string("{\"machine\": 1}")}) {
        damage(text);
        EXPECT_TRUE(read().empty()) << text.substr(0, 40);
        EXPECT_NE(note_.find(path(file_)), std::string::npos) << text.substr(0, 40);
        EXPECT_EQ(note_.find('\n'), std::string::npos);
    }
    // An entry that is no pair of texts is left out.
    const std::string machine = "{\"machine\": \"" + kMachine + "\", \"choices\": ";
    damage(machine + "{\"a\": 1, \"b\": \"02\", \"c\": {\"d\": \"e\"}}}");
    EXPECT_EQ(describe(read()), "b=02;");
    damage(machine + "7}");
    EXPECT_TRUE(read().empty());
    damage("damaged");
    write({timed("c", "03")});
    EXPECT_EQ(note_, "");
    EXPECT_EQ(describe(read()), "c=03;");
}

TEST_F(MatmulCache, NoFolderIsNoError) {
    unsetenv("XDG_CACHE_HOME");
    unsetenv("HOME");
    EXPECT_EQ(matmul_cache_path(kMachine), "");
    EXPECT_TRUE(read().empty());
    EXPECT_EQ(note_, "");
    write({timed("a", "01")});
    EXPECT_NE(note_.find("HOME"), std::string::npos);
    // A relative path is to be ignored, says the specification.
    setenv("XDG_CACHE_HOME", "cache", 1);
    setenv("HOME", folder_.c_str(), 1);
    EXPECT_EQ(matmul_cache_path(kMachine).rfind(path(".cache/ingot/matmul-"), 0), 0u);
    write({timed("a", "01")});
    EXPECT_EQ(note_, "");
    EXPECT_EQ(describe(read()), "a=01;");
    // No GPU, no cache.
    EXPECT_EQ(matmul_cache_path(""), "");
    write({timed("a", "01")}, "");
    EXPECT_EQ(note_, "");
}

TEST_F(MatmulCache, AFolderThatCannotBeWrittenIsNoted) {
    // A file where the folder should be stops root too.
    InFolder::write("cache", "in the way");
    EXPECT_TRUE(read().empty());
    write({timed("a", "01")});
    EXPECT_NE(note_.find("not kept for later runs"), std::string::npos) << note_;
    EXPECT_EQ(note_.find('\n'), std::string::npos);
    fs::remove(path("cache"));
    // A folder under the cache's own name: neither read nor replaced.
    fs::create_directories(matmul_cache_path(kMachine) + "/inside");
    EXPECT_TRUE(read().empty());
    EXPECT_NE(note_, "");
    write({timed("a", "01")});
    EXPECT_NE(note_, "");
    EXPECT_EQ(num_files(), 1u);  // the temporary file is gone
    if (geteuid() == 0) return;
    fs::remove_all(path("cache/ingot"));
    fs::create_directories(path("cache/ingot"));
    chmod(path("cache/ingot").c_str(), 0500);
    write({timed("a", "01")});
    EXPECT_NE(note_, "");
    chmod(path("cache/ingot").c_str(), 0700);
}

TEST_F(MatmulCache, ProcessesThatWriteAtOnceLeaveAWholeFile) {
    constexpr int kProcesses = 8, kRepeats = 20;
    std::vector<pid_t> children;
    for (int process = 0; process < kProcesses; ++process) {
        const pid_t child = fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            std::string note;
            bool good = true;
            for (int repeat = 0; repeat < kRepeats; ++repeat) {
                const std::string own = join("GEMM ", process, " ", repeat);
                write_matmul_cache(kMachine, {timed(own, std::string(4000, '0')), timed("shared", "01")}, &note);
                good = good && note.empty();
                // Whoever wrote last, it is whole.
                good = good && !read_matmul_cache(kMachine, &note).empty() && note.empty();
            }
            _exit(good ? 0 : 1);
        }
        children.push_back(child);
    }
    for (const pid_t child : children) {
        int status = 0;
        ASSERT_EQ(waitpid(child, &status, 0), child);
        EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    const std::vector<MatmulChoice> found = read();
    EXPECT_EQ(note_, "");
    EXPECT_GE(found.size(), 2u);
    EXPECT_EQ(num_files(), 1u);
}

}  // namespace
}  // namespace ingot::test
