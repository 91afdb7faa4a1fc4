// What commands write to standard output, and how they end.
#pragma once

#include <string>

namespace ingot {

// Opens /dev/null for each of descriptors 0 to 2 that is closed: else a file of ours would get the number, and what is
// meant for people would be written into it.
void open_standard_streams();

// For commands whose stdout is their result: when the reader of a pipe goes away (`| head`), they end at once and
// silently, as such commands do, also if the parent process ignores the signal.
void end_with_the_reader();

// All of `text`, now. Throws UserError if stdout cannot take it (a full disk).
void write_output(const std::string& text);

// 130 for SIGINT: what a shell reports for a program that a signal ended.
int exit_code_of_signal(int signal);

}  // namespace ingot
