// SIGINT, SIGTERM, SIGUSR1 and SIGHUP (unless it was ignored, as under nohup) ask a run to save and stop.
//
// A thread of their own waits for them; all others keep them blocked. No handler may interrupt a thread that computes:
// with handlers, about one stopped run in a hundred ended with a destroyed heap inside oneDNN 2.6's fp32 products (what
// the interrupted kernel keeps where the handler's frame goes was not found), and none of 780 since.
#pragma once

namespace ingot {

// Call it once, before there is another thread. Until catch_stop_signals() the signals end the process as usual.
void start_signal_thread();
// From now on they are remembered instead; a second SIGINT ends the process at once with code 130.
void catch_stop_signals();
// A pipe that nobody reads any more (`| head`, a terminal that is gone) is no reason to lose a run: what is printed
// there is lost.
void outlive_the_reader();
// The signal that asked to stop, or 0.
int stop_signal();

}  // namespace ingot
