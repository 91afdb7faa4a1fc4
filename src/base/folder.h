// A folder that is held open. Names are looked up in the folder itself, wherever its path leads meanwhile, and no link
// in it is followed.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "src/base/files.h"

namespace ingot {

class Folder {
  public:
    // Links in the path are followed. Everything here throws as file_failed() does.
    explicit Folder(const std::string& path);
    // `descriptor` is an open folder; `path` is for messages.
    Folder(Descriptor descriptor, const std::string& path) : descriptor_(std::move(descriptor)), path_(path) {}

    int descriptor() const { return descriptor_.get(); }
    const std::string& path() const { return path_; }  // as it was opened
    std::string path_of(const std::string& name) const { return path_ + "/" + name; }
    // Where the folder is now, as far as the system says it; else path().
    std::string place() const;

    std::vector<std::string> names() const;                             // sorted; without . and ..
    std::optional<struct stat> look_at(const std::string& name) const;  // of a link: the link's own
    bool has(const std::string& name) const { return look_at(name).has_value(); }
    uint64_t available_bytes() const;

    // A folder in it, made if it is not there.
    Folder folder(const std::string& name) const;
    // A new file. What has the name is removed first, if it is no folder.
    OutputFile create(const std::string& name) const;
    // Opens a regular file, without waiting. -1 in the descriptor: errno says why; EINVAL: it is no regular file.
    Descriptor open(const std::string& name, int flags) const;
    void rename(const std::string& from, const std::string& to) const;
    // A file, a link or a folder with all that is in it.
    void remove(const std::string& name) const;
    // Makes the names durable (after a rename).
    void sync() const;

  private:
    Descriptor descriptor_;
    std::string path_;
};

}  // namespace ingot
