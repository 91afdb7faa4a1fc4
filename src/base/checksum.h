// Computes SHA-256 (FIPS 180-4, by libcrypto) of bytes, and of files in chunks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace ingot {

// Returns 64 hexadecimal digits.
std::string sha256(const void* data, size_t bytes);

// A manifest describes a file by this. There is a checksum for each chunk of kChunkBytes (the last one is shorter), so
// that many threads can check a file and damage is located to 64 MiB.
struct FileRecord {
    static constexpr uint64_t kChunkBytes = uint64_t{64} << 20;
    std::string name;  // within its folder
    uint64_t bytes = 0;
    std::vector<std::string> sha256;
};

// Computes the checksums of a file while it is written, in order.
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

// Every step-th chunk of a file, from chunk `first` on.
struct ChunkSelection {
    int64_t first = 0, step = 1;
};
int64_t bytes_of(const FileRecord& record, const ChunkSelection& chunks);

// Reads the chunks of the file with all threads. Throws UserError naming the file and its fault: it is missing, cut
// short, too long or unreadable, or which bytes differ. One thread at a time calls `progress` with the number of bytes
// that were read.
void verify_file(
    const std::string& folder, const FileRecord& record, const std::function<void(int64_t)>& progress = [](int64_t) {},
    const ChunkSelection& chunks = {});

}  // namespace ingot
