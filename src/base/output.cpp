#include "src/base/output.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "kernels/core/check.h"
#include "src/base/text.h"

namespace ingot {

void open_standard_streams() {
    // open() returns the lowest free number, which is the one that was found closed.
    for (int descriptor = 0; descriptor <= 2; ++descriptor)
        if (fcntl(descriptor, F_GETFD) == -1 && open("/dev/null", O_RDWR) != descriptor) _exit(kExitUsage);
}

void end_with_the_reader() {
    signal(SIGPIPE, SIG_DFL);
}

void write_output(const std::string& text) {
    size_t written = 0;
    while (written < text.size()) {
        const ssize_t count = write(STDOUT_FILENO, text.data() + written, text.size() - written);
        if (count < 0 && errno == EINTR) continue;
        REQUIRE(count >= 0, "cannot write to standard output: ", std::strerror(errno), ": send it elsewhere");
        written += static_cast<size_t>(count);
    }
}

int exit_code_of_signal(int signal) {
    return 128 + signal;
}

void TextStream::put(const std::string& bytes) {
    pending_ += bytes;
    size_t whole = 0;
    while (whole < pending_.size()) {
        const int length = utf8_length(pending_.data() + whole, pending_.size() - whole);
        if (length < 0) break;
        whole += static_cast<size_t>(std::max(length, 1));
    }
    pass_on(whole);
}

void TextStream::finish() {
    pass_on(pending_.size());
}

void TextStream::pass_on(size_t count) {
    if (count == 0) return;
    const std::string text = pending_.substr(0, count);
    pending_.erase(0, count);
    last_ = text.back();
    write_(is_visible_ ? printable(text) : text);
}

}  // namespace ingot
