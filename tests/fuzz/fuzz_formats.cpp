// Headers and indexes of token files (src/data/formats.h) from any bytes: a UserError or a layout inside the file,
// nothing else. The first byte chooses the reader, eight more are the size of the file (llm.c, raw) or of the .bin
// (Megatron), the rest is what the file begins with. scripts/dev/fuzz builds and runs it.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "kernels/core/check.h"
#include "src/data/formats.h"

namespace {

using namespace ingot;

void must(bool holds) {
    if (!holds) std::abort();
}

void check(const TokenLayout& layout, int64_t file_bytes) {
    must(layout.offset >= 0 && layout.count > 0 && layout.count <= file_bytes / bytes_of(layout.type));
    must(layout.offset + layout.count * bytes_of(layout.type) == file_bytes);
}

void megatron(std::span<const std::byte> bytes, int64_t bin_bytes) {
    const MegatronIndex index(bytes, bin_bytes, "x.idx");
    check(index.layout(), bin_bytes);
    const int64_t count = index.num_documents(), tokens = index.layout().count;
    must(count > 0 && count <= static_cast<int64_t>(bytes.size()));
    for (const int64_t token : {int64_t{0}, tokens / 2, tokens}) {
        const int64_t document = index.first_document_from(token);
        must(document >= 0 && document <= count);
    }
    index.check_documents(0, count);
    // What passed the check is in order and inside.
    int64_t last = 0;
    for (int64_t d = 0; d <= count; ++d) {
        const int64_t token = index.first_token(d);
        must(token >= last && token <= tokens);
        last = token;
    }
    must(index.first_token(0) == 0 && last == tokens);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 9) return 0;
    int64_t file_bytes = 0;
    std::memcpy(&file_bytes, data + 1, 8);
    const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data + 9), size - 9);
    // A file has at least the bytes that were read of it, and no others if it is shorter than a header.
    const auto read = static_cast<int64_t>(bytes.size());
    const int64_t whole = read < kLlmcHeaderBytes ? read : std::max(file_bytes, read);
    const auto beginning = bytes.first(static_cast<size_t>(std::min(read, kLlmcHeaderBytes)));
    try {
        switch (data[0] % 4) {
            case 0:
                (void)is_llmc(beginning);
                check(parse_llmc(beginning, whole, "x.bin"), whole);
                break;
            case 1:
                check(parse_raw(RawType::uint16, beginning, whole, "x.bin"), whole);
                break;
            case 2:
                check(parse_raw(RawType::uint32, beginning, whole, "x.bin"), whole);
                break;
            default:
                megatron(bytes, std::max<int64_t>(file_bytes, 0));
        }
    } catch (const UserError& error) {
        // One line that says something.
        must(std::strlen(error.what()) > 10 && std::strchr(error.what(), '\n') == nullptr);
    }
    return 0;
}
