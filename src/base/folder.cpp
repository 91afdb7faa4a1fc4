#include "src/base/folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <memory>

#include "kernels/core/check.h"

namespace ingot {

namespace {

constexpr int kOpenFolder = O_RDONLY | O_DIRECTORY | O_CLOEXEC;

}  // namespace

Folder::Folder(const std::string& path) : descriptor_(::open(path.c_str(), kOpenFolder)), path_(path) {
    if (descriptor() < 0) file_failed("open the folder", path_, errno);
}

std::string Folder::place() const {
    char target[PATH_MAX];
    const ssize_t length = readlink(join("/proc/self/fd/", descriptor()).c_str(), target, sizeof target);
    if (length <= 0 || length == static_cast<ssize_t>(sizeof target)) return path_;
    return {target, static_cast<size_t>(length)};
}

std::vector<std::string> Folder::names() const {
    // The folder is opened anew, since a copy of the descriptor would share its position in the listing.
    Descriptor own(openat(descriptor(), ".", kOpenFolder));
    if (own.get() < 0) file_failed("read the folder", path_, errno);
    const std::unique_ptr<DIR, int (*)(DIR*)> stream(fdopendir(own.get()), closedir);
    if (stream == nullptr) file_failed("read the folder", path_, errno);
    own.release();
    std::vector<std::string> result;
    for (;;) {
        errno = 0;
        const dirent* const entry = readdir(stream.get());
        if (entry == nullptr && errno != 0) file_failed("read the folder", path_, errno);
        if (entry == nullptr) break;
        const std::string name = entry->d_name;
        if (name != "." && name != "..") result.push_back(name);
    }
    std::sort(result.begin(), result.end());
    return result;
}

std::optional<struct stat> Folder::look_at(const std::string& name) const {
    struct stat info {};
    if (fstatat(descriptor(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) == 0) return info;
    if (errno != ENOENT && errno != ENOTDIR) file_failed("look at", path_of(name), errno);
    return std::nullopt;
}

uint64_t Folder::available_bytes() const {
    struct statvfs space {};
    if (fstatvfs(descriptor(), &space) != 0) file_failed("ask for the free space of", path_, errno);
    return static_cast<uint64_t>(space.f_bavail) * space.f_frsize;
}

Folder Folder::folder(const std::string& name) const {
    if (mkdirat(descriptor(), name.c_str(), 0777) != 0 && errno != EEXIST)
        file_failed("create the folder", path_of(name), errno);
    Descriptor opened(openat(descriptor(), name.c_str(), kOpenFolder | O_NOFOLLOW));
    if (opened.get() < 0) file_failed("open the folder", path_of(name), errno);
    return {std::move(opened), path_of(name)};
}

OutputFile Folder::create(const std::string& name) const {
    if (unlinkat(descriptor(), name.c_str(), 0) != 0 && errno != ENOENT) file_failed("replace", path_of(name), errno);
    Descriptor file(openat(descriptor(), name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644));
    if (file.get() < 0) file_failed("create", path_of(name), errno);
    return {std::move(file), path_of(name)};
}

Descriptor Folder::open(const std::string& name, int flags) const {
    // O_NONBLOCK concerns only open(), which would wait for the other end of a FIFO.
    Descriptor file(openat(descriptor(), name.c_str(), flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0644));
    struct stat info {};
    if (file.get() < 0 || fstat(file.get(), &info) != 0 || S_ISREG(info.st_mode)) return file;
    file = Descriptor();
    errno = EINVAL;
    return file;
}

void Folder::rename(const std::string& from, const std::string& to) const {
    if (renameat(descriptor(), from.c_str(), descriptor(), to.c_str()) != 0)
        file_failed(join("rename ", path_of(from), " to"), path_of(to), errno);
}

void Folder::remove(const std::string& name) const {
    if (unlinkat(descriptor(), name.c_str(), 0) == 0 || errno == ENOENT) return;
    if (errno != EISDIR && errno != EPERM) file_failed("remove", path_of(name), errno);
    {
        Descriptor opened(openat(descriptor(), name.c_str(), kOpenFolder | O_NOFOLLOW));
        if (opened.get() < 0) file_failed("remove", path_of(name), errno);
        const Folder inner(std::move(opened), path_of(name));
        for (const std::string& entry : inner.names()) inner.remove(entry);
    }
    if (unlinkat(descriptor(), name.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT)
        file_failed("remove", path_of(name), errno);
}

void Folder::sync() const {
    if (fsync(descriptor()) != 0) file_failed("sync the folder", path_, errno);
}

}  // namespace ingot
