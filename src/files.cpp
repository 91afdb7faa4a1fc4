#include "src/files.h"

#include <fcntl.h>
#include <glob.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/core/check.h"
#include "kernels/core/device.h"

namespace ingot {

namespace {

[[noreturn]] void failed(const std::string& what, const std::string& path) {
    const int error = errno;
    throw Error(kExitAllocation, join("cannot ", what, " ", path, ": ", std::strerror(error),
                                      error == ENOSPC ? ": free some space, then go on with --resume auto" : ""));
}

}  // namespace

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
    // O_NONBLOCK concerns the opening alone: reading a regular file never heeds it.
    Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    const int error = errno;
    struct stat info {};
    // A socket cannot be opened at all; stat() says what it is.
    const bool is_known = file.get() >= 0 ? fstat(file.get(), &info) == 0 : stat(path.c_str(), &info) == 0;
    REQUIRE(!is_known || S_ISREG(info.st_mode), path, " is not a regular file: name a file");
    REQUIRE(file.get() >= 0, "cannot open ", path, ": ", std::strerror(error), ": check the path");
    REQUIRE(is_known, "cannot look at ", path, ": ", std::strerror(errno));
    return file;
}

std::string read_file(const std::string& path, size_t max_bytes) {
    const Descriptor file = open_regular_file(path);
    std::string text;
    // Read to the end, whatever size the file was said to have: it may grow meanwhile.
    for (;;) {
        constexpr size_t kBlock = size_t{1} << 16;
        const size_t size = text.size();
        REQUIRE(size <= max_bytes, path, " has more than ", format_bytes(max_bytes), ": is it the right file?");
        text.resize(size + kBlock);
        const ssize_t taken = read(file.get(), text.data() + size, kBlock);
        const int error = errno;
        text.resize(size + static_cast<size_t>(std::max<ssize_t>(taken, 0)));
        if (taken == 0) return text;
        REQUIRE(taken > 0 || error == EINTR, "cannot read ", path, ": ", std::strerror(error));
    }
}

MappedFile map_file(const std::string& path) {
    const Descriptor descriptor = open_regular_file(path);
    struct stat info {};
    REQUIRE(fstat(descriptor.get(), &info) == 0, "cannot look at ", path, ": ", std::strerror(errno));
    MappedFile file;
    file.size = static_cast<size_t>(info.st_size);
    void* const memory =
        file.size == 0 ? nullptr : mmap(nullptr, file.size, PROT_READ, MAP_SHARED, descriptor.get(), 0);
    REQUIRE(memory != MAP_FAILED, "cannot map ", path, ": ", std::strerror(errno));
    const size_t size = file.size;
    file.data = {static_cast<const uint8_t*>(memory), [size](const uint8_t* data) {
                     if (data != nullptr) munmap(const_cast<uint8_t*>(data), size);
                 }};
    return file;
}

OutputFile::OutputFile(const std::string& path)
    : path_(path), descriptor_(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) {
    if (descriptor_ < 0) failed("create", path_);
}

OutputFile::~OutputFile() {
    if (descriptor_ >= 0) close(descriptor_);
}

void OutputFile::write(const void* data, size_t bytes) {
    const char* next = static_cast<const char*>(data);
    while (bytes > 0) {
        // Linux writes at most 2 GiB - 4 KiB in one call.
        const ssize_t written = ::write(descriptor_, next, std::min<size_t>(bytes, size_t{1} << 30));
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) failed("write", path_);
        next += written;
        bytes -= static_cast<size_t>(written);
    }
}

void OutputFile::sync_and_close() {
    if (fsync(descriptor_) != 0) failed("sync", path_);
    const int descriptor = descriptor_;
    descriptor_ = -1;
    if (close(descriptor) != 0) failed("close", path_);
}

void sync_folder(const std::string& path) {
    const int descriptor = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) failed("open the folder", path);
    const int status = fsync(descriptor);
    close(descriptor);
    if (status != 0) failed("sync the folder", path);
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
