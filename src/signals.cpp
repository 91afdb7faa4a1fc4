#include "src/signals.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <thread>

namespace ingot {

namespace {

std::atomic<bool> is_caught = false;
std::atomic<int> received = 0;

// nohup(1) has SIGHUP ignored, and then it stays so.
bool is_ignored(int number) {
    struct sigaction action {};
    sigaction(number, nullptr, &action);
    return action.sa_handler == SIG_IGN;
}

sigset_t stop_signals() {
    sigset_t signals;
    sigemptyset(&signals);
    for (const int signal : {SIGINT, SIGTERM, SIGUSR1, SIGHUP})
        if (signal != SIGHUP || !is_ignored(SIGHUP)) sigaddset(&signals, signal);
    return signals;
}

void note(int number) {
    if (received == SIGINT && number == SIGINT) _exit(130);
    received = number;
}

// The default action: the signal is no longer ours, and comes again.
void end_process(int number) {
    signal(number, SIG_DFL);
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, number);
    pthread_sigmask(SIG_UNBLOCK, &one, nullptr);
    kill(getpid(), number);
}

// For threads that are not ours and let signals through, as some of the NVIDIA driver's do.
void handle(int number) {
    if (is_caught)
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
    for (const int number : {SIGINT, SIGTERM, SIGUSR1, SIGHUP})
        if (sigismember(&signals, number)) sigaction(number, &action, nullptr);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    std::thread(wait_for_signals).detach();
}

void catch_stop_signals() {
    is_caught = true;
}

void outlive_the_reader() {
    signal(SIGPIPE, SIG_IGN);
}

int stop_signal() {
    return received;
}

}  // namespace ingot
