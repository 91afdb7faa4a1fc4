// Document indexes (src/data/document_index.h) from any bytes, as a program might have written them: checksums are made
// to fit after each change, so that what is behind them is reached. scripts/dev/fuzz builds and runs it.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "src/base/checksum.h"
#include "src/data/document_index.h"

namespace {

using namespace ingot;

// document_index.h, at the head of the file.
constexpr size_t kMagicBytes = 8, kHashBytes = 64, kTailBytes = kHashBytes + 8, kEntryBytes = 4 * 8 + kHashBytes;
constexpr size_t kHeadBytes = 8 + sizeof(IndexKey) + 2 * 8;

// Where the footer begins; 0 if there is none.
size_t footer_of(const uint8_t* data, size_t size) {
    if (size < kMagicBytes + kHeadBytes + kTailBytes) return 0;
    uint64_t bytes = 0;
    std::memcpy(&bytes, data + size - 8, 8);
    if (bytes < kHeadBytes || bytes > size - kMagicBytes - kTailBytes) return 0;
    return size - kTailBytes - bytes;
}

int64_t number_at(const uint8_t* data) {
    int64_t number = 0;
    std::memcpy(&number, data, 8);
    return number;
}

void must(bool holds) {
    if (!holds) std::abort();
}

}  // namespace

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
    size = LLVMFuzzerMutate(data, size, max_size);
    const size_t footer = footer_of(data, size);
    if (footer == 0) return size;
    const size_t end = size - kTailBytes;
    if (seed % 4 != 0) {  // of the starts too
        size_t offset = kMagicBytes;
        for (size_t entry = footer + kHeadBytes; entry + kEntryBytes <= end; entry += kEntryBytes) {
            const int64_t starts = number_at(data + entry + 24);
            if (starts < 0 || static_cast<uint64_t>(starts) > (footer - offset) / 8) break;
            const size_t bytes = static_cast<size_t>(starts) * 8;
            std::memcpy(data + entry + 32, sha256(data + offset, bytes).data(), kHashBytes);
            offset += bytes;
        }
    }
    if (seed % 8 != 1) std::memcpy(data + end, sha256(data + footer, end - footer).data(), kHashBytes);
    return size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    // The key and the cuts that the file itself names, so that it is taken if it agrees with itself.
    IndexKey key;
    std::vector<int64_t> cuts = {0};
    if (const size_t footer = footer_of(data, size); footer != 0) {
        std::memcpy(static_cast<void*>(&key), data + footer + 8, sizeof key);
        const size_t first = footer + kHeadBytes, end = size - kTailBytes;
        if (first + kEntryBytes <= end) cuts[0] = number_at(data + first);
        for (size_t entry = first; entry + kEntryBytes <= end; entry += kEntryBytes)
            cuts.push_back(number_at(data + entry + 8));
    }
    std::string why;
    const auto index = DocumentIndex::parse({reinterpret_cast<const std::byte*>(data), size}, nullptr, key, cuts, &why);
    must(index.has_value() == why.empty());
    if (!index) return 0;
    std::vector<int64_t> starts;
    for (size_t segment = 0; segment + 1 < cuts.size(); ++segment) {
        const size_t before = starts.size();
        if (!index->append_starts(static_cast<int64_t>(segment), &starts)) {
            must(starts.size() == before);
            continue;
        }
        must(starts.size() > before && starts[before] == cuts[segment] && starts.back() < cuts[segment + 1]);
        must(std::is_sorted(starts.begin() + static_cast<int64_t>(before), starts.end()));
    }
    (void)index->num_documents();
    (void)index->num_eots();
    (void)index->largest_id();
    return 0;
}
