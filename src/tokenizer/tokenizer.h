// Text to tokens and back. Two kinds: bytes (a token is a byte), and byte-level BPE as a Hugging Face tokenizer.json
// describes it (data/README.md says what of such a file is read).
//
// encode() gives the tokens that HF tokenizers gives for the same file with add_special_tokens=False: a post-processor,
// which puts a token before or after whole inputs of a finished model, is not applied to text that a model is trained
// on. Added tokens that stand in the text are found, special or not, as HF finds them.
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
    // Any bytes. Byte-level BPE reads UTF-8; what is no UTF-8 it sees as Python's decode(errors="replace") would:
    // U+FFFD in place of each maximal part of a broken character (Unicode 15, section 3.9, U+FFFD substitution). Not
    // const: it keeps a cache of words, so two threads need two tokenizers.
    virtual std::vector<int32_t> encode(std::string_view text) = 0;
    // The bytes that a token stands for, perhaps a part of a character: put them through a TextStream. Empty for ids
    // that have no text, beyond the vocabulary among them.
    virtual std::string_view bytes_of(int32_t token) const = 0;
    // A special token (<|endoftext|>) stands for no text of a document, so it counts no bytes.
    virtual bool is_special(int32_t token) const = 0;
    // The largest id + 1, added tokens included: what model.vocab_size must be at least.
    virtual int64_t vocab_size() const = 0;
    // The bytes of its tokenizer.json, for checkpoints; empty for bytes.
    virtual const std::string& source() const = 0;
    // "bytes", or "byte-level BPE, 50257 tokens".
    virtual std::string describe() const = 0;
};

constexpr const char* kBytesTokenizer = "bytes";
// Ids 0 to 255 are bytes.
constexpr int32_t kByteTokens = 256;

std::unique_ptr<Tokenizer> bytes_tokenizer();

// A tokenizer.json from its bytes. `name` names it in errors. Throws UserError naming the field that is not supported.
std::unique_ptr<Tokenizer> parse_tokenizer(std::string source, const std::string& name);

// "bytes", or the path of a tokenizer.json. Throws UserError.
std::unique_ptr<Tokenizer> open_tokenizer(const std::string& name);

// Those of models with a quarter of a million tokens have 35 MB. A checkpoint has one checksum for 64 MiB of a file.
constexpr size_t kMaxTokenizerBytes = size_t{64} << 20;

// The bytes of a tokenizer.json. Throws UserError if there is no such file, or if it is larger than any tokenizer.
std::string read_tokenizer_file(const std::string& path);

}  // namespace ingot
