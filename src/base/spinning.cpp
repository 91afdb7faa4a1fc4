#include "src/base/spinning.h"

#include <unistd.h>

#include <cstdlib>

#include "kernels/core/check.h"
#include "src/base/own_file.h"

namespace ingot {

namespace {

// One spin is a `pause` and a load, 10 to 40 ns. The threads of a loop end within a few microseconds of one another,
// so on idle cores few of them wait longer than this, and waking a sleeping thread takes as long. docs/lab/cpu.md has
// the cost of other counts on idle and on busy cores.
constexpr const char* kSpinCount = "300";

constexpr const char* kSettings[] = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"};

}  // namespace

void limit_spinning(char** argv) {
    for (const char* const setting : kSettings)
        if (std::getenv(setting) != nullptr) return;
    const std::string file = own_file();
    if (file.empty()) return;
    setenv("GOMP_SPINCOUNT", kSpinCount, 1);
    setenv("KMP_BLOCKTIME", "0", 1);  // LLVM's OpenMP, in milliseconds
    execv(file.c_str(), argv);
    for (const char* const setting : {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"}) unsetenv(setting);
}

std::string describe_waiting_threads() {
    std::string text;
    for (const char* const setting : kSettings)
        if (const char* const value = std::getenv(setting); value != nullptr)
            text += join(text.empty() ? "" : " ", setting, "=", value);
    return text.empty() ? "OpenMP's default" : text;
}

}  // namespace ingot
