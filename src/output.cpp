#include "src/output.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "kernels/core/check.h"

namespace ingot {

void open_standard_streams() {
    // open() gives the lowest free number: the one that was found closed.
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

}  // namespace ingot
