// Converts text to tokens and back. There are two kinds: bytes (a token is a byte), and byte-level BPE from a Hugging
// Face tokenizer.json (data/README.md says which parts of such a file are supported).
//
// encode() returns the tokens that HF tokenizers returns for the same file with add_special_tokens=False: a
// post-processor, which adds tokens around whole inputs of a finished model, is not applied to training text. Added
// tokens within the text are found, special or not, as HF finds them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace ingot {

class Tokenizer {
  public:
    virtual ~Tokenizer() = default;
    // Takes any bytes. Byte-level BPE reads UTF-8 and, like Python's decode(errors="replace"), replaces each maximal
    // part of a broken character by U+FFFD (Unicode 15, section 3.9). It is not const because it caches words: two
    // threads need two tokenizers.
    virtual std::vector<int32_t> encode(std::string_view text) = 0;
    // Returns the bytes of a token, which may be a part of a character: put them through a TextStream. Returns "" for
    // ids without text, also beyond the vocabulary.
    virtual std::string_view bytes_of(int32_t token) const = 0;
    // Returns whether the token is special (<|endoftext|>). Such a token is no text of a document and counts no bytes.
    virtual bool is_special(int32_t token) const = 0;
    // Returns the largest id + 1, including added tokens; model.vocab_size must be at least that.
    virtual int64_t vocab_size() const = 0;
    // Returns the bytes of the tokenizer.json, for checkpoints; empty for bytes.
    virtual const std::string& source() const = 0;
    // Returns "bytes", or "byte-level BPE, 50257 tokens".
    virtual std::string describe() const = 0;
};

constexpr const char* kBytesTokenizer = "bytes";
// Ids 0 to 255 are the bytes.
constexpr int32_t kByteTokens = 256;

std::unique_ptr<Tokenizer> bytes_tokenizer();

// Parses the bytes of a tokenizer.json. Errors call it `name`. Throws UserError naming the field that is not
// supported.
std::unique_ptr<Tokenizer> parse_tokenizer(std::string source, const std::string& name);

// Opens "bytes", or the tokenizer.json at a path. Throws UserError.
std::unique_ptr<Tokenizer> open_tokenizer(const std::string& name);

// Files of models with a quarter of a million tokens have 35 MB. A checkpoint has one checksum for 64 MiB of a file.
constexpr size_t kMaxTokenizerBytes = size_t{64} << 20;

// Returns the bytes of a tokenizer.json. Throws UserError if the file is missing or larger than any tokenizer.
std::string read_tokenizer_file(const std::string& path);

}  // namespace ingot
