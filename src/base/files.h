// Files whose every failure is noticed and named.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
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
// The same of a file that is open, from where it stands; `path` is for messages.
std::string read_file(const Descriptor& file, const std::string& path, size_t max_bytes);

// Throws what a failed system call means: "cannot WHAT PATH: the reason: what to do". The exit code is kExitAllocation
// where the disk is full, broken or has reached a limit, else kExitUsage.
[[noreturn]] void file_failed(const std::string& what, const std::string& path, int error);

// A new file, written in full or not at all: a short write, a full disk or a failed sync throws as file_failed() does.
class OutputFile {
  public:
    // Creates it. A file or link that has the name is removed, so that nothing is ever written through it.
    explicit OutputFile(const std::string& path);
    // Takes a file that was just created; `path` is for messages.
    OutputFile(Descriptor file, const std::string& path) : path_(path), file_(std::move(file)) {}
    void write(const void* data, size_t bytes);
    void sync_and_close();

  private:
    std::string path_;
    Descriptor file_;
};

// Paths that match a glob, sorted; a pattern without wildcards matches itself if it exists.
std::vector<std::string> expand_glob(const std::string& pattern);

}  // namespace ingot
