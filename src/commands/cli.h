// The command line: `./train --config FILE ...`, and the commands eval, generate and info.
#pragma once

namespace ingot {

// Runs the command. Returns the exit code; throws Error, and UserError for bad usage.
int run_command_line(int argc, char** argv);

}  // namespace ingot
