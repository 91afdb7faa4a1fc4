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

sigset_t stop_signals() {
    sigset_t signals;
    sigemptyset(&signals);
    for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) sigaddset(&signals, signal);
    return signals;
}

// The default action: this thread is the only one that lets the signal through.
void end_process(int number) {
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, number);
    pthread_sigmask(SIG_UNBLOCK, &one, nullptr);
    kill(getpid(), number);
}

void wait_for_signals() {
    const sigset_t signals = stop_signals();
    for (;;) {
        int number = 0;
        if (sigwait(&signals, &number) != 0) continue;
        if (!is_caught) end_process(number);
        if (received == SIGINT && number == SIGINT) _exit(130);
        received = number;
    }
}

}  // namespace

void start_signal_thread() {
    // A shell may have started us with SIGINT ignored; one that is ignored cannot be waited for.
    for (const int number : {SIGINT, SIGTERM, SIGUSR1}) signal(number, SIG_DFL);
    const sigset_t signals = stop_signals();
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    std::thread(wait_for_signals).detach();
}

void catch_stop_signals() {
    is_caught = true;
}

int stop_signal() {
    return received;
}

}  // namespace ingot
