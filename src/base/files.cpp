#include "src/base/files.h"

#include <fcntl.h>
#include <glob.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/core/check.h"
#include "kernels/core/device.h"

namespace ingot {

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
    if (this != &other) {
        reset();
        number_ = other.release();
    }
    return *this;
}

int Descriptor::release() {
    return std::exchange(number_, -1);
}

void Descriptor::reset() {
    if (number_ >= 0) close(number_);
    number_ = -1;
}

Descriptor open_regular_file(const std::string& path) {
    // O_NONBLOCK concerns only open(): reads of a regular file ignore it.
    Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    const int error = errno;
    struct stat info {};
    // A socket cannot be opened at all, so stat() has to tell what it is.
    const bool is_known = file.get() >= 0 ? fstat(file.get(), &info) == 0 : stat(path.c_str(), &info) == 0;
    REQUIRE(!is_known || S_ISREG(info.st_mode), path, " is not a regular file: name a file");
    REQUIRE(file.get() >= 0, "cannot open ", path, ": ", std::strerror(error), ": check the path");
    REQUIRE(is_known, "cannot look at ", path, ": ", std::strerror(errno));
    return file;
}

std::string read_file(const std::string& path, size_t max_bytes) {
    return read_file(open_regular_file(path), path, max_bytes);
}

int read_to_end(int descriptor, size_t max_bytes, std::string* text) {
    // A regular file is not read up to the size that fstat() reported, since it may grow meanwhile.
    for (;;) {
        char block[1 << 16];
        const ssize_t taken = read(descriptor, block, sizeof block);
        if (taken == 0) return 0;
        if (taken > 0) {
            text->append(block, static_cast<size_t>(taken));
            if (text->size() > max_bytes) return EFBIG;
        } else if (errno == EAGAIN) {  // an empty pipe
            pollfd ready = {.fd = descriptor, .events = POLLIN, .revents = 0};
            poll(&ready, 1, -1);
        } else if (errno != EINTR) {
            return errno;
        }
    }
}

std::string read_file(const Descriptor& file, const std::string& path, size_t max_bytes) {
    std::string text;
    const int error = read_to_end(file.get(), max_bytes, &text);
    REQUIRE(error != EFBIG, path, " has more than ", format_bytes(max_bytes), ": is it the right file?");
    REQUIRE(error == 0, "cannot read ", path, ": ", std::strerror(error));
    return text;
}

void file_failed(const std::string& what, const std::string& path, int error) {
    ExitCode code = kExitUsage;
    const char* advice = "check the path and its permissions";
    switch (error) {
        case ENOSPC:
        case EDQUOT:
            code = kExitAllocation;
            advice = "free some space, then run it again (training: with --resume auto)";
            break;
        case EFBIG:
            code = kExitAllocation;
            advice = "raise the limit of a file's size (ulimit -f), then run it again (training: with --resume auto)";
            break;
        case EIO:
        case ESTALE:
            code = kExitAllocation;
            advice = "its disk failed or is gone: mend it, then run it again (training: with --resume auto)";
            break;
        case EISDIR:
        case ENOTDIR:
        case EEXIST:
        case ENOTEMPTY:
        case ELOOP:
            advice = "a folder, a link or something else is in the way: move it away";
            break;
        default:
            break;
    }
    throw Error(code, join("cannot ", what, " ", path, ": ", std::strerror(error), ": ", advice));
}

OutputFile::OutputFile(const std::string& path) : path_(path) {
    if (unlink(path.c_str()) != 0 && errno != ENOENT) file_failed("replace", path_, errno);
    file_ = Descriptor(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644));
    if (file_.get() < 0) file_failed("create", path_, errno);
}

void OutputFile::write(const void* data, size_t bytes) {
    const char* next = static_cast<const char*>(data);
    while (bytes > 0) {
        // Linux writes at most 2 GiB - 4 KiB in one call.
        const ssize_t written = ::write(file_.get(), next, std::min<size_t>(bytes, size_t{1} << 30));
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) file_failed("write", path_, written == 0 ? EIO : errno);
        next += written;
        bytes -= static_cast<size_t>(written);
    }
}

void OutputFile::sync_and_close() {
    if (fsync(file_.get()) != 0) file_failed("sync", path_, errno);
    if (close(file_.release()) != 0) file_failed("close", path_, errno);
}

std::vector<std::string> expand_glob(const std::string& pattern) {
    glob_t matches{};
    std::vector<std::string> paths;
    if (glob(pattern.c_str(), GLOB_TILDE, nullptr, &matches) == 0)
        for (size_t i = 0; i < matches.gl_pathc; ++i) paths.emplace_back(matches.gl_pathv[i]);
    globfree(&matches);
    std::sort(paths.begin(), paths.end());
    return paths;
}

}  // namespace ingot
