#include "src/base/checksum.h"

#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "kernels/core/check.h"
#include "src/base/files.h"

namespace ingot {

namespace {

struct DigestContext {
    DigestContext() : context(EVP_MD_CTX_new()) {
        CHECK(context != nullptr && EVP_DigestInit_ex(context, EVP_sha256(), nullptr) == 1, "libcrypto has no SHA-256");
    }
    ~DigestContext() { EVP_MD_CTX_free(context); }
    DigestContext(const DigestContext&) = delete;
    DigestContext& operator=(const DigestContext&) = delete;
    void update(const void* data, size_t bytes) {
        CHECK(EVP_DigestUpdate(context, data, bytes) == 1, "SHA-256 failed");
    }
    // Returns the digest in hexadecimal and starts a new one.
    std::string finish() {
        unsigned char digest[EVP_MAX_MD_SIZE];
        unsigned int length = 0;
        CHECK(EVP_DigestFinal_ex(context, digest, &length) == 1 && length == 32, "SHA-256 failed");
        CHECK(EVP_DigestInit_ex(context, EVP_sha256(), nullptr) == 1, "SHA-256 failed");
        static constexpr char kDigits[] = "0123456789abcdef";
        std::string text;
        for (unsigned int i = 0; i < length; ++i) {
            text += kDigits[digest[i] >> 4];
            text += kDigits[digest[i] & 15];
        }
        return text;
    }
    EVP_MD_CTX* context;
};

// Returns what is wrong with bytes [begin, end) of an open file, or "" if nothing is.
std::string chunk_fault(int descriptor, uint64_t begin, uint64_t end, const std::string& expected) {
    DigestContext digest;
    std::vector<uint8_t> buffer(size_t{1} << 20);
    for (uint64_t at = begin; at < end;) {
        const ssize_t taken =
            pread(descriptor, buffer.data(), std::min<uint64_t>(buffer.size(), end - at), static_cast<off_t>(at));
        if (taken < 0 && errno == EINTR) continue;
        if (taken <= 0) return join("cannot be read at byte ", at, ": ", taken < 0 ? std::strerror(errno) : "it ends");
        digest.update(buffer.data(), static_cast<size_t>(taken));
        at += static_cast<uint64_t>(taken);
    }
    if (digest.finish() == expected) return "";
    return join("bytes ", begin, " to ", end - 1, " are not what was written: their checksum differs");
}

int64_t chunk_begin(int64_t chunk) {
    return chunk * static_cast<int64_t>(FileRecord::kChunkBytes);
}

int64_t chunk_end(const FileRecord& record, int64_t chunk) {
    return std::min(chunk_begin(chunk + 1), static_cast<int64_t>(record.bytes));
}

}  // namespace

struct ChunkedSha256::Context : DigestContext {};

std::string sha256(const void* data, size_t bytes) {
    DigestContext digest;
    digest.update(data, bytes);
    return digest.finish();
}

ChunkedSha256::ChunkedSha256() : context_(std::make_unique<Context>()) {}
ChunkedSha256::~ChunkedSha256() = default;

void ChunkedSha256::update(const void* data, size_t bytes) {
    const uint8_t* next = static_cast<const uint8_t*>(data);
    while (bytes > 0) {
        const size_t taken = static_cast<size_t>(std::min<uint64_t>(bytes, FileRecord::kChunkBytes - chunk_bytes_));
        context_->update(next, taken);
        next += taken;
        bytes -= taken;
        chunk_bytes_ += taken;
        record_.bytes += taken;
        if (chunk_bytes_ == FileRecord::kChunkBytes) end_chunk();
    }
}

void ChunkedSha256::end_chunk() {
    record_.sha256.push_back(context_->finish());
    chunk_bytes_ = 0;
}

FileRecord ChunkedSha256::finish(const std::string& name) {
    if (chunk_bytes_ > 0) end_chunk();
    record_.name = name;
    return record_;
}

int64_t bytes_of(const FileRecord& record, const ChunkSelection& chunks) {
    int64_t bytes = 0;
    for (int64_t chunk = chunks.first; chunk < static_cast<int64_t>(record.sha256.size()); chunk += chunks.step)
        bytes += chunk_end(record, chunk) - chunk_begin(chunk);
    return bytes;
}

void verify_file(const std::string& folder, const FileRecord& record, const std::function<void(int64_t)>& progress,
                 const ChunkSelection& chunks) {
    const std::string path = folder + "/" + record.name;
    const Descriptor file = open_regular_file(path);
    struct stat info {};
    REQUIRE(fstat(file.get(), &info) == 0, path, ": ", std::strerror(errno));
    const uint64_t size = static_cast<uint64_t>(info.st_size);
    REQUIRE(size == record.bytes, path, ": has ", size, " bytes instead of ", record.bytes, ": it is ",
            size < record.bytes ? "cut short" : "longer than what was written");
    const int64_t num_chunks = static_cast<int64_t>(record.sha256.size());
    std::vector<std::string> faults(record.sha256.size());
#pragma omp parallel for schedule(dynamic)
    for (int64_t chunk = chunks.first; chunk < num_chunks; chunk += chunks.step) {
        const int64_t begin = chunk_begin(chunk), end = chunk_end(record, chunk);
        std::string& fault = faults[static_cast<size_t>(chunk)];
        try {
            fault = chunk_fault(file.get(), static_cast<uint64_t>(begin), static_cast<uint64_t>(end),
                                record.sha256[static_cast<size_t>(chunk)]);
#pragma omp critical(verify_file_progress)
            progress(end - begin);
        } catch (const std::exception& exception) {  // an exception must not leave a parallel region
            fault = exception.what();
        }
    }
    for (const std::string& fault : faults) REQUIRE(fault.empty(), path, ": ", fault);
}

}  // namespace ingot
