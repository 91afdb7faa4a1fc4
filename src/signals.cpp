#include "src/signals.h"

#include <signal.h>
#include <unistd.h>

#include <initializer_list>

namespace ingot {

namespace {

volatile sig_atomic_t received = 0;

void handle(int signal) {
    if (received == SIGINT && signal == SIGINT) _exit(130);
    received = signal;
}

}  // namespace

void install_stop_handlers() {
    struct sigaction action {};
    action.sa_handler = handle;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) sigaction(signal, &action, nullptr);
}

int stop_signal() {
    return received;
}

}  // namespace ingot
