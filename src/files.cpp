#include "src/files.h"

#include <fcntl.h>
#include <glob.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "kernels/core/check.h"

namespace ingot {

namespace {

[[noreturn]] void failed(const std::string& what, const std::string& path) {
    const int error = errno;
    throw Error(kExitAllocation, join("cannot ", what, " ", path, ": ", std::strerror(error),
                                      error == ENOSPC ? ": free some space, then go on with --resume auto" : ""));
}

}  // namespace

MappedFile map_file(const std::string& path) {
    const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    REQUIRE(descriptor >= 0, "cannot open ", path, ": ", std::strerror(errno), ": check the path");
    struct stat info {};
    if (fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(descriptor);
        throw UserError(join(path, " is not a regular file: name a file"));
    }
    MappedFile file;
    file.size = static_cast<size_t>(info.st_size);
    void* const memory = file.size == 0 ? nullptr : mmap(nullptr, file.size, PROT_READ, MAP_SHARED, descriptor, 0);
    const int error = errno;
    close(descriptor);
    REQUIRE(memory != MAP_FAILED, "cannot map ", path, ": ", std::strerror(error));
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
