// A folder that a command writes in full or not at all: its files go into OUTPUT.tmp-NONCE beside it, and one rename
// makes them OUTPUT.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "src/folder.h"

namespace ingot {

class OutputFolder {
  public:
    // Makes the folders above it that are not there, and the temporary one. Throws UserError if something has the name
    // already, and as file_failed() does.
    explicit OutputFolder(const std::string& path);
    // Removes what was not committed, and the folders above it that were made for it.
    ~OutputFolder();
    OutputFolder(const OutputFolder&) = delete;
    OutputFolder& operator=(const OutputFolder&) = delete;

    // Throws UserError if something has the name already: for whoever wants to know before hours of work.
    static void require_absent(const std::string& path);

    // Throws Error (kExitAllocation) unless so many bytes, and a margin for small files, are free.
    void require_space(uint64_t bytes) const;
    // The file is the caller's to sync.
    OutputFile create(const std::string& name) const { return folder_.create(name); }
    void write_text(const std::string& name, const std::string& text) const;
    // Gives it its name, durably. Throws UserError if something else has taken that meanwhile.
    void commit();

  private:
    static std::filesystem::path normal(const std::string& path);
    std::filesystem::path path_;
    std::vector<std::filesystem::path> made_;  // of the folders above, the outermost first
    Folder parent_;
    std::string temporary_;
    Folder folder_;
    bool is_committed_ = false;
};

}  // namespace ingot
