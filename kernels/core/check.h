// Errors and the checks that raise them. CHECK is always on: Release defines NDEBUG, so `assert` would be no check.
//
// Each error knows its exit code (see README, "Exit codes"). main() prints one line and exits with it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace ingot {

enum ExitCode : int {
    kExitDone = 0,
    kExitFault = 1,        // a fault of ours: CHECK, CUDA error
    kExitUsage = 2,        // bad usage, config or data; no such device; a plan larger than the device
    kExitDiverged = 3,     // training stopped itself
    kExitPeer = 4,         // a peer of a run on several GPUs died or hung
    kExitAllocation = 5,   // an allocation failed although the plan fitted, or the last save did
    kExitInterrupted = 75  // checkpoint saved; run again with --resume auto
};

// Base of all errors that are reported as one line: what, where, what to do.
class Error : public std::runtime_error {
  public:
    Error(ExitCode code, const std::string& text) : std::runtime_error(text), exit_code(code) {}
    ExitCode exit_code;
};

// An error that the user can mend: config, command line, data, device.
class UserError : public Error {
  public:
    explicit UserError(const std::string& text) : Error(kExitUsage, text) {}
};

// A failure that CUDA, or a library on it, reports, and that the arguments of a call do not explain.
class CudaError : public Error {
  public:
    explicit CudaError(const std::string& text) : Error(kExitFault, text) {}
};

// Joins its arguments with operator<<; g++ 12 has no <format>.
template <typename... Parts>
std::string join(const Parts&... parts) {
    std::ostringstream stream;
    (stream << ... << parts);
    return stream.str();
}

[[noreturn]] void check_failed(const char* file, int line, const char* expression, const std::string& text);

}  // namespace ingot

// CHECK(condition, "what is wrong with ", values, ": what to do"). Throws Error with exit code 1.
#define CHECK(condition, ...)                                                                                \
    do {                                                                                                     \
        if (!(condition)) ::ingot::check_failed(__FILE__, __LINE__, #condition, ::ingot::join(__VA_ARGS__)); \
    } while (false)

// REQUIRE takes the same arguments, for input that the user can mend. Throws UserError (exit code 2); the text alone is
// shown.
#define REQUIRE(condition, ...)                                                 \
    do {                                                                        \
        if (!(condition)) throw ::ingot::UserError(::ingot::join(__VA_ARGS__)); \
    } while (false)
