#include "src/data/corpus.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <set>

#include "kernels/core/check.h"
#include "src/base/progress.h"
#include "src/base/signals.h"
#include "src/base/text.h"

namespace ingot {

namespace {

// Returns the files that match a pattern. A path that exists is taken as it is, even with brackets in its name.
std::vector<std::string> files_of(const std::string& pattern, const std::string& key) {
    std::error_code ignored;
    if (std::filesystem::exists(pattern, ignored)) return {pattern};
    std::vector<std::string> paths = expand_glob(pattern);
    const bool is_glob = pattern.find_first_of("*?[") != std::string::npos;
    REQUIRE(!paths.empty(), key, ": ", is_glob ? "no file matches " : "there is no file ", pattern,
            ": check the path, or make shards with scripts/prepare.py");
    return paths;
}

// Shortens a count that is too long to read: "31.5M", "10.3B".
std::string short_tokens(int64_t number) {
    if (number < 1'000'000) return with_commas(number);
    char text[32];
    const bool is_small = number < 999'950'000;
    std::snprintf(text, sizeof text, "%.1f%c", static_cast<double>(number) / (is_small ? 1e6 : 1e9),
                  is_small ? 'M' : 'B');
    return text;
}

}  // namespace

Corpus::Corpus(const std::vector<DataEntry>& entries, const std::string& key, const CorpusOptions& options)
    : key_(key), options_(options) {
    CHECK(options.vocab_size > 0 && options.vocab_size <= INT32_MAX, "vocab_size is ", options.vocab_size);
    CHECK(options.eot_token >= -1 && options.eot_token < options.vocab_size, "eot_token is ", options.eot_token);
    REQUIRE(!entries.empty(), key, " names no file: add a path or a glob");
    std::set<std::string> taken;
    for (const DataEntry& entry : entries) open_entry(entry, &taken);
    rules_ = {.vocab_size = options.vocab_size, .eot_token = options.eot_token, .eot_side = options.eot_side};
    if (rules_.eot_side == EotSide::automatic)
        rules_.eot_side = is_eot(shards_[0].token(0)) ? EotSide::start : EotSide::end;
    shard_starts_ = {0};
    for (const Shard& shard : shards_) shard_starts_.push_back(shard_starts_.back() + shard.num_tokens());
    cut();

    indexes_.resize(shards_.size());
    for (size_t s = 0; s < shards_.size(); ++s) {
        const IndexKey index = index_key(shards_[s], rules_);
        if (shards_[s].num_tokens() >= options_.smallest_index)
            indexes_[s] = read_index(shards_[s], index, cuts_[s], options_.run);
        // An index with a larger id was made for a larger vocabulary. Reading the shard again finds the place of the
        // id.
        if (indexes_[s] && indexes_[s]->largest_id() >= rules_.vocab_size) indexes_[s] = nullptr;
    }
    if (num_tokens() > kGroupSegments * options_.segment_tokens) return;
    keeps_in_memory_ = true;
    Progress progress("reading the tokens of " + key_, num_tokens(), "tokens");
    const auto advance = [&](int64_t tokens) {
        progress.advance(tokens);
        if (stop_signal() != 0) throw Stopped{};
    };
    for (int64_t s = 0; s < num_shards(); ++s) read_shard(s, {}, advance);
    progress.finish();
}

void Corpus::open_entry(const DataEntry& entry, std::set<std::string>* taken) {
    const std::vector<std::string> files = files_of(entry.path, key_);
    std::vector<std::string> masks(files.size());
    if (!entry.mask.empty()) {
        masks = files_of(entry.mask, key_);
        REQUIRE(masks.size() == files.size(), key_, ": ", entry.path, " is ",
                counted(static_cast<int64_t>(files.size()), "file"), ", but its mask ", entry.mask, " is ",
                masks.size(), ": give one mask for each");
    }
    for (size_t i = 0; i < files.size(); ++i) {
        Shard shard(files[i], entry, masks[i]);
        if (taken->insert(shard.real_path()).second) shards_.push_back(std::move(shard));
    }
}

void Corpus::cut() {
    for (int64_t s = 0; s < num_shards(); ++s) {
        const int64_t first = shard_starts_[static_cast<size_t>(s)];
        first_segments_.push_back(static_cast<int64_t>(segments_.size()));
        const std::vector<int64_t>& cuts =
            cuts_.emplace_back(shards_[static_cast<size_t>(s)].find_cuts(options_.segment_tokens, rules_));
        for (size_t i = 0; i + 1 < cuts.size(); ++i)
            segments_.push_back({.begin = first + cuts[i], .end = first + cuts[i + 1], .shard = s});
    }
}

std::shared_ptr<const DocumentIndex> Corpus::index_of(int64_t shard) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return indexes_[static_cast<size_t>(shard)];
}

bool Corpus::is_read() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::all_of(indexes_.begin(), indexes_.end(), [](const auto& index) { return index != nullptr; });
}

int64_t Corpus::num_documents() const {
    int64_t count = 0;
    for (int64_t s = 0; s < num_shards(); ++s) {
        const Shard& shard = shards_[static_cast<size_t>(s)];
        const auto index = index_of(s);
        CHECK(index != nullptr, shard.path(), " was not read yet");
        if (shard.has_own_index()) {
            std::vector<int64_t> starts;
            for (size_t i = 0; i + 1 < cuts_[static_cast<size_t>(s)].size(); ++i)
                append_documents(first_segments_[static_cast<size_t>(s)] + static_cast<int64_t>(i), &starts);
            count += static_cast<int64_t>(starts.size());
        } else {
            count += index->num_documents();
        }
    }
    return count;
}

Fingerprint Corpus::fingerprint() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!fingerprint_) {
        std::vector<std::string> files;
        for (const Shard& shard : shards_) files.insert(files.end(), shard.files().begin(), shard.files().end());
        fingerprint_ =
            fingerprint_of(files, join(rules_.eot_token, rules_.eot_side == EotSide::start ? " opens" : " closes"));
    }
    return *fingerprint_;
}

std::string Corpus::describe() const {
    const char* const opens_or_closes = eot_side() == EotSide::start ? "EOT opens documents" : "EOT closes documents";
    const int64_t num_indexed =
        std::count_if(shards_.begin(), shards_.end(), [](const Shard& shard) { return shard.has_own_index(); });
    std::string boundaries = "each shard is one document";
    if (num_indexed > 0)
        boundaries = num_indexed == num_shards() ? "documents as their index has them"
                                                 : join("documents as the index has them, where there is one");
    else if (rules_.eot_token >= 0)
        boundaries = opens_or_closes;
    const std::string files = join(counted(num_shards(), "shard"), ", ", short_tokens(num_tokens()), " tokens, ");
    if (!is_read())
        return join(files, counted(static_cast<int64_t>(segments_.size()), "segment"), ", documents not counted yet, ",
                    boundaries);
    int64_t num_eots = 0;
    for (int64_t s = 0; s < num_shards(); ++s) num_eots += index_of(s)->num_eots();
    if (num_indexed == 0 && rules_.eot_token >= 0 && num_eots == 0)
        boundaries = join("EOT ", rules_.eot_token, " does not occur: each shard is one document");
    return join(files, counted(num_documents(), "document"), ", ", boundaries);
}

void Corpus::append_documents(int64_t segment, std::vector<int64_t>* starts, const std::stop_token& stop) const {
    const Segment& piece = segments_[static_cast<size_t>(segment)];
    const size_t s = static_cast<size_t>(piece.shard), old_size = starts->size();
    const int64_t first = shard_starts_[s];
    const auto index = index_of(piece.shard);
    const bool is_known = index != nullptr && !shards_[s].has_own_index();
    if (!is_known || !index->append_starts(segment - first_segments_[s], starts)) {
        if (is_known) {
            std::fprintf(stderr, "note: %s is damaged: the documents are looked for again\n",
                         printable_line(index->place).c_str());
            std::error_code ignored;
            std::filesystem::remove(index->place, ignored);  // the next run makes a new one
        }
        shards_[s].find_documents(piece.begin - first, piece.end - first, rules_, starts, stop);
    }
    for (size_t i = old_size; i < starts->size(); ++i) (*starts)[i] += first;
}

bool Corpus::has_target(bool mask_documents) const {
    const auto num_segments = static_cast<int64_t>(segments_.size());
    const int64_t looked_at = std::min(num_segments, kGroupSegments);
    std::vector<int64_t> borders;
    for (int64_t s = 0; s < looked_at; ++s) {
        borders.clear();
        append_documents(s, &borders);
        borders.push_back(segments_[static_cast<size_t>(s)].end);
        for (size_t d = 0; d + 1 < borders.size(); ++d) {
            const Place at = place(borders[d]);
            // rows.h says when a document's first token is a target.
            const bool first_counts =
                !mask_documents || (eot_side() == EotSide::start && is_eot(at.shard->token(at.token)));
            const int64_t begin = first_counts ? 0 : 1, length = borders[d + 1] - borders[d];
            if (at.shard->any_target(at.token + begin, length - begin)) return true;
        }
    }
    return looked_at < num_segments;
}

void Corpus::read_shard(int64_t shard, const std::stop_token& stop,
                        const std::function<void(int64_t)>& progress) const {
    const size_t s = static_cast<size_t>(shard);
    if (index_of(shard) != nullptr) {
        progress(shards_[s].num_tokens());
        return;
    }
    const auto index = make_index(shards_[s], rules_, cuts_[s], options_.run, options_.smallest_index, keeps_in_memory_,
                                  stop, progress);
    const std::lock_guard<std::mutex> lock(mutex_);
    indexes_[s] = index;
}

Corpus::Place Corpus::place(int64_t token) const {
    const size_t s = static_cast<size_t>(std::upper_bound(shard_starts_.begin(), shard_starts_.end(), token) -
                                         shard_starts_.begin() - 1);
    const int64_t begin = shard_starts_[s];
    return {.shard = &shards_[s], .token = token - begin, .rest = shard_starts_[s + 1] - token};
}

void Corpus::refuse_ids(int64_t begin, int64_t count) const {
    for (int64_t end = begin + count; begin < end;) {
        const Place at = place(begin);
        const int64_t here = std::min(end - begin, at.rest);
        at.shard->check_ids(at.token, at.token + here, rules_);
        begin += here;
    }
}

std::vector<std::string> shared_files(const Corpus& a, const Corpus& b) {
    std::set<std::string> in_b;
    for (const Shard& shard : b.shards_) in_b.insert(shard.real_path());
    std::vector<std::string> shared;
    for (const Shard& shard : a.shards_)
        if (in_b.count(shard.real_path()) == 1) shared.push_back(shard.path());
    return shared;
}

}  // namespace ingot
