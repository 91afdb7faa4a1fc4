#include "src/parallel/launcher.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <set>

#include "kernels/core/check.h"
#include "kernels/core/measure.h"
#include "src/base/signals.h"
#include "src/base/text.h"
#include "src/parallel/socket.h"
#include "src/parallel/world.h"

extern char** environ;

namespace ingot {

namespace {

constexpr double kMargin = 5;         // seconds above the timeout of the control plane
constexpr double kAfterVerdict = 15;  // once a rank has ended with code 4, all have been told
constexpr double kBeforeKilling = 5;  // between SIGTERM and SIGKILL
constexpr size_t kLongestLine = 64 << 10;
constexpr unsigned char kChildEnded = 0;  // among the numbers of signals

int events_to = -1;  // the descriptor that the handler of SIGCHLD writes to

void note_end_of_child(int) {
    const int error = errno;
    (void)!write(events_to, &kChildEnded, 1);
    errno = error;
}

struct Pipe {
    Socket read, write;
    explicit Pipe(int flags) {
        int ends[2];
        REQUIRE(pipe2(ends, flags | O_CLOEXEC) == 0, "the ranks cannot be started: ", std::strerror(errno));
        read = Socket(ends[0]);
        write = Socket(ends[1]);
    }
};

int num_cores() {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    return sched_getaffinity(0, sizeof cores, &cores) == 0 ? std::max(1, CPU_COUNT(&cores)) : 1;
}

std::string random_nonce() {
    unsigned char bytes[16];
    CHECK(getrandom(bytes, sizeof bytes, 0) == sizeof bytes, "getrandom: ", std::strerror(errno));
    std::string text;
    for (const unsigned char byte : bytes) {
        char digits[3];
        std::snprintf(digits, sizeof digits, "%02x", byte);
        text += digits;
    }
    return text;
}

std::vector<char*> pointers_to(std::vector<std::string>* texts) {
    std::vector<char*> pointers;
    for (std::string& text : *texts) pointers.push_back(text.data());
    pointers.push_back(nullptr);
    return pointers;
}

class Launcher {
  public:
    explicit Launcher(const Launch& launch) : launch_(launch), ranks_(static_cast<size_t>(launch.num_ranks)) {}
    int run();

  private:
    struct Rank {
        pid_t process = 0;  // 0: it has ended, and was waited for
        Socket output;      // what it writes; closed for the first rank
        std::string line;   // the beginning of one, without its end
        bool is_ended_by_us = false;
    };
    std::vector<std::string> environment_of(int64_t rank, int port, const std::string& nonce) const;
    void start(int64_t rank, int port, const std::string& nonce);
    [[noreturn]] void become(int64_t rank, int output, char** arguments, char** environment, pid_t parent) const;
    void wait_for_events();
    void take_events();
    void pass_on(int signal);
    void take_ends();
    void take_end(int64_t rank, pid_t process, int status);
    void pass_output(int64_t rank);
    void print_line(int64_t rank, const std::string& line) const;
    void end_the_rest();
    void send_all(int signal);
    bool is_running() const {
        return std::any_of(ranks_.begin(), ranks_.end(), [](const Rank& rank) { return rank.process != 0; });
    }
    int exit_code() const;

    const Launch& launch_;
    std::vector<Rank> ranks_;
    Pipe events_{O_NONBLOCK};
    std::set<int> passed_on_;    // signals
    bool is_abandoned_ = false;  // by a second Ctrl-C
    int num_interrupts_ = 0;
    std::optional<double> end_rest_at_;  // when the ranks that are left are ended, by seconds_now()
    int signal_for_rest_ = SIGTERM;
    // Of the first rank that failed for a reason of its own; and what others ended with.
    std::optional<int> own_code_;
    bool has_missed_a_peer_ = false, was_interrupted_ = false;
};

// ---- The start ----

std::vector<std::string> Launcher::environment_of(int64_t rank, int port, const std::string& nonce) const {
    std::vector<std::pair<std::string, std::string>> own = {
        {"RANK", std::to_string(rank)},        {"WORLD_SIZE", std::to_string(launch_.num_ranks)},
        {"LOCAL_RANK", std::to_string(rank)},  {"MASTER_ADDR", "127.0.0.1"},
        {"MASTER_PORT", std::to_string(port)}, {kNonceVariable, nonce}};
    if (std::getenv("OMP_NUM_THREADS") == nullptr)
        own.emplace_back("OMP_NUM_THREADS", std::to_string(std::max<int64_t>(1, num_cores() / launch_.num_ranks)));
    std::vector<std::string> all;
    for (char** each = environ; *each != nullptr; ++each) {
        const std::string text = *each;
        const std::string name = text.substr(0, text.find('='));
        if (std::none_of(own.begin(), own.end(), [&](const auto& variable) { return variable.first == name; }))
            all.push_back(text);
    }
    for (const auto& [name, value] : own) all.push_back(name + "=" + value);
    return all;
}

void Launcher::start(int64_t rank, int port, const std::string& nonce) {
    std::vector<std::string> arguments = launch_.arguments;
    std::vector<std::string> environment = environment_of(rank, port, nonce);
    const std::vector<char*> argument_pointers = pointers_to(&arguments);
    const std::vector<char*> environment_pointers = pointers_to(&environment);
    std::optional<Pipe> output;
    if (rank > 0) output.emplace(0);
    const pid_t parent = getpid();
    const pid_t process = fork();
    if (process == 0)
        become(rank, output ? output->write.descriptor() : -1, const_cast<char**>(argument_pointers.data()),
               const_cast<char**>(environment_pointers.data()), parent);
    if (process < 0) {
        const int error = errno;
        send_all(SIGKILL);
        throw UserError(join("rank ", rank, " cannot be started: ", std::strerror(error)));
    }
    Rank& started = ranks_[static_cast<size_t>(rank)];
    started.process = process;
    if (!output) return;
    started.output = std::move(output->read);
    fcntl(started.output.descriptor(), F_SETFL, O_NONBLOCK);
}

// The child: until exec only what may be called between fork and exec in a process with threads.
void Launcher::become(int64_t rank, int output, char** arguments, char** environment, pid_t parent) const {
    // In a group of its own it gets a terminal's Ctrl-C once, from the launcher; and it may write to the terminal.
    setpgid(0, 0);
    signal(SIGTTOU, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(kExitFault);
    if (rank > 0) {
        const int nothing = open("/dev/null", O_RDONLY);
        dup2(nothing, STDIN_FILENO);
        dup2(output, STDOUT_FILENO);
        dup2(output, STDERR_FILENO);
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    execve(launch_.program.c_str(), arguments, environment);
    constexpr char kText[] = "error: the program cannot be started again\n";
    (void)!write(STDERR_FILENO, kText, sizeof kText - 1);
    _exit(kExitFault);
}

// ---- While they run ----

int Launcher::run() {
    const Socket port = reserve_port();
    const std::string nonce = random_nonce();
    std::fflush(nullptr);
    events_to = events_.write.descriptor();
    hand_over_stop_signals(events_to);
    struct sigaction action {};
    action.sa_handler = note_end_of_child;
    action.sa_flags = SA_RESTART | SA_NOCLDSTOP;
    sigaction(SIGCHLD, &action, nullptr);
    for (int64_t rank = 0; rank < launch_.num_ranks; ++rank) start(rank, port_of(port), nonce);
    outlive_the_reader();
    while (is_running()) {
        wait_for_events();
        take_events();
        if (end_rest_at_ && seconds_now() >= *end_rest_at_) end_the_rest();
    }
    for (int64_t rank = 0; rank < launch_.num_ranks; ++rank) {
        pass_output(rank);
        print_line(rank, ranks_[static_cast<size_t>(rank)].line);
    }
    return exit_code();
}

void Launcher::wait_for_events() {
    std::vector<pollfd> polled = {{events_.read.descriptor(), POLLIN, 0}};
    std::vector<int64_t> polled_ranks = {-1};
    for (int64_t rank = 0; rank < launch_.num_ranks; ++rank) {
        const Socket& output = ranks_[static_cast<size_t>(rank)].output;
        if (!output.is_open()) continue;
        polled.push_back({output.descriptor(), POLLIN, 0});
        polled_ranks.push_back(rank);
    }
    const double seconds = end_rest_at_ ? std::max(0.0, *end_rest_at_ - seconds_now()) : -1;
    poll(polled.data(), polled.size(), seconds < 0 ? -1 : static_cast<int>(std::min(seconds, 1e5) * 1000) + 1);
    for (size_t i = 1; i < polled.size(); ++i)
        if (polled[i].revents != 0) pass_output(polled_ranks[i]);
}

void Launcher::take_events() {
    unsigned char event = 0;
    bool has_ended = false;
    while (read(events_.read.descriptor(), &event, 1) == 1) {
        if (event == kChildEnded)
            has_ended = true;
        else
            pass_on(event);
    }
    if (has_ended) take_ends();
}

void Launcher::pass_on(int signal) {
    if (signal == SIGINT && ++num_interrupts_ == 2) {
        is_abandoned_ = true;
        send_all(SIGKILL);
        return;
    }
    passed_on_.insert(signal);
    send_all(signal);
}

void Launcher::send_all(int signal) {
    for (const Rank& rank : ranks_)
        if (rank.process != 0) kill(rank.process, signal);
}

void Launcher::pass_output(int64_t number) {
    Rank& rank = ranks_[static_cast<size_t>(number)];
    char bytes[4096];
    while (rank.output.is_open()) {
        const ssize_t count = read(rank.output.descriptor(), bytes, sizeof bytes);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0 && errno == EAGAIN) return;
        if (count <= 0) return rank.output.close();
        for (ssize_t i = 0; i < count; ++i) {
            if (bytes[i] != '\n') rank.line += bytes[i];
            if (bytes[i] != '\n' && rank.line.size() < kLongestLine) continue;
            print_line(number, rank.line);
            rank.line.clear();
        }
    }
}

void Launcher::print_line(int64_t rank, const std::string& line) const {
    if (!line.empty()) std::fprintf(stderr, "[rank %lld] %s\n", static_cast<long long>(rank), line.c_str());
}

// ---- Their ends ----

void Launcher::take_ends() {
    for (int64_t rank = 0; rank < launch_.num_ranks; ++rank) {
        Rank& each = ranks_[static_cast<size_t>(rank)];
        int status = 0;
        const pid_t process = each.process;
        if (process == 0 || waitpid(process, &status, WNOHANG) != process) continue;
        each.process = 0;  // nothing is sent to its number any more, which another process may get
        take_end(rank, process, status);
    }
}

void Launcher::take_end(int64_t number, pid_t process, int status) {
    const Rank& rank = ranks_[static_cast<size_t>(number)];
    if (is_abandoned_ || rank.is_ended_by_us) return;
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : kExitPeer;
    bool is_own = code != kExitPeer;
    if (WIFSIGNALED(status)) {
        const int signal = WTERMSIG(status);
        // The rank had not begun to catch the signal. If it was sent to this rank alone, all others are to stop too.
        if (is_stop_signal(signal)) {
            was_interrupted_ = true;
            if (passed_on_.count(signal) == 0) pass_on(signal);
            return;
        }
        is_own = true;
        pass_output(number);
        std::fprintf(stderr, "error: rank %lld (process %d) was ended by signal %d (%s)\n",
                     static_cast<long long>(number), static_cast<int>(process), signal, strsignal(signal));
    }
    if (code == kExitInterrupted) was_interrupted_ = true;
    if (code == kExitDone || code == kExitInterrupted) return;
    if (is_own && !own_code_) own_code_ = code;
    if (code == kExitPeer && !is_own) has_missed_a_peer_ = true;
    double seconds = launch_.timeout_seconds + kMargin;
    if (!is_own) seconds = std::min(seconds, kAfterVerdict);
    const double end = seconds_now() + seconds;
    end_rest_at_ = end_rest_at_ ? std::min(*end_rest_at_, end) : end;
}

void Launcher::end_the_rest() {
    for (int64_t number = 0; number < launch_.num_ranks; ++number) {
        Rank& rank = ranks_[static_cast<size_t>(number)];
        if (rank.process == 0) continue;
        if (!rank.is_ended_by_us)
            std::fprintf(stderr, "error: rank %lld (process %d) does not end after another has failed: ending it\n",
                         static_cast<long long>(number), static_cast<int>(rank.process));
        rank.is_ended_by_us = true;
        kill(rank.process, signal_for_rest_);
    }
    signal_for_rest_ = SIGKILL;
    end_rest_at_ = seconds_now() + kBeforeKilling;
}

int Launcher::exit_code() const {
    if (is_abandoned_) return 128 + SIGINT;
    if (own_code_) return *own_code_;
    // Ranks that had begun to train miss one that a signal ended before.
    if (was_interrupted_) return kExitInterrupted;
    return has_missed_a_peer_ ? kExitPeer : kExitDone;
}

}  // namespace

int launch_ranks(const Launch& launch) {
    return Launcher(launch).run();
}

int64_t count_in_child(const std::function<int64_t()>& count) {
    const Pipe result(0);
    const pid_t process = fork();
    REQUIRE(process >= 0, "a process cannot be started: ", std::strerror(errno));
    if (process == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int64_t number = 0;
        try {
            number = count();
        } catch (...) {}
        (void)!write(result.write.descriptor(), &number, sizeof number);
        _exit(0);
    }
    int status = 0;
    while (waitpid(process, &status, 0) < 0 && errno == EINTR) continue;
    int64_t number = 0;
    fcntl(result.read.descriptor(), F_SETFL, O_NONBLOCK);
    return read(result.read.descriptor(), &number, sizeof number) == sizeof number ? number : 0;
}

}  // namespace ingot
