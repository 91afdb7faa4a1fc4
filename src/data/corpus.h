// A dataset consists of the token files of one or several entries of data.train, with their segments and documents.
// data/README.md describes it for users.
//
// Opening a corpus reads headers, sizes and one place per segment, so that it takes about the same time at any size.
// Facts that need a full reading (documents, the largest id) are found segment by segment when they are needed, and
// kept in document indexes (document_index.h).
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

#include "src/config/config.h"
#include "src/data/document_index.h"
#include "src/data/fingerprint.h"
#include "src/data/shard.h"

namespace ingot {

struct CorpusOptions {
    int64_t vocab_size = 0;
    int64_t eot_token = -1;  // -1: a shard without its own index is one document
    EotSide eot_side = EotSide::automatic;
    const Folder* run =
        nullptr;  // where document indexes go that cannot be beside their shard; must outlive the corpus
    int64_t segment_tokens = int64_t{1} << 24;  // approximate length of a segment
    int64_t smallest_index = int64_t{1} << 20;  // a smaller shard's index is not written to a file
};

// A run of whole documents of a shard; never empty. Tokens are numbered through all shards of the corpus.
struct Segment {
    int64_t begin, end, shard;
};

// Holds the shards in the order of the entries (a glob's matches are sorted by name). Const members are thread-safe.
class Corpus {
  public:
    // Messages call the entries by their config key, `key`. Throws UserError naming the file, the fault and a remedy.
    // A corpus of at most kGroupSegments * segment_tokens tokens is read at once: its documents are found and its ids
    // checked; throws Stopped if a signal asks to stop meanwhile.
    Corpus(const std::vector<DataEntry>& entries, const std::string& key, const CorpusOptions& options);

    int64_t num_tokens() const { return shard_starts_.back(); }
    int64_t num_shards() const { return static_cast<int64_t>(shards_.size()); }
    const std::vector<Segment>& segments() const { return segments_; }
    // Never automatic; `end` if there is no EOT.
    EotSide eot_side() const { return rules_.eot_side; }
    const std::string& key() const { return key_; }
    // Returns whether every shard's index is known, which means that every token was read once, now or by an earlier
    // run.
    bool is_read() const;
    int64_t num_documents() const;  // requires is_read()
    // Identifies all files, and how documents are found in them, as they were at the first call.
    Fingerprint fingerprint() const;
    // Returns "2 shards, 31.5M tokens, 1,762 documents, EOT closes documents", for the log.
    std::string describe() const;

    // Appends the starts of the segment's documents in ascending order. Reads the segment if no index is known.
    void append_documents(int64_t segment, std::vector<int64_t>* starts, const std::stop_token& stop = {}) const;
    // Returns whether any token is a target: its mask, if any, does not exclude it, and with masked documents another
    // token of its document comes before it. Reads up to the first target, and at most kGroupSegments segments: a
    // longer corpus without a target there is taken to have one later.
    bool has_target(bool mask_documents) const;
    // Reads a whole shard if its index is not known: checks every id, and keeps the index. Calls `progress` with the
    // number of tokens that were read.
    void read_shard(
        int64_t shard, const std::stop_token& stop,
        const std::function<void(int64_t)>& progress = [](int64_t) {}) const;

    // The place of a token.
    struct Place {
        const Shard* shard;
        int64_t token;  // within the shard
        int64_t rest;   // tokens of the shard from there on
    };
    Place place(int64_t token) const;
    bool is_eot(int32_t id) const { return rules_.eot_token >= 0 && id == rules_.eot_token; }
    int64_t vocab_size() const { return rules_.vocab_size; }
    // Throws UserError for the first of the tokens whose id is not below vocab_size.
    void refuse_ids(int64_t begin, int64_t count) const;

  private:
    void open_entry(const DataEntry& entry, std::set<std::string>* taken);
    void cut();
    std::shared_ptr<const DocumentIndex> index_of(int64_t shard) const;
    friend std::vector<std::string> shared_files(const Corpus& a, const Corpus& b);

    std::string key_;
    CorpusOptions options_;
    TokenRules rules_;
    std::vector<Shard> shards_;
    std::vector<int64_t> shard_starts_;       // first token of each shard, then the number of tokens
    std::vector<std::vector<int64_t>> cuts_;  // by shard: the starts of its segments, and its end
    std::vector<int64_t> first_segments_;     // by shard
    std::vector<Segment> segments_;
    bool keeps_in_memory_ = false;
    mutable std::mutex mutex_;  // guards the members below
    mutable std::vector<std::shared_ptr<const DocumentIndex>> indexes_;
    mutable std::optional<Fingerprint> fingerprint_;
};

// The number of segments that are shuffled together (order.h). It is a power of two, and large enough that neighbours
// get far apart: a group is about a billion tokens.
constexpr int64_t kGroupSegments = 64;

// Returns the files, as `a` names them, that both corpora read (links are followed): a validation loss on training
// text means little.
std::vector<std::string> shared_files(const Corpus& a, const Corpus& b);

}  // namespace ingot
