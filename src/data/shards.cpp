#include "src/data/shards.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <set>
#include <utility>

#include "kernels/core/check.h"
#include "src/progress.h"

namespace ingot {

static_assert(std::endian::native == std::endian::little, "token shards are little-endian");

namespace {

constexpr int64_t kHeaderInts = 256;
constexpr int64_t kHeaderBytes = kHeaderInts * 4;

struct Format {
    int32_t magic, version;
    int64_t id_bytes;
};
constexpr Format kFormats[] = {{20240520, 1, 2}, {20240801, 7, 4}};
constexpr const char* kKnownMagics = "20240520 (uint16 tokens) and 20240801 (uint32 tokens)";

// 1234567 as "1,234,567".
std::string with_commas(int64_t number) {
    std::string text = std::to_string(number);
    for (int64_t at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3)
        text.insert(static_cast<size_t>(at), 1, ',');
    return text;
}

// Three digits for what is too long to read: "31.5M", "10.3B".
std::string short_count(int64_t number) {
    if (number < 1'000'000) return with_commas(number);
    std::ostringstream stream;
    stream.setf(std::ios::fixed);
    stream.precision(1);
    if (number < 999'950'000)
        stream << static_cast<double>(number) / 1e6 << "M";
    else
        stream << static_cast<double>(number) / 1e9 << "B";
    return stream.str();
}

std::string counted(int64_t number, const char* noun) {
    return join(with_commas(number), " ", noun, number == 1 ? "" : "s");
}

std::string real_path_of(const std::string& path) {
    char* const resolved = ::realpath(path.c_str(), nullptr);
    if (resolved == nullptr) return path;  // opening it says why
    std::string real = resolved;
    std::free(resolved);
    return real;
}

// The files that a pattern means. A path that exists is taken as it is, also with brackets in its name.
std::vector<std::string> files_of(const std::string& pattern, const std::string& key) {
    std::error_code ignored;
    if (std::filesystem::exists(pattern, ignored)) return {pattern};
    std::vector<std::string> paths = expand_glob(pattern);
    const bool is_glob = pattern.find_first_of("*?[") != std::string::npos;
    REQUIRE(!paths.empty(), key, ": ", is_glob ? "no file matches " : "there is no file ", pattern,
            ": check the path, or make shards with scripts/prepare.py");
    return paths;
}

}  // namespace

template <typename Id>
const Id* TokenShards::Shard::ids() const {
    return reinterpret_cast<const Id*>(file.data.get() + kHeaderBytes);
}

TokenShards::TokenShards(const std::vector<std::string>& patterns, const std::string& key, int64_t vocab_size,
                         int64_t eot_token, EotSide eot_side)
    : key_(key), eot_token_(static_cast<int32_t>(eot_token)), eot_side_(eot_side) {
    CHECK(vocab_size > 0 && vocab_size <= INT32_MAX, "vocab_size ", vocab_size, " does not fit an int32");
    CHECK(eot_token >= -1 && eot_token < vocab_size, "eot_token ", eot_token, " is outside the vocabulary");
    REQUIRE(!patterns.empty(), key, " names no file: add a path or a glob");
    std::set<std::string> taken;
    for (const std::string& pattern : patterns)
        for (const std::string& path : files_of(pattern, key))
            if (taken.insert(real_path_of(path)).second) shards_.push_back(open_shard(path));

    if (eot_side_ == EotSide::automatic) {
        const bool opens = eot_token >= 0 && token({.shard = 0, .begin = 0, .length = 1}, 0) == eot_token_;
        eot_side_ = opens ? EotSide::start : EotSide::end;
    }
    int64_t first_token = 0;
    for (Shard& shard : shards_) {
        shard.first_token = first_token;
        first_token += shard.num_tokens;
    }
    Progress progress("reading the tokens of " + key, first_token, "tokens");
    for (const Shard& shard : shards_)
        shard.id_bytes == 2 ? index<uint16_t>(shard, vocab_size, &progress)
                            : index<uint32_t>(shard, vocab_size, &progress);
    progress.finish();
    document_starts_.push_back(first_token);
    document_starts_.shrink_to_fit();
}

TokenShards::Shard TokenShards::open_shard(const std::string& path) const {
    Shard shard;
    shard.path = path;
    shard.real_path = real_path_of(path);
    shard.file = map_file(path);
    const int64_t file_bytes = static_cast<int64_t>(shard.file.size);
    REQUIRE(file_bytes >= kHeaderBytes, path, " has ", file_bytes, " bytes, too few for a shard's header of ",
            kHeaderBytes, ": copy the file again, or make it with scripts/prepare.py");
    int32_t header[3];
    std::memcpy(header, shard.file.data.get(), sizeof header);
    const auto format = std::find_if(std::begin(kFormats), std::end(kFormats),
                                     [&](const Format& candidate) { return candidate.magic == header[0]; });
    REQUIRE(format != std::end(kFormats), path, " begins with ", header[0],
            ", which marks no token shard (known: ", kKnownMagics,
            "); files without a header are not read: make shards with scripts/prepare.py");
    REQUIRE(header[1] == format->version, path, " has version ", header[1], ", but only version ", format->version,
            " is known for the magic number ", format->magic, ": make it again with scripts/prepare.py");
    shard.id_bytes = format->id_bytes;
    shard.num_tokens = header[2];
    REQUIRE(shard.num_tokens > 0, path, " says that it holds ", shard.num_tokens,
            " tokens: it is empty, or its writer did not finish: make it again, or leave it out");
    const int64_t expected_bytes = kHeaderBytes + shard.num_tokens * shard.id_bytes;
    REQUIRE(file_bytes == expected_bytes, path, " says that it holds ", shard.num_tokens, " tokens, which is ",
            expected_bytes, " bytes with the header, but the file has ", file_bytes, ": it is ",
            file_bytes < expected_bytes ? "cut short" : "longer than it says", ": copy it or make it again");
    return shard;
}

template <typename Id>
void TokenShards::index(const Shard& shard, int64_t vocab_size, Progress* progress) {
    const Id* const ids = shard.ids<Id>();
    const bool can_hold_eot = eot_token_ >= 0 && std::in_range<Id>(eot_token_);
    const Id eot = static_cast<Id>(eot_token_);
    const int64_t num_tokens = shard.num_tokens;
    document_starts_.push_back(shard.first_token);
    // Two reductions over a block of this size run as vector code, and only a block with an EOT in it is looked at id
    // by id. Short enough that documents of a thousand tokens leave most blocks without one.
    constexpr int64_t kBlock = 256, kTokensPerAdvance = kBlock << 16;
    for (int64_t begin = 0; begin < num_tokens; begin += kBlock) {
        if (begin % kTokensPerAdvance == 0) progress->advance(std::min(kTokensPerAdvance, num_tokens - begin));
        const int64_t end = std::min(begin + kBlock, num_tokens);
        Id largest = 0, matches = 0;
        for (int64_t i = begin; i < end; ++i) {
            largest = std::max(largest, ids[i]);
            matches = static_cast<Id>(matches | (ids[i] == eot));
        }
        if (static_cast<int64_t>(largest) >= vocab_size) {
            const auto bad = [&](Id id) { return static_cast<int64_t>(id) >= vocab_size; };
            const int64_t at = std::find_if(ids + begin, ids + end, bad) - ids;
            const Id file_largest = *std::max_element(ids + begin, ids + num_tokens);
            throw UserError(join(shard.path, ": token ", at, " is ", ids[at], ", but model.vocab_size is ", vocab_size,
                                 ": set model.vocab_size to at least ", static_cast<int64_t>(file_largest) + 1,
                                 ", or use the shards of another tokenizer"));
        }
        if (matches == 0 || !can_hold_eot) continue;
        has_eot_ = true;
        for (int64_t i = begin; i < end; ++i) {
            if (ids[i] != eot) continue;
            const int64_t start = eot_side_ == EotSide::start ? i : i + 1;
            if (start > 0 && start < num_tokens) document_starts_.push_back(shard.first_token + start);
        }
    }
}

Document TokenShards::document(int64_t index) const {
    const int64_t first = document_starts_[index];
    const auto next = std::upper_bound(shards_.begin(), shards_.end(), first,
                                       [](int64_t token, const Shard& shard) { return token < shard.first_token; });
    const int64_t shard = next - shards_.begin() - 1;
    return {.shard = shard, .begin = first - shards_[shard].first_token, .length = length(index)};
}

int64_t TokenShards::document_of(int64_t token) const {
    return std::upper_bound(document_starts_.begin(), document_starts_.end(), token) - document_starts_.begin() - 1;
}

void TokenShards::copy(const Document& document, int64_t offset, int64_t count, int32_t* out) const {
    const Shard& shard = shards_[document.shard];
    const int64_t begin = document.begin + offset;
    if (shard.id_bytes == 2)
        std::copy_n(shard.ids<uint16_t>() + begin, count, out);
    else
        std::memcpy(out, shard.ids<uint32_t>() + begin, static_cast<size_t>(count) * 4);
}

int32_t TokenShards::token(const Document& document, int64_t offset) const {
    const Shard& shard = shards_[document.shard];
    const int64_t at = document.begin + offset;
    return shard.id_bytes == 2 ? shard.ids<uint16_t>()[at] : static_cast<int32_t>(shard.ids<uint32_t>()[at]);
}

std::string TokenShards::describe() const {
    std::string boundaries = "each shard is one document";
    if (has_eot_)
        boundaries = eot_side_ == EotSide::start ? "EOT opens documents" : "EOT closes documents";
    else if (eot_token_ >= 0)
        boundaries = join("EOT ", eot_token_, " does not occur: ", boundaries);
    return join(counted(num_shards(), "shard"), ", ", short_count(num_tokens()), " tokens, ",
                counted(num_documents(), "document"), ", ", boundaries);
}

std::vector<std::string> shared_files(const TokenShards& a, const TokenShards& b) {
    std::set<std::string> in_b;
    for (const TokenShards::Shard& shard : b.shards_) in_b.insert(shard.real_path);
    std::vector<std::string> shared;
    for (const TokenShards::Shard& shard : a.shards_)
        if (in_b.count(shard.real_path) == 1) shared.push_back(shard.path);
    return shared;
}

}  // namespace ingot
