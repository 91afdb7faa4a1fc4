// Prints the messages of a run; of all ranks only the first prints.
#pragma once

#include <cstdio>
#include <string>

#include "kernels/core/check.h"

namespace ingot {

class Console {
  public:
    explicit Console(bool speaks) : speaks_(speaks) {}

    // Prints whole lines, each with its newline, on stdout.
    void text(const std::string& lines) const {
        if (speaks_) std::fputs(lines.c_str(), stdout);
    }
    // Prints one line of these values, as join() writes them.
    template <typename... Values>
    void line(const Values&... values) const {
        text(join(values...) + "\n");
    }
    // Prints the line on stderr.
    template <typename... Values>
    void error_line(const Values&... values) const {
        if (speaks_) std::fprintf(stderr, "%s\n", join(values...).c_str());
    }
    void flush() const { std::fflush(stdout); }

  private:
    bool speaks_;
};

}  // namespace ingot
