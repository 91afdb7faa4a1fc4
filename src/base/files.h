// File access in which every failure is noticed and names the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ingot {

// Owns an open file and closes it.
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
    int number_;  // -1 if no file is open
};

// Opens a regular file for reading. Refuses a FIFO, a device or a folder at once instead of waiting for a writer.
// Throws UserError naming the path and the reason.
Descriptor open_regular_file(const std::string& path);
// Returns the bytes of a regular file of at most `max_bytes`. Throws UserError naming the path and the reason.
std::string read_file(const std::string& path, size_t max_bytes);
// Does the same for an open file, from its current offset; `path` is for messages.
std::string read_file(const Descriptor& file, const std::string& path, size_t max_bytes);
// Appends the bytes of an open file or pipe to `text`, up to its end. Returns 0, the errno of a read that failed, or
// EFBIG if `text` would have more than `max_bytes`.
int read_to_end(int descriptor, size_t max_bytes, std::string* text);

// Throws the error for a failed system call: "cannot WHAT PATH: the reason: what to do". The exit code is
// kExitAllocation where the disk is full, broken or has reached a limit, else kExitUsage.
[[noreturn]] void file_failed(const std::string& what, const std::string& path, int error);

// Writes a new file in full: a short write, a full disk or a failed sync throws as file_failed() does.
class OutputFile {
  public:
    // Creates the file. Removes a file or link of that name first, so that nothing is ever written through a link.
    explicit OutputFile(const std::string& path);
    // Takes over a file that was just created; `path` is for messages.
    OutputFile(Descriptor file, const std::string& path) : path_(path), file_(std::move(file)) {}
    void write(const void* data, size_t bytes);
    void sync_and_close();

  private:
    std::string path_;
    Descriptor file_;
};

// Returns the sorted paths that match a glob. A pattern without wildcards matches itself if it exists.
std::vector<std::string> expand_glob(const std::string& pattern);

}  // namespace ingot
