// A command writes a file or folder in full or not at all: it writes OUTPUT.tmp-NONCE beside OUTPUT, and one rename
// then gives it its name.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "src/base/folder.h"

namespace ingot {

// A place where an output has a temporary name until it is complete.
class OutputPlace {
  public:
    // Creates missing parent folders of `path`. Throws UserError if the name is taken, and as file_failed() does.
    explicit OutputPlace(const std::string& path);
    // Removes an output that was not committed, and the parent folders that were created for it.
    ~OutputPlace();
    OutputPlace(const OutputPlace&) = delete;
    OutputPlace& operator=(const OutputPlace&) = delete;

    // Throws UserError if the name is taken. Call it before hours of work.
    static void require_absent(const std::string& path);

    const Folder& parent() const { return parent_; }
    const std::string& temporary() const { return temporary_; }  // a name in parent() that is not taken
    // Throws Error (kExitAllocation) unless `bytes` and a margin for small files are free.
    void require_space(uint64_t bytes) const;
    // Renames temporary() to its final name, durably. Throws UserError if that name has been taken meanwhile.
    void commit();

  private:
    static std::filesystem::path normal(const std::string& path);
    std::filesystem::path path_;
    std::vector<std::filesystem::path> made_;  // of the folders above, the outermost first
    Folder parent_;
    std::string temporary_;
    bool is_committed_ = false;
};

class OutputFolder {
  public:
    explicit OutputFolder(const std::string& path)
        : place_(path), folder_(place_.parent().folder(place_.temporary())) {}

    void require_space(uint64_t bytes) const { place_.require_space(bytes); }
    // The caller must sync the file.
    OutputFile create(const std::string& name) const { return folder_.create(name); }
    void write_text(const std::string& name, const std::string& text) const;
    void commit();

  private:
    OutputPlace place_;
    Folder folder_;
};

}  // namespace ingot
