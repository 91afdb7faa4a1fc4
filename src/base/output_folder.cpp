#include "src/base/output_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "kernels/core/check.h"
#include "kernels/core/device.h"

namespace ingot {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void refuse_present(const std::string& path) {
    throw UserError(join(path, " is there already: give another name, or move it away"));
}

// Creates the folders that `folder` needs, and adds those that it created to `made`.
fs::path make_folders(const fs::path& folder, std::vector<fs::path>* made) {
    if (folder.empty()) return ".";
    fs::path path;
    for (const fs::path& part : folder) {
        path /= part;
        if (mkdir(path.c_str(), 0777) == 0) {
            made->push_back(path);
        } else {
            const int error = errno;  // EROFS, EACCES and others may also mean that the folder exists
            struct stat info {};
            if (stat(path.c_str(), &info) != 0) file_failed("create the folder", path.string(), error);
        }
    }
    return folder;
}

void remove_folders(const std::vector<fs::path>& made) {
    for (size_t i = made.size(); i-- > 0;)
        rmdir(made[i].c_str());  // fails for a folder that others have used meanwhile
}

}  // namespace

// Returns the path without a slash at the end. A path without a name, such as "/" or "x/..", means an existing folder.
fs::path OutputPlace::normal(const std::string& path) {
    fs::path result = fs::path(path);
    while (result.has_relative_path() && result.filename().empty()) result = result.parent_path();
    if (!result.has_filename() || result.filename() == "." || result.filename() == "..") refuse_present(path);
    return result;
}

void OutputPlace::require_absent(const std::string& path) {
    struct stat info {};
    if (lstat(normal(path).c_str(), &info) == 0) refuse_present(path);
}

OutputPlace::OutputPlace(const std::string& path)
    : path_(normal(path)),
      parent_([&] {
          require_absent(path);
          try {
              return Folder(make_folders(path_.parent_path(), &made_).string());
          } catch (...) {
              remove_folders(made_);
              throw;
          }
      }()),
      temporary_(join(path_.filename().string(), ".tmp-", std::chrono::system_clock::now().time_since_epoch().count(),
                      "-", getpid())) {}

OutputPlace::~OutputPlace() {
    if (is_committed_) return;
    try {
        parent_.remove(temporary_);
    } catch (const Error&) {}  // the first error is reported already, and the folder's name says that it is temporary
    remove_folders(made_);
}

void OutputPlace::require_space(uint64_t bytes) const {
    constexpr uint64_t kMargin = 1 << 20;
    const uint64_t available = parent_.available_bytes();
    if (available >= bytes + kMargin) return;
    throw Error(kExitAllocation,
                join("cannot write ", path_.string(), ": it needs ", format_bytes(bytes + kMargin), ", ",
                     format_bytes(available), " are free: free some space, or name another disk"));
}

void OutputFolder::write_text(const std::string& name, const std::string& text) const {
    OutputFile file = folder_.create(name);
    file.write(text.data(), text.size());
    file.sync_and_close();
}

void OutputPlace::commit() {
    const std::string name = path_.filename().string();
    if (renameat2(parent_.descriptor(), temporary_.c_str(), parent_.descriptor(), name.c_str(), RENAME_NOREPLACE) !=
        0) {
        if (errno == EEXIST) refuse_present(path_.string());
        // Some file systems do not know the flag. A plain rename replaces at most an empty folder.
        if (errno != EINVAL && errno != ENOSYS)
            file_failed(join("rename ", parent_.path_of(temporary_), " to"), path_.string(), errno);
        if (parent_.has(name)) refuse_present(path_.string());
        parent_.rename(temporary_, name);
    }
    is_committed_ = true;
    parent_.sync();
}

void OutputFolder::commit() {
    folder_.sync();
    place_.commit();
}

}  // namespace ingot
