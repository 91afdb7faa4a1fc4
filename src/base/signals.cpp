#include "src/base/signals.h"

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>

namespace ingot {

namespace {

std::atomic<bool> is_caught = false;
std::atomic<int> handed_over_to = -1;  // a descriptor
std::atomic<int> received = 0;
std::atomic<int> num_interrupts = 0;

constexpr int kStopSignals[] = {SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGPWR, SIGXCPU, SIGHUP};

// nohup(1) sets SIGHUP to be ignored, and it must stay so.
bool is_ignored(int number) {
    struct sigaction action {};
    sigaction(number, nullptr, &action);
    return action.sa_handler == SIG_IGN;
}

sigset_t stop_signals() {
    sigset_t signals;
    sigemptyset(&signals);
    for (const int signal : kStopSignals)
        if (signal != SIGHUP || !is_ignored(SIGHUP)) sigaddset(&signals, signal);
    return signals;
}

void note(int number) {
    if (number == SIGINT && ++num_interrupts == 2) _exit(130);
    int none = 0;
    received.compare_exchange_strong(none, number);
}

// Restores the default action and sends the signal again.
void end_process(int number) {
    signal(number, SIG_DFL);
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, number);
    pthread_sigmask(SIG_UNBLOCK, &one, nullptr);
    kill(getpid(), number);
}

// This handler runs only in threads of others that do not block the signals, such as some of the NVIDIA driver's.
void handle(int number) {
    const auto byte = static_cast<unsigned char>(number);
    if (handed_over_to >= 0)
        (void)!write(handed_over_to, &byte, 1);
    else if (is_caught)
        note(number);
    else
        end_process(number);
}

void wait_for_signals() {
    const sigset_t signals = stop_signals();
    for (;;) {
        int number = 0;
        if (sigwait(&signals, &number) == 0) handle(number);
    }
}

}  // namespace

void start_signal_thread() {
    struct sigaction action {};
    action.sa_handler = handle;
    action.sa_flags = SA_RESTART;
    const sigset_t signals = stop_signals();
    action.sa_mask = signals;
    for (const int number : kStopSignals)
        if (sigismember(&signals, number)) sigaction(number, &action, nullptr);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    std::thread(wait_for_signals).detach();
    signal(SIGXFSZ, SIG_IGN);
}

void reserve_cpu_time_for_saving() {
    rlimit limit{};
    if (getrlimit(RLIMIT_CPU, &limit) != 0 || limit.rlim_max == RLIM_INFINITY) return;
    // Reserves a tenth, since CPU time of all threads counts, while saving and before it; but at most ten minutes.
    const rlim_t reserve = std::clamp<rlim_t>(limit.rlim_max / 10, 1, 600);
    if (limit.rlim_max <= reserve || limit.rlim_cur <= limit.rlim_max - reserve) return;
    limit.rlim_cur = limit.rlim_max - reserve;
    setrlimit(RLIMIT_CPU, &limit);
}

void catch_stop_signals() {
    is_caught = true;
}

void hand_over_stop_signals(int descriptor) {
    handed_over_to = descriptor;
}

void outlive_the_reader() {
    signal(SIGPIPE, SIG_IGN);
}

int stop_signal() {
    return received;
}

bool is_stop_signal(int number) {
    return std::find(std::begin(kStopSignals), std::end(kStopSignals), number) != std::end(kStopSignals);
}

std::string describe_signal(int number) {
    const std::string text = "signal " + std::to_string(number);
    if (number == SIGXCPU) return text + " (the limit of CPU time is reached: raise ulimit -t)";
    if (number == SIGPWR) return text + " (the power is failing)";
    return text;
}

}  // namespace ingot
