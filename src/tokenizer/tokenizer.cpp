#include "src/tokenizer/tokenizer.h"

#include <array>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/core/check.h"

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

// Those of models with a quarter of a million tokens have 35 MB. A checkpoint has one checksum for 64 MiB of a file.
constexpr uintmax_t kMaxBytes = uintmax_t{64} << 20;

}  // namespace

std::unique_ptr<Tokenizer> bytes_tokenizer() {
    return std::make_unique<BytesTokenizer>();
}

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& name) {
    return name == kBytesTokenizer ? bytes_tokenizer() : parse_tokenizer(read_tokenizer_file(name), name);
}

std::string read_tokenizer_file(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    REQUIRE(stream && !std::filesystem::is_directory(path), "cannot read the tokenizer ", path,
            ": give \"bytes\", or the path of a tokenizer.json");
    std::error_code error;
    const uintmax_t size = std::filesystem::file_size(path, error);
    REQUIRE(!error && size <= kMaxBytes, path, " has ", error ? 0 : size, " bytes, a tokenizer.json has at most ",
            kMaxBytes, ": check the path");
    std::ostringstream text;
    text << stream.rdbuf();
    return text.str();
}

}  // namespace ingot
