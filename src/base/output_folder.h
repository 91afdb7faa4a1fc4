// A file or a folder that a command writes in full or not at all: into OUTPUT.tmp-NONCE beside it, and one rename makes
// that OUTPUT.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "src/base/folder.h"

namespace ingot {

// Where something is written under a temporary name, until it is whole.
class OutputPlace {
  public:
    // Makes the folders above `path` that are not there. Throws UserError if something has the name already, and as
    // file_failed() does.
    explicit OutputPlace(const std::string& path);
    // Removes what was not committed, and the folders above it that were made for it.
    ~OutputPlace();
    OutputPlace(const OutputPlace&) = delete;
    OutputPlace& operator=(const OutputPlace&) = delete;

    // Throws UserError if something has the name already: for whoever wants to know before hours of work.
    static void require_absent(const std::string& path);

    const Folder& parent() const { return parent_; }
    const std::string& temporary() const { return temporary_; }  // a name in parent() that nothing has yet
    // Throws Error (kExitAllocation) unless so many bytes, and a margin for small files, are free.
    void require_space(uint64_t bytes) const;
    // Gives what is called temporary() its name, durably. Throws UserError if something else has taken that meanwhile.
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
    // The file is the caller's to sync.
    OutputFile create(const std::string& name) const { return folder_.create(name); }
    void write_text(const std::string& name, const std::string& text) const;
    void commit();

  private:
    OutputPlace place_;
    Folder folder_;
};

}  // namespace ingot
