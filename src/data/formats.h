// Parses the headers of token files: llm.c's shards, Megatron's .bin/.idx, raw ids. data/README.md has the byte
// layouts. All functions here are pure functions of bytes and sizes, so that thousands of damaged files can be tested.
//
// All throw UserError with one line that names `path`, the fault and a remedy. None reads outside its span.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "src/config/config.h"

namespace ingot {

enum class TokenType { u8, u16, u32, i32, i64 };

int64_t bytes_of(TokenType type);
const char* name_of(TokenType type);

// The place of the tokens in a file: `count` of them from byte `offset` on, without gaps.
struct TokenLayout {
    TokenType type = TokenType::u16;
    int64_t offset = 0, count = 0;
};

constexpr int64_t kLlmcHeaderBytes = 1024;

// Returns whether the file begins with one of llm.c's magic numbers.
bool is_llmc(std::span<const std::byte> beginning);

// Parses an llm.c header: magic 20240520, version 1, uint16; or magic 20240801, version 7, uint32. `beginning` has the
// file's first kLlmcHeaderBytes, or all of a shorter file. The count in the header must agree with `file_bytes`.
TokenLayout parse_llmc(std::span<const std::byte> beginning, int64_t file_bytes, const std::string& path);

// Accepts a file of ids only, in uint16 or uint32. Refuses a valid file of llm.c, whose header would be trained on.
TokenLayout parse_raw(RawType type, std::span<const std::byte> beginning, int64_t file_bytes, const std::string& path);

// Megatron's .idx (Megatron-LM, megatron/core/datasets/indexed_dataset.py) has a header of 34 bytes, the length of
// each sequence (int32), its place in the .bin in bytes (int64), and the document index (int64): the number of the
// first sequence of each document, and at the end the number of sequences. Sequences must follow one another in the
// .bin without gaps, as Megatron's builder writes them. Each part of the arrays is checked when it is read.
class MegatronIndex {
  public:
    // `index` is the whole .idx and must outlive this. Checks header, sizes and both ends of each array.
    MegatronIndex(std::span<const std::byte> index, int64_t bin_bytes, const std::string& path);

    const TokenLayout& layout() const { return layout_; }
    int64_t num_documents() const { return num_documents_; }
    // Returns the first token of document `d`, in [0, tokens]; for d = num_documents(), the number of tokens. Throws
    // UserError if the index contradicts itself there. An empty document begins where the next one does.
    int64_t first_token(int64_t d) const;
    // Bisects for the first document that begins at or after `token`. If the index does not ascend, it returns any
    // document.
    int64_t first_document_from(int64_t token) const;
    // Throws UserError if the sequences of documents [first, last) do not follow one another.
    void check_documents(int64_t first, int64_t last) const;

  private:
    template <typename T>
    T at(int64_t offset, int64_t i) const;
    int64_t first_sequence(int64_t d) const;
    int64_t sequence_token(int64_t s) const;

    std::span<const std::byte> index_;
    std::string path_;
    TokenLayout layout_;
    int64_t num_sequences_ = 0, num_documents_ = 0;
    int64_t lengths_ = 0, pointers_ = 0, documents_ = 0;  // byte offsets of the arrays
};

}  // namespace ingot
