// The command line: `./train --config FILE ...`, and the commands eval, generate and info.
#pragma once

namespace ingot {

// Runs what the command line asks for. Returns the exit code; throws Error, UserError for bad usage.
int run_command_line(int argc, char** argv);

}  // namespace ingot
