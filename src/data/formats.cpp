#include "src/data/formats.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/core/check.h"

namespace ingot {

static_assert(std::endian::native == std::endian::little, "token files are little-endian");

namespace {

struct LlmcFormat {
    int32_t magic, version;
    TokenType type;
};
constexpr LlmcFormat kLlmcFormats[] = {{20240520, 1, TokenType::u16}, {20240801, 7, TokenType::u32}};
constexpr const char* kKnownMagics = "20240520 (uint16 tokens) and 20240801 (uint32 tokens)";

constexpr const char* kRawHint =
    "or give the format of what is raw ids ({\"path\": ..., \"format\": \"raw\", \"dtype\": \"uint16\"}; ./train eval: "
    "--format raw --dtype uint16)";

struct TypeRow {
    const char* name;
    int64_t bytes;
    int megatron_code;  // the number in an index; -1: Megatron does not have the type
};
constexpr TypeRow kTypes[] = {  // in the order of TokenType
    {"uint8", 1, 1},
    {"uint16", 2, 8},
    {"uint32", 4, -1},
    {"int32", 4, 4},
    {"int64", 8, 5}};

constexpr char kMegatronMagic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', '\0', '\0'};
constexpr int64_t kMegatronHeaderBytes = 9 + 8 + 1 + 8 + 8;
constexpr const char* kMegatronTypes = "1 (uint8), 4 (int32), 5 (int64) and 8 (uint16)";

template <typename T>
T read(std::span<const std::byte> bytes, int64_t offset) {
    CHECK(offset >= 0 && offset + static_cast<int64_t>(sizeof(T)) <= static_cast<int64_t>(bytes.size()), "offset ",
          offset, " of ", bytes.size(), " bytes");
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
}

const LlmcFormat* llmc_format(std::span<const std::byte> beginning) {
    if (beginning.size() < 4) return nullptr;
    const int32_t magic = read<int32_t>(beginning, 0);
    const auto format = std::find_if(std::begin(kLlmcFormats), std::end(kLlmcFormats),
                                     [&](const LlmcFormat& candidate) { return candidate.magic == magic; });
    return format == std::end(kLlmcFormats) ? nullptr : format;
}

}  // namespace

int64_t bytes_of(TokenType type) {
    return kTypes[static_cast<int>(type)].bytes;
}

const char* name_of(TokenType type) {
    return kTypes[static_cast<int>(type)].name;
}

bool is_llmc(std::span<const std::byte> beginning) {
    return llmc_format(beginning) != nullptr;
}

TokenLayout parse_llmc(std::span<const std::byte> beginning, int64_t file_bytes, const std::string& path) {
    REQUIRE(file_bytes >= kLlmcHeaderBytes, path, " has ", file_bytes, " bytes, too few for a shard's header of ",
            kLlmcHeaderBytes, ": copy the file again, make it with scripts/prepare.py, ", kRawHint);
    CHECK(static_cast<int64_t>(beginning.size()) >= kLlmcHeaderBytes, "only ", beginning.size(), " bytes were read");
    const LlmcFormat* const format = llmc_format(beginning);
    REQUIRE(format != nullptr, path, " begins with ", read<int32_t>(beginning, 0),
            ", which marks no token shard (known: ", kKnownMagics, "): make shards with scripts/prepare.py, ",
            kRawHint);
    const int32_t version = read<int32_t>(beginning, 4);
    REQUIRE(version == format->version, path, " has version ", version, ", but only version ", format->version,
            " is known for the magic number ", format->magic, ": make it again with scripts/prepare.py");
    const TokenLayout layout = {.type = format->type, .offset = kLlmcHeaderBytes, .count = read<int32_t>(beginning, 8)};
    REQUIRE(layout.count > 0, path, " says that it holds ", layout.count,
            " tokens: it is empty, or its writer did not finish: make it again, or leave it out");
    const int64_t expected_bytes = kLlmcHeaderBytes + layout.count * bytes_of(layout.type);
    REQUIRE(file_bytes == expected_bytes, path, " says that it holds ", layout.count, " tokens, which is ",
            expected_bytes, " bytes with the header, but the file has ", file_bytes, ": it is ",
            file_bytes < expected_bytes ? "cut short" : "longer than it says", ": copy it or make it again");
    return layout;
}

TokenLayout parse_raw(RawType type, std::span<const std::byte> beginning, int64_t file_bytes, const std::string& path) {
    const TokenType token_type = type == RawType::uint16 ? TokenType::u16 : TokenType::u32;
    const int64_t bytes = bytes_of(token_type);
    REQUIRE(file_bytes > 0, path, " is empty: make it again, or leave it out");
    REQUIRE(file_bytes % bytes == 0, path, " has ", file_bytes, " bytes, which is no whole number of ",
            name_of(token_type), " tokens: copy it again, or check its dtype");
    if (const LlmcFormat* const format = llmc_format(beginning);
        format != nullptr && file_bytes >= kLlmcHeaderBytes && read<int32_t>(beginning, 4) == format->version) {
        const int64_t count = read<int32_t>(beginning, 8);
        REQUIRE(file_bytes != kLlmcHeaderBytes + count * bytes_of(format->type), path,
                " is a shard of llm.c with a header of its own, not raw ids: remove format and dtype");
    }
    return {.type = token_type, .offset = 0, .count = file_bytes / bytes};
}

// ---- Megatron ----

template <typename T>
T MegatronIndex::at(int64_t offset, int64_t i) const {
    return read<T>(index_, offset + i * static_cast<int64_t>(sizeof(T)));
}

MegatronIndex::MegatronIndex(std::span<const std::byte> index, int64_t bin_bytes, const std::string& path)
    : index_(index), path_(path) {
    const int64_t file_bytes = static_cast<int64_t>(index.size());
    const bool has_magic =
        index.size() >= sizeof kMegatronMagic && std::memcmp(index.data(), kMegatronMagic, sizeof kMegatronMagic) == 0;
    REQUIRE(has_magic && file_bytes >= kMegatronHeaderBytes, path,
            " is no Megatron index: it must begin with MMIDIDX and have ", kMegatronHeaderBytes,
            " bytes at least: copy it again, or make it with Megatron's preprocess_data.py");
    const uint64_t version = read<uint64_t>(index, 9);
    REQUIRE(version == 1, path, " has version ", version, ", but only version 1 is known: make it again");
    const int code = static_cast<int>(read<uint8_t>(index, 17));
    const TypeRow* const row = std::find_if(std::begin(kTypes), std::end(kTypes),
                                            [&](const TypeRow& candidate) { return candidate.megatron_code == code; });
    REQUIRE(row != std::end(kTypes), path, " says that its tokens have dtype code ", code,
            ", which holds no token ids; known are ", kMegatronTypes, ": make it again");
    layout_.type = static_cast<TokenType>(row - kTypes);
    // Counts are unsigned 64-bit numbers. One that is too large for the file is refused before it is multiplied.
    const uint64_t sequences = read<uint64_t>(index, 18), entries = read<uint64_t>(index, 26);
    const uint64_t array_bytes = static_cast<uint64_t>(file_bytes - kMegatronHeaderBytes);
    const bool fits = sequences <= array_bytes / 12 && entries <= (array_bytes - sequences * 12) / 8;
    REQUIRE(fits, path, " says that it holds ", sequences, " sequences and ", entries, " document entries, but it has ",
            file_bytes, " bytes: it is cut short: copy it again");
    REQUIRE(sequences > 0 && entries > 1, path, " lists ", sequences, " sequences and ", entries,
            " document entries: it is empty, or its writer did not finish: make it again, or leave it out");
    num_sequences_ = static_cast<int64_t>(sequences);
    num_documents_ = static_cast<int64_t>(entries) - 1;
    lengths_ = kMegatronHeaderBytes;
    pointers_ = lengths_ + num_sequences_ * 4;
    documents_ = pointers_ + num_sequences_ * 8;
    const int64_t expected_bytes = documents_ + (num_documents_ + 1) * 8;
    REQUIRE(file_bytes != expected_bytes + num_sequences_, path,
            " has modes of sequences, so it is of multimodal data, which are not read: use text alone");
    REQUIRE(file_bytes == expected_bytes, path, " has ", file_bytes, " bytes, but its counts make ", expected_bytes,
            ": it is longer than it says: copy it or make it again");

    const int64_t token_bytes = bytes_of(layout_.type);
    REQUIRE(bin_bytes % token_bytes == 0, path, ": its .bin has ", bin_bytes, " bytes, which is no whole number of ",
            name_of(layout_.type), " tokens: copy both again");
    layout_.count = bin_bytes / token_bytes;
    REQUIRE(layout_.count > 0, path, ": its .bin is empty: make it again, or leave it out");
    const int64_t last_length = at<int32_t>(lengths_, num_sequences_ - 1);
    const bool ends_fit = last_length >= 0 && sequence_token(num_sequences_ - 1) + last_length == layout_.count;
    REQUIRE(ends_fit, path, " does not belong to its .bin: the last sequence of ", last_length,
            " tokens does not end where the .bin of ", layout_.count, " tokens does: copy both again");
    REQUIRE(first_sequence(0) == 0 && sequence_token(0) == 0 && first_sequence(num_documents_) == num_sequences_, path,
            ": the document index does not go from the first sequence to the last: make it again");
}

int64_t MegatronIndex::first_sequence(int64_t d) const {
    const int64_t sequence = at<int64_t>(documents_, d);
    REQUIRE(sequence >= 0 && sequence <= num_sequences_, path_, ": document ", d, " begins with sequence ", sequence,
            " of ", num_sequences_, ": the index is damaged: copy it again");
    return sequence;
}

int64_t MegatronIndex::sequence_token(int64_t s) const {
    const int64_t pointer = at<int64_t>(pointers_, s), token_bytes = bytes_of(layout_.type);
    const bool fits = pointer >= 0 && pointer % token_bytes == 0 && pointer / token_bytes <= layout_.count;
    REQUIRE(fits, path_, ": sequence ", s, " begins at byte ", pointer, " of a .bin of ", layout_.count, " ",
            name_of(layout_.type), " tokens: the index is damaged: copy it again");
    return pointer / token_bytes;
}

int64_t MegatronIndex::first_token(int64_t d) const {
    const int64_t sequence = first_sequence(d);
    return sequence == num_sequences_ ? layout_.count : sequence_token(sequence);
}

int64_t MegatronIndex::first_document_from(int64_t token) const {
    int64_t low = 0, high = num_documents_;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (first_token(middle) < token)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

void MegatronIndex::check_documents(int64_t first, int64_t last) const {
    int64_t s = first_sequence(first);
    for (int64_t d = first; d < last; ++d) {
        const int64_t end = first_sequence(d + 1);
        REQUIRE(end >= s, path_, ": document ", d + 1, " begins with sequence ", end, ", before document ", d,
                " ends: the index is damaged: copy it again");
        for (; s < end; ++s) {
            const int64_t length = at<int32_t>(lengths_, s);
            const int64_t next = s + 1 == num_sequences_ ? layout_.count : sequence_token(s + 1);
            REQUIRE(length >= 0 && sequence_token(s) + length == next, path_, ": sequence ", s, " of ", length,
                    " tokens does not end where the next one begins: only a .bin without gaps is read: make it again");
        }
    }
}

}  // namespace ingot
