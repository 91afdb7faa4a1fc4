#include <cstdio>
#include <exception>
#include <filesystem>
#include <new>

#include "kernels/core/check.h"
#include "src/base/output.h"
#include "src/base/signals.h"
#include "src/base/spinning.h"
#include "src/base/text.h"
#include "src/commands/cli.h"

// Prints one printable line of bounded length, whatever a file name or an argument in the message holds.
static int report(const char* what, int exit_code) {
    std::fflush(stdout);
    std::fprintf(stderr, "error: %s\n", ingot::excerpt(what, ingot::kLongestMessage).c_str());
    return exit_code;
}

int main(int argc, char** argv) {
    ingot::limit_spinning(argv);
    ingot::open_standard_streams();
    ingot::start_signal_thread();
    try {
        return ingot::run_command_line(argc, argv);
    } catch (const ingot::Error& error) {
        return report(error.what(), error.exit_code);
    } catch (const std::bad_alloc&) {
        return report("out of memory: use a smaller model or training.micro_batch_size", ingot::kExitAllocation);
    } catch (const std::filesystem::filesystem_error& error) {  // a fault of a path or a disk, not ours
        return report(error.what(), ingot::kExitUsage);
    } catch (const std::exception& error) {
        return report(error.what(), ingot::kExitFault);
    }
}
