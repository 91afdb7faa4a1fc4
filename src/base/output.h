// What commands write to standard output, and how they end.
#pragma once

#include <functional>
#include <string>
#include <utility>

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

// Passes bytes on as soon as they make whole UTF-8 characters; bytes that never can are passed on one by one.
class TextStream {
  public:
    // With `is_visible`, for a terminal, what is no text is made visible (text.h, printable).
    TextStream(bool is_visible, std::function<void(const std::string&)> write)
        : is_visible_(is_visible), write_(std::move(write)) {}
    void put(const std::string& bytes);
    // What is left of a character that never became whole.
    void finish();
    bool ends_line() const { return last_ == '\n'; }

  private:
    void pass_on(size_t count);
    bool is_visible_;
    std::function<void(const std::string&)> write_;
    std::string pending_;
    char last_ = '\n';
};

}  // namespace ingot
