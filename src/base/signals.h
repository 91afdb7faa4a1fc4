// SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGPWR, SIGXCPU and SIGHUP (unless it was ignored, as under nohup) ask a run to
// save and stop: what a terminal, a batch system, a power supply or a limit of CPU time sends ahead of the end. SIGQUIT
// dumps core as always, for whoever wants to see where a program hangs; the signals of timers (SIGALRM, SIGVTALRM,
// SIGPROF) are nobody's here and keep their default.
//
// A thread of their own waits for them; all others keep them blocked. No handler may interrupt a thread that computes:
// with handlers, about one stopped run in a hundred ended with a destroyed heap inside oneDNN 2.6's fp32 products (what
// the interrupted kernel keeps where the handler's frame goes was not found), and none of 780 since.
#pragma once

#include <string>

namespace ingot {

// Call it once, before there is another thread. Until catch_stop_signals() the signals end the process as usual. From
// now on SIGXFSZ is ignored: a write beyond the limit of a file's size (ulimit -f) fails, and whoever writes says so.
void start_signal_thread();
// From now on they are remembered instead; a second SIGINT ends the process at once with code 130.
void catch_stop_signals();
// Lets SIGXCPU come while there is time left to save: where the soft limit of CPU time is the hard one, as after
// `ulimit -t`, the system would kill the process without a signal before.
void reserve_cpu_time_for_saving();
// A pipe that nobody reads any more (`| head`, a terminal that is gone) is no reason to lose a run: what is printed
// there is lost.
void outlive_the_reader();
// The signal that asked to stop, the first if there were several; or 0.
int stop_signal();
// "signal 15", with what is to be known of it.
std::string describe_signal(int number);

}  // namespace ingot
