// Files whose every failure is noticed and named.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace ingot {

// An open file that closes itself.
class Descriptor {
  public:
    explicit Descriptor(int number = -1) : number_(number) {}
    ~Descriptor() { reset(); }
    Descriptor(Descriptor&& other) noexcept : number_(other.release()) {}
    Descriptor& operator=(Descriptor&& other) noexcept;
    int get() const { return number_; }
    int release();

  private:
    void reset();
    int number_;  // -1: none
};

// Opens a regular file for reading. A FIFO, a device or a folder is refused at once: nothing waits for a writer.
// Throws UserError naming the path and the reason.
Descriptor open_regular_file(const std::string& path);
// The bytes of a regular file of at most `max_bytes`. Throws UserError naming the path and the reason.
std::string read_file(const std::string& path, size_t max_bytes);

// A file mapped read-only; `data` unmaps with its last copy.
struct MappedFile {
    std::shared_ptr<const uint8_t> data;
    size_t size = 0;
};
// Throws UserError as open_regular_file() does.
MappedFile map_file(const std::string& path);

// A new file, written in full or not at all: a short write, a full disk or a failed sync throws Error(kExitAllocation).
class OutputFile {
  public:
    explicit OutputFile(const std::string& path);
    ~OutputFile();
    OutputFile(const OutputFile&) = delete;
    OutputFile& operator=(const OutputFile&) = delete;
    void write(const void* data, size_t bytes);
    void sync_and_close();

  private:
    std::string path_;
    int descriptor_;
};

// Makes a folder's entries durable (after a rename in it).
void sync_folder(const std::string& path);

// Paths that match a glob, sorted; a pattern without wildcards matches itself if it exists.
std::vector<std::string> expand_glob(const std::string& pattern);

}  // namespace ingot
