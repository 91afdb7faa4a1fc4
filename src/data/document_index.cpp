#include "src/data/document_index.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <random>

#include "kernels/core/check.h"
#include "kernels/core/rng.h"
#include "src/checksum.h"

namespace ingot {

namespace {

constexpr char kMagic[8] = {'I', 'N', 'G', 'O', 'T', 'I', 'D', 'X'};
constexpr int64_t kMagicBytes = sizeof kMagic, kHashBytes = 64, kTailBytes = kHashBytes + 8;

}  // namespace

struct DocumentIndex::FooterHead {
    int64_t version = 1;
    IndexKey key;
    int64_t num_eots = 0, num_segments = 0;
};

struct DocumentIndex::SegmentEntry {
    int64_t begin = 0, end = 0, largest_id = 0, num_starts = 0;
    char sha256[kHashBytes] = {};
};

IndexKey index_key(const Shard& shard, const TokenRules& rules) {
    return {.stamp = shard.stamp(),
            .num_tokens = shard.num_tokens(),
            .eot_token = shard.has_own_index() ? -1 : rules.eot_token,
            .eot_side = rules.eot_side == EotSide::start ? 1 : 0,
            .has_mask = shard.mask(0) != nullptr ? 1 : 0};
}

std::optional<DocumentIndex> DocumentIndex::parse(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                                                  const IndexKey& key, const std::vector<int64_t>& cuts,
                                                  std::string* why) {
    static_assert(std::is_trivially_copyable_v<FooterHead> && std::is_trivially_copyable_v<SegmentEntry>);
    const int64_t size = static_cast<int64_t>(bytes.size());
    *why = "it is damaged";
    if (size < kMagicBytes + static_cast<int64_t>(sizeof(FooterHead)) + kTailBytes) return std::nullopt;
    if (std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0) return std::nullopt;
    int64_t footer_bytes = 0;
    std::memcpy(&footer_bytes, bytes.data() + size - 8, 8);
    if (footer_bytes < static_cast<int64_t>(sizeof(FooterHead)) || footer_bytes > size - kMagicBytes - kTailBytes)
        return std::nullopt;
    const int64_t footer = size - kTailBytes - footer_bytes;
    const std::string hash = sha256(bytes.data() + footer, static_cast<size_t>(footer_bytes));
    if (std::memcmp(bytes.data() + size - kTailBytes, hash.data(), kHashBytes) != 0) return std::nullopt;
    FooterHead head;
    std::memcpy(static_cast<void*>(&head), bytes.data() + footer, sizeof head);

    // From here on the bytes are those that were written.
    *why = "it belongs to another state of the file, or another program wrote it";
    const int64_t num_segments = static_cast<int64_t>(cuts.size()) - 1;
    if (head.version != FooterHead{}.version || head.key != key || head.num_segments != num_segments)
        return std::nullopt;
    if (footer_bytes != static_cast<int64_t>(sizeof head) + num_segments * static_cast<int64_t>(sizeof(SegmentEntry)))
        return std::nullopt;
    DocumentIndex index;
    index.bytes_ = bytes;
    index.owner_ = std::move(owner);
    index.table_ = footer + static_cast<int64_t>(sizeof head);
    index.num_segments_ = num_segments;
    int64_t offset = kMagicBytes;
    for (int64_t s = 0; s < num_segments; ++s) {
        const SegmentEntry entry = index.entry(s);
        if (entry.begin != cuts[static_cast<size_t>(s)] || entry.end != cuts[static_cast<size_t>(s) + 1])
            return std::nullopt;
        if (entry.num_starts < 0 || entry.num_starts > (footer - offset) / 8) return std::nullopt;
        index.block_offsets_.push_back(offset);
        offset += entry.num_starts * 8;
    }
    if (offset != footer) return std::nullopt;
    why->clear();
    return index;
}

DocumentIndex::SegmentEntry DocumentIndex::entry(int64_t segment) const {
    CHECK(segment >= 0 && segment < num_segments_, "segment ", segment, " of ", num_segments_);
    SegmentEntry entry;
    std::memcpy(&entry, bytes_.data() + table_ + segment * static_cast<int64_t>(sizeof entry), sizeof entry);
    return entry;
}

bool DocumentIndex::append_starts(int64_t segment, std::vector<int64_t>* starts) const {
    const SegmentEntry entry = this->entry(segment);
    const std::byte* const block = bytes_.data() + block_offsets_[static_cast<size_t>(segment)];
    const size_t bytes = static_cast<size_t>(entry.num_starts) * 8, old_size = starts->size();
    if (bytes == 0 || std::memcmp(entry.sha256, sha256(block, bytes).data(), kHashBytes) != 0) return false;
    starts->resize(old_size + static_cast<size_t>(entry.num_starts));
    const auto first = starts->begin() + static_cast<int64_t>(old_size);
    std::memcpy(&*first, block, bytes);
    // Another program could have sealed anything.
    const bool is_ascending = std::adjacent_find(first, starts->end(), std::greater_equal<int64_t>()) == starts->end();
    if (is_ascending && *first == entry.begin && starts->back() < entry.end) return true;
    starts->resize(old_size);
    return false;
}

int64_t DocumentIndex::num_documents() const {
    int64_t count = 0;
    for (int64_t s = 0; s < num_segments_; ++s) count += entry(s).num_starts;
    return count;
}

int64_t DocumentIndex::num_eots() const {
    FooterHead head;
    std::memcpy(static_cast<void*>(&head), bytes_.data() + table_ - static_cast<int64_t>(sizeof head), sizeof head);
    return head.num_eots;
}

int64_t DocumentIndex::largest_id() const {
    int64_t largest = 0;
    for (int64_t s = 0; s < num_segments_; ++s) largest = std::max(largest, entry(s).largest_id);
    return largest;
}

void DocumentIndex::build(const Shard& shard, const TokenRules& rules, const std::vector<int64_t>& cuts,
                          const std::stop_token& stop, const std::function<void(int64_t)>& progress,
                          const std::function<void(const void*, size_t)>& write) {
    write(kMagic, sizeof kMagic);
    FooterHead head;
    head.key = index_key(shard, rules);
    std::vector<SegmentEntry> entries;
    std::vector<int64_t> starts;
    for (size_t s = 0; s + 1 < cuts.size(); ++s) {
        starts.clear();
        const Shard::Scan scan = shard.scan(cuts[s], cuts[s + 1], rules, &starts, stop);
        if (shard.has_own_index()) starts.clear();
        head.num_eots += scan.num_eots;
        SegmentEntry& entry = entries.emplace_back();
        entry.begin = cuts[s];
        entry.end = cuts[s + 1];
        entry.largest_id = scan.largest_id;
        entry.num_starts = static_cast<int64_t>(starts.size());
        std::memcpy(entry.sha256, sha256(starts.data(), starts.size() * 8).data(), kHashBytes);
        write(starts.data(), starts.size() * 8);
        progress(entry.end - entry.begin);
    }
    head.num_segments = static_cast<int64_t>(entries.size());
    std::string footer(reinterpret_cast<const char*>(&head), sizeof head);
    footer.append(reinterpret_cast<const char*>(entries.data()), entries.size() * sizeof(SegmentEntry));
    const std::string hash = sha256(footer.data(), footer.size());
    const int64_t footer_bytes = static_cast<int64_t>(footer.size());
    write(footer.data(), footer.size());
    write(hash.data(), hash.size());
    write(&footer_bytes, sizeof footer_bytes);
}

// ---- Files ----

namespace {

// Beside the shard, and in the folder under a name that no other shard has.
std::vector<std::string> places_of(const Shard& shard, const std::string& folder) {
    std::vector<std::string> places = {shard.path() + ".index"};
    if (folder.empty()) return places;
    char hash[17];
    std::snprintf(hash, sizeof hash, "%016lx", static_cast<unsigned long>(stream_of(shard.real_path().c_str())));
    const std::string name = std::filesystem::path(shard.path()).filename().string();
    places.push_back(folder + "/" + name + "-" + hash + ".index");
    return places;
}

std::optional<DocumentIndex> map_index(const std::string& place, const IndexKey& key, const std::vector<int64_t>& cuts,
                                       std::string* why) {
    const MappedFile file = map_file(place);
    return DocumentIndex::parse({reinterpret_cast<const std::byte*>(file.data.get()), file.size}, file.data, key, cuts,
                                why);
}

std::shared_ptr<const DocumentIndex> share(DocumentIndex& index, const std::string& place) {
    index.place = place;
    return std::make_shared<const DocumentIndex>(std::move(index));
}

}  // namespace

std::shared_ptr<const DocumentIndex> read_index(const Shard& shard, const IndexKey& key,
                                                const std::vector<int64_t>& cuts, const std::string& folder) {
    for (const std::string& place : places_of(shard, folder)) {
        std::error_code error;
        if (!std::filesystem::exists(place, error)) continue;
        std::string why;
        try {
            if (std::optional<DocumentIndex> index = map_index(place, key, cuts, &why)) return share(*index, place);
        } catch (const UserError& fault) {
            why = fault.what();
        }
        std::fprintf(stderr, "note: %s is not used, since %s: the documents are looked for again\n", place.c_str(),
                     why.c_str());
    }
    return nullptr;
}

std::shared_ptr<const DocumentIndex> make_index(const Shard& shard, const TokenRules& rules,
                                                const std::vector<int64_t>& cuts, const std::string& folder,
                                                int64_t smallest, bool keeps_in_memory, const std::stop_token& stop,
                                                const std::function<void(int64_t)>& progress) {
    const IndexKey key = index_key(shard, rules);
    const std::vector<std::string> places = places_of(shard, folder);
    std::string why;
    for (size_t i = 0; i < places.size() && shard.num_tokens() >= smallest; ++i) {
        std::error_code error;
        if (i > 0) std::filesystem::create_directories(folder, error);
        // Several processes may do the same: each writes a file of its own, and the last rename stays.
        const std::string temporary = join(places[i], ".tmp-", getpid(), "-", std::random_device()());
        if (access(std::filesystem::absolute(places[i]).parent_path().c_str(), W_OK) != 0) continue;
        try {
            OutputFile file(temporary);
            DocumentIndex::build(shard, rules, cuts, stop, progress,
                                 [&](const void* data, size_t bytes) { file.write(data, bytes); });
            file.sync_and_close();
            std::filesystem::rename(temporary, places[i]);
            if (std::optional<DocumentIndex> index = map_index(places[i], key, cuts, &why))
                return share(*index, places[i]);
        } catch (const UserError&) {  // the shard's fault
            std::filesystem::remove(temporary, error);
            throw;
        } catch (const Stopped&) {
            std::filesystem::remove(temporary, error);
            throw;
        } catch (const std::exception& fault) {  // the disk's: training does not need the file
            std::filesystem::remove(temporary, error);
            why = fault.what();
        }
        std::fprintf(stderr, "note: no document index is kept at %s: %s\n", places[i].c_str(), why.c_str());
    }
    if (!keeps_in_memory && shard.num_tokens() >= smallest) {
        // Its ids are to be checked all the same.
        DocumentIndex::build(shard, rules, cuts, stop, progress, [](const void*, size_t) {});
        return nullptr;
    }
    const auto bytes = std::make_shared<std::vector<std::byte>>();
    DocumentIndex::build(shard, rules, cuts, stop, progress, [&](const void* data, size_t size) {
        const std::byte* const begin = static_cast<const std::byte*>(data);
        bytes->insert(bytes->end(), begin, begin + size);
    });
    std::optional<DocumentIndex> index = DocumentIndex::parse(*bytes, bytes, key, cuts, &why);
    CHECK(index, "the index of ", shard.path(), " cannot be read back: ", why);
    return share(*index, "");
}

}  // namespace ingot
