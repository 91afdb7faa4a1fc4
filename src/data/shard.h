// One file of tokens, mapped, in any format that is read; and its documents, found by reading it.
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

// What ends a document, and what an id may be.
struct TokenRules {
    int64_t vocab_size = 0;
    int64_t eot_token = -1;  // -1: none
    EotSide eot_side = EotSide::end;
};

// Constant after construction, so any thread may read. Tokens are numbered from 0; documents never leave a shard. What
// reads throws UserError naming the file that became shorter since it was opened, and then nothing that was read
// counts.
class Shard {
  public:
    // `entry` says the format (its path is not looked at); `mask` is the mask's file, or empty. Checks headers and
    // sizes, reads no token. Throws UserError.
    Shard(const std::string& path, const DataEntry& entry, const std::string& mask);

    const std::string& path() const { return path_; }
    const std::string& real_path() const { return real_path_; }  // links followed
    // All files that the rows depend on: the tokens, Megatron's index and the mask, if there are any.
    const std::vector<std::string>& files() const { return files_; }
    int64_t num_tokens() const { return layout_.count; }
    TokenType type() const { return layout_.type; }
    bool has_own_index() const { return megatron_.has_value(); }  // documents come from Megatron's .idx, not from EOT

    // Tokens [begin, begin + count). An id that int32 does not hold comes out as one that no vocabulary has.
    void copy(int64_t begin, int64_t count, int32_t* out) const;
    int32_t token(int64_t at) const;
    // The mask has a byte for each token, 0: no target.
    bool has_mask() const { return mask_.data != nullptr; }
    // Of the targets that tokens [begin, begin + count) are, those that the mask rules out become -1.
    void apply_mask(int64_t begin, int64_t count, int32_t* targets) const;
    // Whether the mask leaves any of tokens [begin, begin + count) as a target.
    bool any_target(int64_t begin, int64_t count) const;

    // Places to cut at: the first document start at or after each multiple of `every`, if there is one within
    // kProbeTokens; a long document there leaves the piece longer. Ascending, 0 first, num_tokens() last.
    static constexpr int64_t kProbeTokens = 4096;
    std::vector<int64_t> find_cuts(int64_t every, const TokenRules& rules) const;

    struct Scan {
        int64_t largest_id = 0;  // -1: no ids were looked at
        int64_t num_eots = 0;
    };
    // Reads tokens [begin, end), which begin with a document and end with one. Appends the starts of its documents.
    // Throws UserError if an id is not below vocab_size, or a mask byte is neither 0 nor 1.
    Scan scan(int64_t begin, int64_t end, const TokenRules& rules, std::vector<int64_t>* starts,
              const std::stop_token& stop) const;
    // Throws UserError if an id of tokens [begin, end) is not below vocab_size.
    void check_ids(int64_t begin, int64_t end, const TokenRules& rules) const;
    // The starts alone, by the cheapest way there is: the ids of a shard with an index of its own are not looked at.
    void find_documents(int64_t begin, int64_t end, const TokenRules& rules, std::vector<int64_t>* starts,
                        const std::stop_token& stop) const;

    // What a document index of this shard is good for: the sizes and times of the files that it was made from.
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
