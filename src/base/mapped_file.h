// Maps files read-only and survives that they become shorter under the mapping.
//
// Reading a page that a file no longer has raises SIGBUS in the reading thread. The handler here replaces the rest of
// the mapping with zeros and marks it, so that the reader goes on; require_intact() then throws. A reader must
// therefore call it after reading and before it uses what it read. A SIGBUS anywhere else ends the process as usual.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "src/base/files.h"

namespace ingot {

struct Mapping;

struct MappedFile {
    std::shared_ptr<const uint8_t> data;  // its last copy unmaps the file
    size_t size = 0;

    // Throws UserError naming the file if it became shorter or could not be read since it was mapped. The caller has
    // read the bytes before `end`. The part of a page behind the end of the file reads as zeros without a signal, so
    // this checks the mapping's last page too; it costs a system call only if that page was read.
    void require_intact(size_t end) const;
    void require_intact() const { require_intact(size); }

    const Mapping* mapping = nullptr;  // null for an empty file
};

// Throws UserError as open_regular_file() does.
MappedFile map_file(const std::string& path);
// Does the same for an open file; `path` is for messages.
MappedFile map_file(const Descriptor& file, const std::string& path);

}  // namespace ingot
