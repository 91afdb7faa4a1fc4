// Token shards on disk, in the two formats of llm.c, and the documents in them. data/README.md has the byte layout.
#pragma once

#include <string>
#include <vector>

#include "src/config.h"
#include "src/files.h"

namespace ingot {

class Progress;

// A run of tokens that belong together: `begin` counts from the shard's first token. Never empty.
struct Document {
    int64_t shard, begin, length;
};

// The shards of one split, mapped and checked. Documents and tokens are numbered through all shards, in the order of
// the list (a glob's matches sorted by name). Constant after construction, so any thread may read.
class TokenShards {
  public:
    // `patterns` are paths or globs; `key` is the config key that they stand at, for messages. eot_token -1: every
    // shard is one document. Reads every token once: ids are known to be below vocab_size when this returns. Throws
    // UserError naming the file, what is wrong and what to do.
    TokenShards(const std::vector<std::string>& patterns, const std::string& key, int64_t vocab_size, int64_t eot_token,
                EotSide eot_side);

    int64_t num_tokens() const { return document_starts_.back(); }
    int64_t num_documents() const { return static_cast<int64_t>(document_starts_.size()) - 1; }
    int64_t num_shards() const { return static_cast<int64_t>(shards_.size()); }

    Document document(int64_t index) const;
    int64_t length(int64_t index) const { return document_starts_[index + 1] - document_starts_[index]; }
    // The number of tokens that stand before the document; index num_documents() is the end.
    int64_t first_token(int64_t index) const { return document_starts_[index]; }
    // The document that holds the split's token number `token`, in [0, num_tokens()).
    int64_t document_of(int64_t token) const;

    // Tokens [offset, offset + count) of the document.
    void copy(const Document& document, int64_t offset, int64_t count, int32_t* out) const;
    int32_t token(const Document& document, int64_t offset) const;
    bool begins_with_eot(const Document& document) const { return token(document, 0) == eot_token_; }

    // Never automatic; `end` where there is no EOT.
    EotSide eot_side() const { return eot_side_; }
    const std::string& key() const { return key_; }
    // "2 shards, 31.5M tokens, 1,762 documents, EOT closes documents", for the log.
    std::string describe() const;

  private:
    struct Shard {
        std::string path, real_path;
        MappedFile file;
        int64_t id_bytes;  // 2 or 4
        int64_t num_tokens;
        int64_t first_token;  // of the split
        template <typename Id>
        const Id* ids() const;
    };

    Shard open_shard(const std::string& path) const;
    // Checks the ids and appends the starts of the shard's documents.
    template <typename Id>
    void index(const Shard& shard, int64_t vocab_size, Progress* progress);
    friend std::vector<std::string> shared_files(const TokenShards& a, const TokenShards& b);

    std::string key_;
    int32_t eot_token_;
    EotSide eot_side_;
    bool has_eot_ = false;  // seen in some shard
    std::vector<Shard> shards_;
    std::vector<int64_t>
        document_starts_;  // first token of each document, then the number of tokens: 8 bytes a document
};

// The files, as `a` names them, that both splits read (links followed): a validation loss on training text means
// little.
std::vector<std::string> shared_files(const TokenShards& a, const TokenShards& b);

}  // namespace ingot
