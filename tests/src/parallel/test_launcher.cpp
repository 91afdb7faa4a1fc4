// Seen to catch: a rank that outlives a failed one, the code of a rank that only missed another, a signal that is not
// passed on, lines without their rank, ranks that outlive a killed launcher.
#include "src/parallel/launcher.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include "kernels/core/measure.h"
#include "src/base/signals.h"

namespace ingot::test {
namespace {

// A launcher in a process of its own, whose ranks are shells that run a script.
class LauncherProcess {
  public:
    LauncherProcess(const std::string& script, int64_t num_ranks, double timeout_seconds = 60) {
        int out[2], error[2];
        if (pipe(out) != 0 || pipe(error) != 0) std::abort();
        std::fflush(stdout);  // else the child writes what is buffered once more
        process_ = fork();
        if (process_ == 0) {
            dup2(out[1], STDOUT_FILENO);
            dup2(error[1], STDERR_FILENO);
            for (const int end : {out[0], out[1], error[0], error[1]}) close(end);
            start_signal_thread();
            _exit(launch_ranks({.program = "/bin/sh",
                                .arguments = {"sh", "-c", script},
                                .num_ranks = num_ranks,
                                .timeout_seconds = timeout_seconds}));
        }
        close(out[1]);
        close(error[1]);
        out_ = out[0];
        error_ = error[0];
    }
    ~LauncherProcess() {
        if (process_ > 0) {
            kill(process_, SIGKILL);
            waitpid(process_, nullptr, 0);
        }
        close(out_);
        close(error_);
    }

    void send(int signal) const { kill(process_, signal); }
    // Reads stdout until this text has come.
    void wait_for(const std::string& text) {
        char byte = 0;
        while (output.find(text) == std::string::npos && read(out_, &byte, 1) == 1) output += byte;
    }
    // Waits for the end; returns the exit code, or minus the signal.
    int code() {
        std::thread reader([&] { take_all(error_, &errors); });
        take_all(out_, &output);
        reader.join();
        int status = 0;
        waitpid(process_, &status, 0);
        process_ = 0;
        return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    }

    std::string output, errors;

  private:
    static void take_all(int descriptor, std::string* text) {
        char bytes[4096];
        for (ssize_t count = 0; (count = read(descriptor, bytes, sizeof bytes)) > 0;)
            text->append(bytes, static_cast<size_t>(count));
    }
    pid_t process_ = 0;
    int out_ = -1, error_ = -1;
};

void expect_text(const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\nin: " << text;
}

TEST(Launcher, GivesEachRankItsPlace) {
    LauncherProcess launcher(
        "echo $RANK $WORLD_SIZE $LOCAL_RANK $MASTER_ADDR $MASTER_PORT $INGOT_RUN_NONCE >&2; echo out $RANK", 3);
    ASSERT_EQ(launcher.code(), 0);
    EXPECT_EQ(launcher.output, "out 0\n");
    const std::string first = launcher.errors.substr(launcher.errors.find("0 3 0 127.0.0.1 "));
    const std::string rest = first.substr(16, first.find('\n') - 16);  // port and nonce
    EXPECT_EQ(rest.size() - rest.find(' ') - 1, 32u);
    for (const char* const rank : {"1", "2"}) {
        const std::string prefix = std::string("[rank ") + rank + "] ";
        expect_text(launcher.errors, prefix + rank + " 3 " + rank + " 127.0.0.1 " + rest + "\n");
        expect_text(launcher.errors, prefix + "out " + rank + "\n");
    }
}

TEST(Launcher, PassesWholeLinesAndThoseWithoutAnEnd) {
    LauncherProcess launcher("printf 'a\\nb'; sleep 0.1; printf 'c\\n\\nlast'", 2);
    EXPECT_EQ(launcher.code(), 0);
    EXPECT_EQ(launcher.output, "a\nbc\n\nlast");
    EXPECT_EQ(launcher.errors, "[rank 1] a\n[rank 1] bc\n[rank 1] last\n");
}

TEST(Launcher, SharesTheCores) {
    const char* const before = std::getenv("OMP_NUM_THREADS");
    const std::string value = before == nullptr ? "" : before;
    unsetenv("OMP_NUM_THREADS");
    LauncherProcess shared("echo $OMP_NUM_THREADS", 1000 > sysconf(_SC_NPROCESSORS_ONLN) ? 2 : 1);
    setenv("OMP_NUM_THREADS", "3", 1);
    LauncherProcess kept("echo $OMP_NUM_THREADS", 2);
    if (before == nullptr)
        unsetenv("OMP_NUM_THREADS");
    else
        setenv("OMP_NUM_THREADS", value.c_str(), 1);
    EXPECT_EQ(shared.code(), 0);
    const int threads = std::atoi(shared.output.c_str());
    EXPECT_GE(threads, 1);
    EXPECT_LE(2 * threads, std::max<long>(2, sysconf(_SC_NPROCESSORS_ONLN)));
    EXPECT_EQ(kept.code(), 0);
    EXPECT_EQ(kept.output, "3\n");
}

TEST(Launcher, HasTheCodeOfTheRankThatFailed) {
    const std::pair<const char*, int> cases[] = {
        {"exit 0", 0},
        {"exit 75", 75},
        {"exit 4", 4},
        {"[ $RANK = 1 ] && exit 2; sleep 0.3; exit 4", 2},
        {"[ $RANK = 1 ] && { sleep 0.3; exit 5; }; exit 4", 5},
        {"[ $RANK = 2 ] && exit 3; exit 0", 3},
        {"[ $RANK = 2 ] && exit 75; exit 0", 75},
        {"[ $RANK = 0 ] && exit 1; exit 75", 1},
    };
    for (const auto& [script, code] : cases) {
        LauncherProcess launcher(script, 3);
        EXPECT_EQ(launcher.code(), code) << script;
    }
}

TEST(Launcher, NamesARankThatASignalEnded) {
    LauncherProcess launcher("[ $RANK = 1 ] && kill -9 $$; sleep 0.5; exit 4", 3);
    EXPECT_EQ(launcher.code(), 4);
    expect_text(launcher.errors, "error: rank 1 (process ");
    expect_text(launcher.errors, "was ended by signal 9 (Killed)");
}

TEST(Launcher, EndsTheRestAfterTheTimeout) {
    // Rank 1 ignores SIGTERM, and rank 2 is stopped.
    const double start = seconds_now();
    LauncherProcess launcher(
        "[ $RANK = 0 ] && exit 2; [ $RANK = 1 ] && trap '' TERM; [ $RANK = 2 ] && kill -STOP $$; "
        "for i in $(seq 1000); do sleep 1; done",
        3, 0.2);
    EXPECT_EQ(launcher.code(), 2);
    EXPECT_GT(seconds_now() - start, 5);
    for (const char* const rank : {"rank 1", "rank 2"})
        expect_text(launcher.errors, std::string("error: ") + rank + " (");
}

TEST(Launcher, PassesSignalsOn) {
    for (const auto& [signal, name] :
         {std::pair(SIGTERM, "TERM"), {SIGINT, "INT"}, {SIGUSR1, "USR1"}, {SIGHUP, "HUP"}}) {
        LauncherProcess launcher(
            std::string("trap 'echo saved; exit 75' ") + name + "; echo ready; while :; do sleep 0.05; done", 1);
        launcher.wait_for("ready");
        launcher.send(signal);
        EXPECT_EQ(launcher.code(), 75) << name;
        expect_text(launcher.output, "saved");
    }
}

TEST(Launcher, ASignalBeforeTheRanksCatchItIsAnInterruption) {
    LauncherProcess launcher("echo ready; exec sleep 100", 2);
    launcher.wait_for("ready");
    launcher.send(SIGTERM);
    EXPECT_EQ(launcher.code(), 75);
}

TEST(Launcher, ASignalBeforeOneRankCatchesItStopsAll) {
    // Rank 1 is ended by a signal that it does not catch yet. Rank 0 misses it, and rank 2 saves.
    LauncherProcess launcher(
        "[ $RANK = 0 ] && { trap '' TERM; sleep 1; exit 4; }; "
        "[ $RANK = 1 ] && { sleep 0.5; kill -TERM $$; }; "
        "trap 'echo saved; exit 75' TERM; while :; do sleep 0.05; done",
        3);
    EXPECT_EQ(launcher.code(), 75);
    expect_text(launcher.errors, "[rank 2] saved");
}

TEST(Launcher, ASecondCtrlCEndsAtOnce) {
    LauncherProcess launcher("trap 'echo once' INT; echo ready; while :; do sleep 0.05; done", 2);
    launcher.wait_for("ready");
    launcher.send(SIGINT);
    launcher.wait_for("once");
    launcher.send(SIGINT);
    EXPECT_EQ(launcher.code(), 130);
}

TEST(Launcher, NoRankOutlivesIt) {
    LauncherProcess launcher("echo process $$ at; exec sleep 100", 1);
    launcher.wait_for("at");
    const pid_t rank = std::atoi(launcher.output.c_str() + std::string("process ").size());
    ASSERT_GT(rank, 0);
    launcher.send(SIGKILL);
    EXPECT_EQ(launcher.code(), -SIGKILL);
    const auto is_alive = [&] {
        const std::string stat = "/proc/" + std::to_string(rank) + "/stat";
        std::FILE* const file = std::fopen(stat.c_str(), "r");
        if (file == nullptr) return false;
        char state = 'Z';
        if (std::fscanf(file, "%*d (%*[^)]) %c", &state) != 1) state = 'Z';
        std::fclose(file);
        return state != 'Z';
    };
    for (int i = 0; i < 500 && is_alive(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_FALSE(is_alive());
}

TEST(Launcher, CountsInAProcessOfItsOwn) {
    const pid_t self = getpid();
    EXPECT_EQ(count_in_child([&] { return getpid() == self ? 1 : 8; }), 8);
    EXPECT_EQ(count_in_child([]() -> int64_t { std::abort(); }), 0);
    EXPECT_EQ(count_in_child([]() -> int64_t { throw 1; }), 0);
}

}  // namespace
}  // namespace ingot::test
