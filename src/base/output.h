// Standard output of commands, and how commands end.
#pragma once

#include <functional>
#include <string>
#include <utility>

namespace ingot {

// Opens /dev/null for each of descriptors 0 to 2 that is closed. Otherwise one of our files would get the number, and
// messages would be written into it.
void open_standard_streams();

// Commands whose stdout is their result call this: when the reader of a pipe goes away (`| head`), they end at once
// and silently, even if the parent process ignores the signal.
void end_with_the_reader();

// Writes all of `text` and flushes. Throws UserError if stdout cannot take it (a full disk).
void write_output(const std::string& text);

// Returns 130 for SIGINT, which is what a shell reports for a program that a signal ended.
int exit_code_of_signal(int signal);

// Passes bytes on as soon as they form whole UTF-8 characters. Bytes that cannot become one are passed on one by one.
class TextStream {
  public:
    // `is_visible` is set for a terminal: bytes that are not printable are then escaped (text.h, printable).
    TextStream(bool is_visible, std::function<void(const std::string&)> write)
        : is_visible_(is_visible), write_(std::move(write)) {}
    void put(const std::string& bytes);
    // Passes on the bytes of a last, incomplete character.
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
