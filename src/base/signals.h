// SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGPWR, SIGXCPU and SIGHUP (unless it was ignored, as under nohup) ask a run to
// save and stop. A terminal, a batch system, a power supply or a limit of CPU time sends them ahead of the end.
// SIGQUIT dumps core as always, to show where a program hangs; timer signals (SIGALRM, SIGVTALRM, SIGPROF) keep their
// default.
//
// A dedicated thread waits for the signals, and all others block them, because a handler must not interrupt a thread
// that computes: with handlers, about one stopped run in a hundred ended with a corrupt heap inside oneDNN 2.6's fp32
// GEMM (the cause was not found), and none of 780 since.
#pragma once

#include <string>

namespace ingot {

// Call it once, before there is another thread. The signals end the process as usual until catch_stop_signals().
// SIGXFSZ is ignored from now on, so that a write beyond `ulimit -f` fails and is reported.
void start_signal_thread();
// From now on the signals are remembered instead; a second SIGINT ends the process at once with code 130.
void catch_stop_signals();
// From now on the signals do nothing but write their number, a byte, to this descriptor: for a process that passes them
// on.
void hand_over_stop_signals(int descriptor);
// Makes SIGXCPU arrive while there is time left to save. After `ulimit -t` the soft limit of CPU time equals the hard
// one, at which the system kills the process without a signal.
void reserve_cpu_time_for_saving();
// Ignores SIGPIPE, since a pipe without a reader (`| head`, a closed terminal) is no reason to lose a run. The output
// is lost.
void outlive_the_reader();
// Returns the first signal that asked to stop, or 0.
int stop_signal();
bool is_stop_signal(int number);
// Returns "signal 15", with advice where there is any.
std::string describe_signal(int number);

}  // namespace ingot
