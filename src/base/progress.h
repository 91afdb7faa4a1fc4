// Draws a progress bar on stderr, so that it never mixes with what a program writes to stdout.
//
// On a terminal one line is redrawn, and erased at the end. In a file or a pipe there are plain lines, at most one in
// ten seconds, and none if the work ends before the first.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace ingot {

// The terminal or file that a bar is drawn on; tests give their own.
struct ProgressOutput {
    bool is_terminal;
    std::function<void(const std::string&)> write;
    std::function<double()> now;      // seconds
    std::function<int()> width = {};  // columns, asked at each drawing; only used on a terminal
    static ProgressOutput to_stderr();
};

class Progress {
  public:
    // Example of the arguments: "evaluating", 270, "rows".
    Progress(const std::string& what, int64_t total, std::string unit,
             ProgressOutput output = ProgressOutput::to_stderr());
    ~Progress() { finish(); }  // so that an error's message begins on a new line
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;

    void advance(int64_t count);
    // Erases the bar. In a file it writes how long the work took, if there were lines before. Later calls do nothing.
    void finish();

  private:
    void draw(double now);
    void erase();
    std::string status(double now) const;  // "45% | 123/270 rows | 1.2k rows/s | eta 0m12s"

    std::string what_, unit_;
    int64_t total_, done_ = 0;
    ProgressOutput output_;
    double begin_, last_;
    size_t drawn_ = 0;  // columns of the line on the terminal
    bool has_lines_ = false, is_finished_ = false;
};

}  // namespace ingot
