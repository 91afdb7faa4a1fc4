// Files mapped read-only, and what happens when they become shorter under the mapping.
//
// Reading a page that a file no longer has raises SIGBUS in the thread that reads. The handler here puts zeros in place
// of the rest of the mapping and marks it, so that the reader goes on; require_intact() then throws. So whoever reads
// calls it after reading and before anything is made of what was read. A SIGBUS anywhere else ends the process as
// usual.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "src/base/files.h"

namespace ingot {

struct Mapping;

struct MappedFile {
    std::shared_ptr<const uint8_t> data;  // unmaps with its last copy
    size_t size = 0;

    // Throws UserError naming the file if it became shorter or could not be read since it was mapped. `end`: the bytes
    // before it were read. What a page has behind the end of the file reads as zeros without any signal, so this looks
    // at the mapping's last page too; only if that was read itself does it take a system call.
    void require_intact(size_t end) const;
    void require_intact() const { require_intact(size); }

    const Mapping* mapping = nullptr;  // null: of an empty file
};

// Throws UserError as open_regular_file() does.
MappedFile map_file(const std::string& path);
// The same of a file that is open; `path` is for messages.
MappedFile map_file(const Descriptor& file, const std::string& path);

}  // namespace ingot
