// SHA-256 (FIPS 180-4, by libcrypto) of bytes and of files in chunks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace ingot {

// As 64 hexadecimal digits.
std::string sha256(const void* data, size_t bytes);

// A file as a manifest describes it. The checksums are those of its chunks of kChunkBytes, the last one shorter: many
// threads can check them, and a damaged place is known to 64 MiB.
struct FileRecord {
    static constexpr uint64_t kChunkBytes = uint64_t{64} << 20;
    std::string name;  // within its folder
    uint64_t bytes = 0;
    std::vector<std::string> sha256;
};

// Sums up what is written to a file, in order.
class ChunkedSha256 {
  public:
    ChunkedSha256();
    ~ChunkedSha256();
    ChunkedSha256(const ChunkedSha256&) = delete;
    ChunkedSha256& operator=(const ChunkedSha256&) = delete;
    void update(const void* data, size_t bytes);
    FileRecord finish(const std::string& name);

  private:
    void end_chunk();
    struct Context;
    std::unique_ptr<Context> context_;
    uint64_t chunk_bytes_ = 0;
    FileRecord record_;
};

// Reads the whole file, on all threads. Throws UserError naming the file and what is wrong with it: missing, cut short,
// too long, unreadable, or which bytes differ. `progress` is told how many bytes were read, by one thread at a time.
void verify_file(
    const std::string& folder, const FileRecord& record, const std::function<void(int64_t)>& progress = [](int64_t) {});

}  // namespace ingot
