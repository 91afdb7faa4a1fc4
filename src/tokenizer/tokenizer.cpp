#include "src/tokenizer/tokenizer.h"

#include <array>
#include <filesystem>

#include "kernels/core/check.h"
#include "src/base/files.h"

namespace ingot {

namespace {

class BytesTokenizer : public Tokenizer {
  public:
    BytesTokenizer() {
        for (size_t i = 0; i < bytes_.size(); ++i) bytes_[i] = static_cast<char>(static_cast<uint8_t>(i));
    }
    std::vector<int32_t> encode(std::string_view text) override {
        std::vector<int32_t> tokens;
        tokens.reserve(text.size());
        for (const char c : text) tokens.push_back(static_cast<uint8_t>(c));
        return tokens;
    }
    std::string_view bytes_of(int32_t token) const override {
        if (token < 0 || token >= kByteTokens) return {};
        return {&bytes_[static_cast<size_t>(token)], 1};
    }
    bool is_special(int32_t) const override { return false; }
    int64_t vocab_size() const override { return kByteTokens; }
    const std::string& source() const override { return source_; }
    std::string describe() const override { return "bytes"; }

  private:
    std::array<char, kByteTokens> bytes_{};
    std::string source_;
};

}  // namespace

std::unique_ptr<Tokenizer> bytes_tokenizer() {
    return std::make_unique<BytesTokenizer>();
}

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& name) {
    return name == kBytesTokenizer ? bytes_tokenizer() : parse_tokenizer(read_tokenizer_file(name), name);
}

std::string read_tokenizer_file(const std::string& path) {
    std::error_code error;
    REQUIRE(std::filesystem::is_regular_file(path, error), "cannot read the tokenizer ", path,
            ": give \"bytes\", or the path of a tokenizer.json");
    return read_file(path, kMaxTokenizerBytes);
}

}  // namespace ingot
