// The folder of a run. It is held open and locked for as long as the run lives, and everything that the run writes goes
// into the folder that is held, wherever its path leads meanwhile.
#pragma once

#include <optional>
#include <string>

#include "src/base/folder.h"
#include "src/config/config.h"

namespace ingot {

class RunFolder {
  public:
    static constexpr const char* kCheckpoints = "checkpoints";

    // Makes the folder and locks it: the folder itself, and the file `lock` in it for file systems that lock files
    // alone. Throws UserError if another process holds it, or if it has a config.json that no run wrote.
    explicit RunFolder(const Config& config);
    RunFolder(const RunFolder&) = delete;
    RunFolder& operator=(const RunFolder&) = delete;

    const std::string& path() const { return path_; }
    const Folder& folder() const { return folder_; }
    // Why the run may not go on here, or an empty text: its path no longer names the folder that is held, the lock file
    // is no longer the one that is locked, or the folder of checkpoints was a link and leads elsewhere.
    std::string why_taken() const;
    // The folder of the checkpoints, made if it is not there. Where it was a link when the run began, it is held too.
    Folder checkpoints() const;
    // Writes config.json, every field spelled out. Throws UserError if a file that no run wrote has its name.
    void write_config(const Config& config) const;

  private:
    void refuse_foreign_config() const;
    std::string path_;
    Folder folder_;
    Descriptor lock_;
    std::optional<Folder> linked_checkpoints_;
};

}  // namespace ingot
