// A folder that is held open. Names are looked up in the open folder, even after its path has come to mean another
// one, and links in it are not followed.
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
    // Follows links in `path`. All members throw as file_failed() does.
    explicit Folder(const std::string& path);
    // `descriptor` is an open folder; `path` is for messages.
    Folder(Descriptor descriptor, const std::string& path) : descriptor_(std::move(descriptor)), path_(path) {}

    int descriptor() const { return descriptor_.get(); }
    const std::string& path() const { return path_; }  // as it was opened
    std::string path_of(const std::string& name) const { return path_ + "/" + name; }
    // Returns the folder's present path as the system reports it, or path() if it does not.
    std::string place() const;

    std::vector<std::string> names() const;                             // sorted; without . and ..
    std::optional<struct stat> look_at(const std::string& name) const;  // of a link: the link's own
    bool has(const std::string& name) const { return look_at(name).has_value(); }
    uint64_t available_bytes() const;

    // Opens a folder in this one, and creates it if it does not exist.
    Folder folder(const std::string& name) const;
    // Creates a new file. Removes whatever has the name first, except a folder.
    OutputFile create(const std::string& name) const;
    // Opens a regular file without waiting. If the descriptor is -1, errno has the reason; EINVAL means that it is not
    // a regular file.
    Descriptor open(const std::string& name, int flags) const;
    void rename(const std::string& from, const std::string& to) const;
    // Removes a file, a link, or a folder with its contents.
    void remove(const std::string& name) const;
    // Makes the names durable (call it after a rename).
    void sync() const;

  private:
    Descriptor descriptor_;
    std::string path_;
};

}  // namespace ingot
