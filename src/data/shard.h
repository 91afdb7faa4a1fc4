// A memory-mapped file of tokens, in any supported format, and its documents, which are found by reading it.
#pragma once

#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "src/base/mapped_file.h"
#include "src/config/config.h"
#include "src/data/formats.h"

namespace ingot {

// Thrown in the middle of long reading when it was asked to stop; nobody reports it.
struct Stopped {};

// The token that separates documents, and the valid ids.
struct TokenRules {
    int64_t vocab_size = 0;
    int64_t eot_token = -1;  // -1: none
    EotSide eot_side = EotSide::end;
};

// Constant after construction, and so thread-safe. Tokens are numbered from 0; documents never cross shards. If the
// file has become shorter since it was opened, every read throws UserError naming it, and its result must not be used.
class Shard {
  public:
    // Takes the format from `entry` (its path is ignored). `mask` is the path of the mask file, or empty. Checks
    // headers and sizes, and reads no token. Throws UserError.
    Shard(const std::string& path, const DataEntry& entry, const std::string& mask);

    const std::string& path() const { return path_; }
    const std::string& real_path() const { return real_path_; }  // with links resolved
    // Returns all files that the rows depend on: the tokens, and Megatron's index and the mask if there are any.
    const std::vector<std::string>& files() const { return files_; }
    int64_t num_tokens() const { return layout_.count; }
    TokenType type() const { return layout_.type; }
    bool has_own_index() const { return megatron_.has_value(); }  // documents come from Megatron's .idx, not from EOT

    // Copies tokens [begin, begin + count). An id that int32 cannot hold becomes one that no vocabulary has.
    void copy(int64_t begin, int64_t count, int32_t* out) const;
    int32_t token(int64_t at) const;
    // The mask has a byte for each token; 0 excludes it as a target.
    bool has_mask() const { return mask_.data != nullptr; }
    // Sets the targets to -1 that the mask excludes. `targets` are tokens [begin, begin + count).
    void apply_mask(int64_t begin, int64_t count, int32_t* targets) const;
    // Returns whether the mask leaves any of tokens [begin, begin + count) as a target.
    bool any_target(int64_t begin, int64_t count) const;

    // Returns the places to cut at: the first document start at or after each multiple of `every`, if there is one
    // within kProbeTokens; otherwise the piece is longer. They ascend from 0 to num_tokens().
    static constexpr int64_t kProbeTokens = 4096;
    std::vector<int64_t> find_cuts(int64_t every, const TokenRules& rules) const;

    struct Scan {
        int64_t largest_id = 0;  // -1: no ids were read
        int64_t num_eots = 0;
    };
    // Reads tokens [begin, end), which must be whole documents, and appends the starts of the documents. Throws
    // UserError if an id is not below vocab_size, or a mask byte is neither 0 nor 1.
    Scan scan(int64_t begin, int64_t end, const TokenRules& rules, std::vector<int64_t>* starts,
              const std::stop_token& stop) const;
    // Throws UserError if an id of tokens [begin, end) is not below vocab_size.
    void check_ids(int64_t begin, int64_t end, const TokenRules& rules) const;
    // Finds only the starts, in the cheapest way: the ids of a shard with its own index are not read.
    void find_documents(int64_t begin, int64_t end, const TokenRules& rules, std::vector<int64_t>* starts,
                        const std::stop_token& stop) const;

    // The sizes and times of the files that a document index was made from; it is valid while they are the same.
    struct Stamp {
        int64_t bytes = 0, mtime_ns = 0, index_bytes = 0, index_mtime_ns = 0;
        bool operator==(const Stamp&) const = default;
    };
    const Stamp& stamp() const { return stamp_; }

  private:
    template <typename Function>
    auto with_ids(Function&& function) const;
    template <typename Id>
    Scan scan_ids(const Id* ids, int64_t begin, int64_t end, const TokenRules& rules, std::vector<int64_t>* starts,
                  const std::stop_token& stop) const;
    [[noreturn]] void refuse_id(int64_t begin, int64_t end, const TokenRules& rules) const;
    void own_documents(int64_t begin, int64_t end, std::vector<int64_t>* starts) const;
    void require_intact_ids(int64_t end) const;

    std::string path_, real_path_;
    std::vector<std::string> files_;
    MappedFile file_, index_, mask_;
    TokenLayout layout_;
    std::optional<MegatronIndex> megatron_;
    Stamp stamp_;
};

}  // namespace ingot
