#include "src/checkpoint/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "kernels/core/check.h"

namespace ingot {

namespace {

constexpr const char* kLock = "lock";
constexpr const char* kConfig = "config.json";

Folder open_run_folder(const std::string& path) {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    REQUIRE(!error, "cannot create the run folder ", path, ": ", error.message(),
            ": set run_dir to a folder that can be");
    return Folder(path);
}

// Takes the lock of an open file or folder. False: the file system does not lock such.
bool lock(int file, const std::string& run_dir) {
    if (flock(file, LOCK_EX | LOCK_NB) == 0) return true;
    REQUIRE(errno != EWOULDBLOCK, "another process trains in ", run_dir,
            ": wait for it, or choose another name or run_dir");
    return false;
}

// Says what has become of the file or folder that is held open as `held`, if a name no longer leads to it; else an
// empty text.
std::string why_other(int held, int folder, const std::string& name, int flags) {
    struct stat own {
    }, there{};
    if (fstat(held, &own) != 0) return "";
    if (fstatat(folder, name.c_str(), &there, flags) == 0)
        return own.st_dev == there.st_dev && own.st_ino == there.st_ino ? "" : " was replaced by another";
    // Anything else, as a network that fails, is no answer.
    return errno == ENOENT || errno == ENOTDIR || errno == ELOOP ? " was renamed or removed" : "";
}

// Returns whether write_config() could have written a text: JSON without comments, and a resolved config.
bool is_resolved(const std::string& text, const std::string& path) {
    try {
        parse_config(text, path, {});
        return is_resolved_config(nlohmann::json::parse(text));
    } catch (const std::exception&) {
        return false;
    }
}

}  // namespace

RunFolder::RunFolder(const Config& config) : path_(config.run_dir), folder_(open_run_folder(path_)) {
    const bool is_folder_locked = lock(folder_.descriptor(), path_);
    refuse_foreign_config();
    lock_ = folder_.open(kLock, O_RDWR | O_CREAT);
    REQUIRE(lock_.get() >= 0, "cannot open ", folder_.path_of(kLock), ": ",
            errno == EINVAL ? "it is no regular file" : std::strerror(errno),
            ": move away what has this name, or set run_dir to a folder that can be written");
    REQUIRE(lock(lock_.get(), path_) || is_folder_locked, "cannot lock ", folder_.path_of(kLock), ": ",
            std::strerror(errno), ": set run_dir to a folder on another file system");
    const std::string taken = why_taken();
    REQUIRE(taken.empty(), taken, " while the run began: start it again");
    try {
        const std::optional<struct stat> info = folder_.look_at(kCheckpoints);
        if (info && S_ISLNK(info->st_mode)) linked_checkpoints_.emplace(folder_.path_of(kCheckpoints));
        checkpoints();
    } catch (const Error& fault) {
        throw Error(fault.exit_code, join(fault.what(), ", or set run_dir to another folder"));
    }
}

std::string RunFolder::why_taken() const {
    const std::string folder = why_other(folder_.descriptor(), AT_FDCWD, path_, 0);
    if (!folder.empty()) return path_ + folder;
    const std::string lock = why_other(lock_.get(), folder_.descriptor(), kLock, AT_SYMLINK_NOFOLLOW);
    if (!lock.empty()) return folder_.path_of(kLock) + lock;
    if (!linked_checkpoints_) return "";
    const std::string link = why_other(linked_checkpoints_->descriptor(), folder_.descriptor(), kCheckpoints, 0);
    return link.empty() ? "" : folder_.path_of(kCheckpoints) + link;
}

Folder RunFolder::checkpoints() const {
    if (!linked_checkpoints_) return folder_.folder(kCheckpoints);
    Descriptor copy(fcntl(linked_checkpoints_->descriptor(), F_DUPFD_CLOEXEC, 0));
    if (copy.get() < 0) file_failed("open the folder", linked_checkpoints_->path(), errno);
    return {std::move(copy), linked_checkpoints_->path()};
}

void RunFolder::refuse_foreign_config() const {
    if (!folder_.has(kConfig)) return;
    const std::string path = folder_.path_of(kConfig);
    const Descriptor file = folder_.open(kConfig, O_RDONLY);
    constexpr size_t kLargestConfig = size_t{1} << 24;
    const bool is_ours = file.get() >= 0 && is_resolved(read_file(file, path, kLargestConfig), path);
    REQUIRE(is_ours, path,
            " was not written by a run, and a run writes a file of this name into its run_dir: move it, ",
            "or set another run_dir");
}

void RunFolder::write_config(const Config& config) const {
    refuse_foreign_config();
    const std::string text = config_to_json(config).dump(2) + "\n", temporary = std::string(kConfig) + ".tmp";
    OutputFile file = folder_.create(temporary);
    file.write(text.data(), text.size());
    file.sync_and_close();
    folder_.rename(temporary, kConfig);
}

}  // namespace ingot
