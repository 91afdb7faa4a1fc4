// SIGINT, SIGTERM and SIGUSR1 ask a run to save and stop.
#pragma once

namespace ingot {

// Installs the handlers. A second SIGINT ends the process at once with code 130.
void install_stop_handlers();
// The signal that asked to stop, or 0.
int stop_signal();

}  // namespace ingot
