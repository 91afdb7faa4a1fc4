// The folder of a run: its lock, and the resolved config.
#pragma once

#include <string>

#include "src/config.h"

namespace ingot {

// Creates the folder and holds a lock on it for as long as the object lives. Throws UserError if another process does.
class RunFolder {
  public:
    explicit RunFolder(const Config& config);
    ~RunFolder();
    RunFolder(const RunFolder&) = delete;
    RunFolder& operator=(const RunFolder&) = delete;
    const std::string& path() const { return path_; }
    // Writes config.json, every field spelled out.
    void write_config(const Config& config) const;

  private:
    std::string path_;
    int lock_;
};

}  // namespace ingot
