// A dataset: the token files of one or several entries of data.train, their segments and documents. data/README.md has
// the same for users.
//
// Opening looks at headers and sizes and at one place for each segment, so that it takes the same time for a corpus of
// any size. What a full reading finds (documents, the largest id) is found segment by segment when it is needed, and
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
    int64_t eot_token = -1;  // -1: without an index of its own, every shard is one document
    EotSide eot_side = EotSide::automatic;
    const Folder* run = nullptr;  // has the document indexes that cannot stand beside their shard; outlives the corpus
    int64_t segment_tokens = int64_t{1} << 24;  // what a segment is about as long as
    int64_t smallest_index = int64_t{1} << 20;  // tokens of the smallest shard whose index is kept in a file
};

// Documents that lie side by side in a shard. Never empty. Tokens are numbered through all shards of the corpus.
struct Segment {
    int64_t begin, end, shard;
};

// Shards in the order of the entries (a glob's matches sorted by name). Any thread may call what is const.
class Corpus {
  public:
    // `key` is the config key that the entries stand at, for messages. Throws UserError naming the file, what is wrong
    // and what to do. A corpus of at most kGroupSegments * segment_tokens tokens is read at once: documents are known
    // and ids checked; throws Stopped if a signal asked to stop meanwhile.
    Corpus(const std::vector<DataEntry>& entries, const std::string& key, const CorpusOptions& options);

    int64_t num_tokens() const { return shard_starts_.back(); }
    int64_t num_shards() const { return static_cast<int64_t>(shards_.size()); }
    const std::vector<Segment>& segments() const { return segments_; }
    // Never automatic; `end` where there is no EOT.
    EotSide eot_side() const { return rules_.eot_side; }
    const std::string& key() const { return key_; }
    // Whether every shard's index is known: then everything was read once, now or by an earlier run.
    bool is_read() const;
    int64_t num_documents() const;  // if is_read()
    // Of all files and of how documents are found in them, as they were when it was first asked for.
    Fingerprint fingerprint() const;
    // "2 shards, 31.5M tokens, 1,762 documents, EOT closes documents", for the log.
    std::string describe() const;

    // The starts of the segment's documents, appended in ascending order. Reads the segment where no index is known.
    void append_documents(int64_t segment, std::vector<int64_t>* starts, const std::stop_token& stop = {}) const;
    // Whether any token is a target: one that its mask, if there is one, does not rule out and that, with masked
    // documents, has another before it in its document. Reads no further than the first one, and at most
    // kGroupSegments segments: of what is longer, the rest is taken to have one.
    bool has_target(bool mask_documents) const;
    // Reads a whole shard if its index is not known: checks every id, keeps the index. `progress` is told how many
    // tokens were read.
    void read_shard(
        int64_t shard, const std::stop_token& stop,
        const std::function<void(int64_t)>& progress = [](int64_t) {}) const;

    // Where a token stands.
    struct Place {
        const Shard* shard;
        int64_t token;  // of the shard
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
    std::vector<std::vector<int64_t>> cuts_;  // of each shard: where its segments begin, and its end
    std::vector<int64_t> first_segments_;     // of each shard
    std::vector<Segment> segments_;
    bool keeps_in_memory_ = false;
    mutable std::mutex mutex_;  // guards what follows
    mutable std::vector<std::shared_ptr<const DocumentIndex>> indexes_;
    mutable std::optional<Fingerprint> fingerprint_;
};

// How many segments are shuffled together (order.h). A power of two, and enough that neighbours are far apart: a group
// is about a billion tokens.
constexpr int64_t kGroupSegments = 64;

// The files, as `a` names them, that both read (links followed): a validation loss on training text means little.
std::vector<std::string> shared_files(const Corpus& a, const Corpus& b);

}  // namespace ingot
