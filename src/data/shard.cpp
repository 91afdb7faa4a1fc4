#include "src/data/shard.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "kernels/core/check.h"

namespace ingot {

namespace {

std::string real_path_of(const std::string& path) {
    char* const resolved = ::realpath(path.c_str(), nullptr);
    if (resolved == nullptr) return path;  // opening the path reports the reason
    std::string real = resolved;
    std::free(resolved);
    return real;
}

std::span<const std::byte> bytes_of_file(const MappedFile& file) {
    return {reinterpret_cast<const std::byte*>(file.data.get()), file.size};
}

// The index of TOKENS.bin is TOKENS.idx.
std::string index_path(const std::string& path) {
    return std::filesystem::path(path).replace_extension(".idx").string();
}

bool is_megatron(const std::string& path) {
    std::error_code ignored;
    return std::filesystem::path(path).extension() == ".bin" && std::filesystem::exists(index_path(path), ignored);
}

void stamp_of(const std::string& path, int64_t* bytes, int64_t* mtime_ns) {
    struct stat info {};
    REQUIRE(stat(path.c_str(), &info) == 0, "cannot open ", path, ": ", std::strerror(errno), ": check the path");
    *bytes = info.st_size;
    *mtime_ns = static_cast<int64_t>(info.st_mtim.tv_sec) * 1'000'000'000 + info.st_mtim.tv_nsec;
}

// Calls read(), which reads `file` up to `end`. If the file became shorter, that error counts, not what read() made of
// the zeros.
template <typename Function>
auto intact(const MappedFile& file, size_t end, Function&& read) {
    try {
        auto result = read();
        file.require_intact(end);
        return result;
    } catch (const Error&) {
        file.require_intact(end);
        throw;
    }
}

// Returns the starts of the documents of tokens [begin, end) from the index.
std::vector<int64_t> documents_of(const MegatronIndex& megatron, int64_t begin, int64_t end, const std::string& path) {
    std::vector<int64_t> starts;
    const int64_t first = megatron.first_document_from(begin), last = megatron.first_document_from(end);
    // Bisection finds the first of several documents that begin at `begin`; all but the last of them are empty.
    megatron.check_documents(first, last);
    for (int64_t d = first; d < last; ++d) {
        const int64_t start = megatron.first_token(d);
        if (d + 1 < last ? megatron.first_token(d + 1) > start : end > start) starts.push_back(start);
    }
    const bool is_whole = first < last && megatron.first_token(first) == begin && megatron.first_token(last) == end;
    REQUIRE(is_whole, path, " contradicts itself about tokens ", begin, " to ", end,
            ": the index is damaged: copy it again");
    return starts;
}

// Returns whether an id of this type can be the number.
template <typename Id>
bool can_hold(int64_t id) {
    return id >= 0 && std::in_range<Id>(id);
}

}  // namespace

// Calls the function with ids as unsigned numbers: a negative one is then too large, and one comparison finds both.
template <typename Function>
auto Shard::with_ids(Function&& function) const {
    const uint8_t* const data = file_.data.get() + layout_.offset;
    switch (layout_.type) {
        case TokenType::u8:
            return function(data);
        case TokenType::u16:
            return function(reinterpret_cast<const uint16_t*>(data));
        case TokenType::u32:
        case TokenType::i32:
            return function(reinterpret_cast<const uint32_t*>(data));
        case TokenType::i64:
            break;
    }
    return function(reinterpret_cast<const uint64_t*>(data));
}

Shard::Shard(const std::string& path, const DataEntry& entry, const std::string& mask)
    : path_(path), real_path_(real_path_of(path)), files_({path}), file_(map_file(path)) {
    stamp_of(path, &stamp_.bytes, &stamp_.mtime_ns);
    const int64_t file_bytes = static_cast<int64_t>(file_.size);
    const std::span<const std::byte> beginning =
        bytes_of_file(file_).first(std::min<size_t>(file_.size, static_cast<size_t>(kLlmcHeaderBytes)));
    DataFormat format = entry.format;
    if (format == DataFormat::automatic || format == DataFormat::megatron)
        REQUIRE(index_path(path) != path, path, " is a Megatron index: name the .bin beside it");
    if (format == DataFormat::automatic) format = is_megatron(path) ? DataFormat::megatron : DataFormat::llmc;
    switch (format) {
        case DataFormat::raw:
            layout_ =
                intact(file_, beginning.size(), [&] { return parse_raw(entry.dtype, beginning, file_bytes, path); });
            break;
        case DataFormat::megatron: {
            const std::string index = index_path(path);
            index_ = map_file(index);
            files_.push_back(index);
            stamp_of(index, &stamp_.index_bytes, &stamp_.index_mtime_ns);
            megatron_ =
                intact(index_, index_.size, [&] { return MegatronIndex(bytes_of_file(index_), file_bytes, index); });
            layout_ = megatron_->layout();
            break;
        }
        default:
            layout_ = intact(file_, beginning.size(), [&] { return parse_llmc(beginning, file_bytes, path); });
    }
    if (mask.empty()) return;
    mask_ = map_file(mask);
    files_.push_back(mask);
    REQUIRE(static_cast<int64_t>(mask_.size) == layout_.count, mask, " has ", mask_.size, " bytes, but ", path, " has ",
            layout_.count, " tokens: a mask has one byte a token; check that they belong together");
}

void Shard::copy(int64_t begin, int64_t count, int32_t* out) const {
    with_ids([&](const auto* ids) {
        using Id = std::remove_cvref_t<decltype(*ids)>;
        const Id* const from = ids + begin;
        for (int64_t i = 0; i < count; ++i) {
            if constexpr (sizeof(Id) == 8)
                out[i] = static_cast<int32_t>(std::min<uint64_t>(from[i], INT32_MAX));
            else
                out[i] = static_cast<int32_t>(from[i]);
        }
    });
    require_intact_ids(begin + count);
}

void Shard::require_intact_ids(int64_t end) const {
    file_.require_intact(static_cast<size_t>(layout_.offset + end * bytes_of(type())));
}

void Shard::apply_mask(int64_t begin, int64_t count, int32_t* targets) const {
    if (!has_mask()) return;
    const uint8_t* const bytes = mask_.data.get() + begin;
    for (int64_t i = 0; i < count; ++i) targets[i] = bytes[i] != 0 ? targets[i] : -1;
    mask_.require_intact(static_cast<size_t>(begin + count));
}

bool Shard::any_target(int64_t begin, int64_t count) const {
    if (!has_mask()) return count > 0;
    const uint8_t* const bytes = mask_.data.get() + begin;
    const bool result = std::any_of(bytes, bytes + count, [](uint8_t byte) { return byte != 0; });
    mask_.require_intact(static_cast<size_t>(begin + count));
    return result;
}

int32_t Shard::token(int64_t at) const {
    int32_t id = 0;
    copy(at, 1, &id);
    return id;
}

std::vector<int64_t> Shard::find_cuts(int64_t every, const TokenRules& rules) const {
    std::vector<int64_t> cuts = {0};
    const auto add = [&](int64_t cut) {
        if (cut > cuts.back() && cut < num_tokens()) cuts.push_back(cut);
    };
    // A last piece of less than half the size is joined to the one before it.
    const int64_t last = num_tokens() - every / 2;
    if (last < every || (!megatron_ && rules.eot_token < 0)) {
        cuts.push_back(num_tokens());
        return cuts;
    }
    if (megatron_) {
        const std::vector<int64_t> places = intact(index_, index_.size, [&] {
            std::vector<int64_t> starts;
            for (int64_t place = every; place <= last; place += every)
                starts.push_back(megatron_->first_token(megatron_->first_document_from(place)));
            return starts;
        });
        for (const int64_t place : places) add(place);
        cuts.push_back(num_tokens());
        return cuts;
    }
    // Reads through the file, not the mapping: thousands of places would fill the address space, with read-ahead at
    // each.
    const Descriptor file = open_regular_file(path_);
    posix_fadvise(file.get(), 0, 0, POSIX_FADV_RANDOM);
    std::vector<uint8_t> buffer(static_cast<size_t>(kProbeTokens * bytes_of(type())));
    for (int64_t place = every; place <= last; place += every) {
        // With `end`, the token before `place` says whether a document begins there.
        const int64_t begin = rules.eot_side == EotSide::start ? place : place - 1;
        const int64_t bytes = std::min(kProbeTokens, num_tokens() - begin) * bytes_of(type());
        const ssize_t got =
            pread(file.get(), buffer.data(), static_cast<size_t>(bytes), layout_.offset + begin * bytes_of(type()));
        REQUIRE(got == bytes, "cannot read ", path_, " at token ", begin, ": ",
                got < 0 ? std::strerror(errno) : "it is shorter than it was", ": was it replaced? start again");
        with_ids([&](const auto* ids) {
            using Id = std::remove_cvref_t<decltype(*ids)>;
            if (!can_hold<Id>(rules.eot_token)) return;
            const Id* const first = reinterpret_cast<const Id*>(buffer.data());
            const int64_t count = bytes / static_cast<int64_t>(sizeof(Id));
            const int64_t at = std::find(first, first + count, static_cast<Id>(rules.eot_token)) - first;
            if (at < count) add(rules.eot_side == EotSide::start ? begin + at : begin + at + 1);
        });
    }
    cuts.push_back(num_tokens());
    return cuts;
}

void Shard::refuse_id(int64_t begin, int64_t end, const TokenRules& rules) const {
    with_ids([&](const auto* ids) {
        const uint64_t vocab_size = static_cast<uint64_t>(rules.vocab_size);
        const auto* const bad = std::find_if(ids + begin, ids + end, [&](auto id) { return id >= vocab_size; });
        REQUIRE(bad != ids + end, path_, ": an id of tokens ", begin, " to ", end - 1,
                " was too large, and is not any more: the file is being written: wait until it is whole");
        const bool is_signed = type() == TokenType::i32 || type() == TokenType::i64;
        const auto shown = [&](uint64_t id) {
            if (!is_signed) return join(id);
            return join(type() == TokenType::i32 ? static_cast<int64_t>(static_cast<int32_t>(id))
                                                 : static_cast<int64_t>(id));
        };
        const std::string id = shown(*bad);
        if (id[0] == '-')
            throw UserError(join(path_, ": token ", bad - ids, " is ", id,
                                 ", and no token is negative: copy it again, or make it again"));
        const auto largest = *std::max_element(ids + begin, ids + end);
        throw UserError(join(path_, ": token ", bad - ids, " is ", id, ", but model.vocab_size is ", rules.vocab_size,
                             ": set model.vocab_size to at least ", static_cast<uint64_t>(largest) + 1,
                             ", or use the shards of another tokenizer"));
    });
    std::abort();  // not reached: both branches throw
}

template <typename Id>
Shard::Scan Shard::scan_ids(const Id* ids, int64_t begin, int64_t end, const TokenRules& rules,
                            std::vector<int64_t>* starts, const std::stop_token& stop) const {
    const bool looks_for_eot = starts != nullptr && can_hold<Id>(rules.eot_token);
    const Id eot = static_cast<Id>(rules.eot_token);
    const int64_t to_start = rules.eot_side == EotSide::start ? 0 : 1;
    Scan result;
    uint64_t largest_id = 0;
    // Two reductions over a block of this size compile to vector code, and only a block with an EOT is scanned id by
    // id. With documents of a thousand tokens most blocks have none.
    constexpr int64_t kBlock = 256, kBlocksPerLook = 4096;
    for (int64_t block = begin, looks = 0; block < end; block += kBlock, ++looks) {
        if (looks % kBlocksPerLook == 0 && stop.stop_requested()) throw Stopped{};
        const int64_t block_end = std::min(block + kBlock, end);
        Id largest = 0, matches = 0;
        for (int64_t i = block; i < block_end; ++i) {
            largest = std::max(largest, ids[i]);
            matches = static_cast<Id>(matches | (ids[i] == eot));
        }
        largest_id = std::max<uint64_t>(largest_id, largest);
        if (largest_id >= static_cast<uint64_t>(rules.vocab_size)) refuse_id(block, end, rules);
        if (matches == 0 || !looks_for_eot) continue;
        for (int64_t i = block; i < block_end; ++i) {
            if (ids[i] != eot) continue;
            result.num_eots += 1;
            const int64_t start = i + to_start;
            if (start > begin && start < end) starts->push_back(start);
        }
    }
    result.largest_id = static_cast<int64_t>(largest_id);
    return result;
}

void Shard::own_documents(int64_t begin, int64_t end, std::vector<int64_t>* starts) const {
    const std::vector<int64_t> found =
        intact(index_, index_.size, [&] { return documents_of(*megatron_, begin, end, index_path(path_)); });
    starts->insert(starts->end(), found.begin(), found.end());
}

Shard::Scan Shard::scan(int64_t begin, int64_t end, const TokenRules& rules, std::vector<int64_t>* starts,
                        const std::stop_token& stop) const {
    if (megatron_)
        own_documents(begin, end, starts);
    else
        starts->push_back(begin);
    const size_t ids_end = static_cast<size_t>(layout_.offset + end * bytes_of(type()));
    const Scan result = intact(file_, ids_end, [&] {
        return with_ids(
            [&](const auto* ids) { return scan_ids(ids, begin, end, rules, megatron_ ? nullptr : starts, stop); });
    });
    if (!has_mask()) return result;
    const uint8_t* const bytes = mask_.data.get();
    const uint8_t* const bad = std::find_if(bytes + begin, bytes + end, [](uint8_t byte) { return byte > 1; });
    const uint8_t byte = bad == bytes + end ? uint8_t{0} : *bad;
    mask_.require_intact(static_cast<size_t>(end));
    REQUIRE(bad == bytes + end, "the mask of ", path_, " has the byte ", static_cast<int>(byte), " for token ",
            bad - bytes, ": it must be 0 (no target) or 1; check that it is a mask");
    return result;
}

void Shard::check_ids(int64_t begin, int64_t end, const TokenRules& rules) const {
    intact(file_, static_cast<size_t>(layout_.offset + end * bytes_of(type())),
           [&] { return with_ids([&](const auto* ids) { return scan_ids(ids, begin, end, rules, nullptr, {}); }); });
}

void Shard::find_documents(int64_t begin, int64_t end, const TokenRules& rules, std::vector<int64_t>* starts,
                           const std::stop_token& stop) const {
    if (megatron_)
        own_documents(begin, end, starts);
    else if (rules.eot_token < 0)
        starts->push_back(begin);
    else
        scan(begin, end, rules, starts, stop);
}

}  // namespace ingot
