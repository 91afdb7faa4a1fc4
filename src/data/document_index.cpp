#include "src/data/document_index.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <random>

#include "kernels/core/check.h"
#include "kernels/core/rng.h"
#include "src/base/checksum.h"
#include "src/base/text.h"

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

IndexKey index_key(const Shard& shard, const TokenRules& rules) {
    return {.stamp = shard.stamp(),
            .num_tokens = shard.num_tokens(),
            .eot_token = shard.has_own_index() ? -1 : rules.eot_token,
            .eot_side = rules.eot_side == EotSide::start ? 1 : 0,
            .has_mask = shard.has_mask() ? 1 : 0};
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
    // The footer is copied, since the file could change between verifying and reading it.
    const std::vector<std::byte> copy(bytes.begin() + footer, bytes.begin() + footer + footer_bytes);
    const std::string hash = sha256(copy.data(), copy.size());
    if (std::memcmp(bytes.data() + size - kTailBytes, hash.data(), kHashBytes) != 0) return std::nullopt;
    FooterHead head;
    std::memcpy(static_cast<void*>(&head), copy.data(), sizeof head);

    *why = "it belongs to another state of the file, or another program wrote it";
    const int64_t num_segments = static_cast<int64_t>(cuts.size()) - 1;
    if (head.version != FooterHead{}.version || head.key != key || head.num_segments != num_segments)
        return std::nullopt;
    if (footer_bytes != static_cast<int64_t>(sizeof head) + num_segments * static_cast<int64_t>(sizeof(SegmentEntry)))
        return std::nullopt;
    DocumentIndex index;
    index.bytes_ = bytes;
    index.owner_ = std::move(owner);
    index.num_eots_ = head.num_eots;
    index.entries_.resize(static_cast<size_t>(num_segments));
    std::memcpy(static_cast<void*>(index.entries_.data()), copy.data() + sizeof head, copy.size() - sizeof head);
    int64_t offset = kMagicBytes;
    for (int64_t s = 0; s < num_segments; ++s) {
        const SegmentEntry& entry = index.entries_[static_cast<size_t>(s)];
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

bool DocumentIndex::append_starts(int64_t segment, std::vector<int64_t>* starts) const {
    CHECK(segment >= 0 && segment < static_cast<int64_t>(entries_.size()), "segment ", segment, " of ",
          entries_.size());
    const SegmentEntry& entry = entries_[static_cast<size_t>(segment)];
    const size_t bytes = static_cast<size_t>(entry.num_starts) * 8, old_size = starts->size();
    if (bytes == 0) return false;
    starts->resize(old_size + static_cast<size_t>(entry.num_starts));
    const auto first = starts->begin() + static_cast<int64_t>(old_size);
    std::memcpy(&*first, bytes_.data() + block_offsets_[static_cast<size_t>(segment)], bytes);
    const bool is_whole = std::memcmp(entry.sha256, sha256(&*first, bytes).data(), kHashBytes) == 0;
    // The checksum does not prove this: another program could have written the file.
    const bool is_ascending = std::adjacent_find(first, starts->end(), std::greater_equal<int64_t>()) == starts->end();
    if (is_whole && is_ascending && *first == entry.begin && starts->back() < entry.end) return true;
    starts->resize(old_size);
    return false;
}

int64_t DocumentIndex::num_documents() const {
    int64_t count = 0;
    for (const SegmentEntry& entry : entries_) count += entry.num_starts;
    return count;
}

int64_t DocumentIndex::num_eots() const {
    return num_eots_;
}

int64_t DocumentIndex::largest_id() const {
    int64_t largest = 0;
    for (const SegmentEntry& entry : entries_) largest = std::max(largest, entry.largest_id);
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

// A possible place of an index: a name in a folder.
struct Place {
    Folder folder;
    std::string name;
    std::string path() const { return folder.path_of(name); }
};

// Returns the places of a shard's index that can be opened: beside the shard, and in the run's folder `index`, under a
// name that is unique to the shard. Creates that folder if `makes` is set.
std::vector<Place> places_of(const Shard& shard, const Folder* run, bool makes) {
    constexpr const char* kFolder = "index";
    const std::filesystem::path path(shard.path());
    const std::string name = path.filename().string();
    std::vector<Place> places;
    try {
        places.push_back({Folder(path.has_parent_path() ? path.parent_path().string() : "."), name + ".index"});
    } catch (const Error&) {}
    try {
        if (run == nullptr || (!makes && !run->has(kFolder))) return places;
        char hash[17];
        std::snprintf(hash, sizeof hash, "%016lx", static_cast<unsigned long>(stream_of(shard.real_path().c_str())));
        places.push_back({run->folder(kFolder), name + "-" + hash + ".index"});
    } catch (const Error& fault) {
        std::fprintf(stderr, "note: no document index is kept in the run's folder: %s\n", fault.what());
    }
    return places;
}

// Returns null if there is no valid index, with the reason in `why`.
std::shared_ptr<const DocumentIndex> index_at(const Place& place, const IndexKey& key, const std::vector<int64_t>& cuts,
                                              std::string* why) {
    const Descriptor descriptor = place.folder.open(place.name, O_RDONLY);
    *why = errno == EINVAL ? "it is no regular file" : std::strerror(errno);
    if (descriptor.get() < 0) return nullptr;
    const MappedFile file = map_file(descriptor, place.path());
    std::optional<DocumentIndex> index = DocumentIndex::parse(
        {reinterpret_cast<const std::byte*>(file.data.get()), file.size}, file.data, key, cuts, why);
    if (!index) return nullptr;
    index->place = place.path();
    return std::make_shared<const DocumentIndex>(std::move(*index));
}

// Returns whether an index may be written here: the name is free, or belongs to an index or to the truncated start of
// one.
bool is_free(const Place& place) {
    if (!place.folder.has(place.name)) return true;
    char magic[sizeof kMagic] = {};
    const Descriptor file = place.folder.open(place.name, O_RDONLY);
    const ssize_t taken = file.get() < 0 ? -1 : pread(file.get(), magic, sizeof magic, 0);
    return taken >= 0 && std::memcmp(magic, kMagic, static_cast<size_t>(taken)) == 0;
}

}  // namespace

std::shared_ptr<const DocumentIndex> read_index(const Shard& shard, const IndexKey& key,
                                                const std::vector<int64_t>& cuts, const Folder* run) {
    for (const Place& place : places_of(shard, run, false)) {
        std::string why;
        try {
            if (!place.folder.has(place.name)) continue;
            if (auto index = index_at(place, key, cuts, &why)) return index;
        } catch (const Error& fault) {
            why = fault.what();
        }
        std::fprintf(stderr, "note: %s is not used, since %s: the documents are looked for again\n",
                     printable_line(place.path()).c_str(), printable_line(why).c_str());
    }
    return nullptr;
}

std::shared_ptr<const DocumentIndex> make_index(const Shard& shard, const TokenRules& rules,
                                                const std::vector<int64_t>& cuts, const Folder* run, int64_t smallest,
                                                bool keeps_in_memory, const std::stop_token& stop,
                                                const std::function<void(int64_t)>& progress) {
    const IndexKey key = index_key(shard, rules);
    const bool is_kept = shard.num_tokens() >= smallest;
    std::string why;
    for (const Place& place : is_kept ? places_of(shard, run, true) : std::vector<Place>{}) {
        // Several processes may do this at once: each writes a file of its own, and the last rename wins.
        const std::string temporary = join(place.name, ".tmp-", getpid(), "-", std::random_device()());
        if (faccessat(place.folder.descriptor(), ".", W_OK, 0) != 0) continue;
        const auto clean_up = [&] { unlinkat(place.folder.descriptor(), temporary.c_str(), 0); };
        try {
            why = "another file has this name";
            if (is_free(place)) {
                OutputFile file = place.folder.create(temporary);
                DocumentIndex::build(shard, rules, cuts, stop, progress,
                                     [&](const void* data, size_t bytes) { file.write(data, bytes); });
                file.sync_and_close();
                place.folder.rename(temporary, place.name);
                if (auto index = index_at(place, key, cuts, &why)) return index;
            }
        } catch (const UserError&) {  // the shard is at fault
            clean_up();
            throw;
        } catch (const Stopped&) {
            clean_up();
            throw;
        } catch (const std::exception& fault) {  // the disk is at fault, and training does not need the file
            clean_up();
            why = fault.what();
        }
        std::fprintf(stderr, "note: no document index is kept at %s: %s\n", printable_line(place.path()).c_str(),
                     printable_line(why).c_str());
    }
    if (!keeps_in_memory && is_kept) {
        // The ids must be checked even if the index is not kept.
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
    return std::make_shared<const DocumentIndex>(std::move(*index));
}

}  // namespace ingot
