#include "src/commands/tokenize.h"

#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>

#include "kernels/core/check.h"
#include "src/base/files.h"
#include "src/base/output.h"
#include "src/tokenizer/tokenizer.h"

namespace ingot {

namespace {

// The text is held in memory together with its tokens, which have 4 bytes each.
constexpr size_t kMaxTextBytes = size_t{1} << 30;

}  // namespace

std::string read_standard_input(size_t max_bytes, const std::string& what, const std::string& hint) {
    std::string text;
    const int error = read_to_end(STDIN_FILENO, max_bytes, &text);
    REQUIRE(error != EFBIG, what, " on standard input is longer than ", max_bytes >> 20, " MiB: ", hint);
    REQUIRE(error == 0, "cannot read ", what, " from standard input: ", std::strerror(error));
    return text;
}

int tokenize(const TokenizeOptions& options) {
    const std::unique_ptr<Tokenizer> tokenizer = open_tokenizer(options.tokenizer);
    const std::string text = read_standard_input(kMaxTextBytes, "the text", "give it in parts");
    const std::vector<int32_t> tokens = tokenizer->encode(text);
    if (options.is_count) {
        write_output(join(tokens.size(), "\n"));
        return kExitDone;
    }
    constexpr size_t kBuffer = size_t{1} << 20;
    std::string lines;
    for (const int32_t token : tokens) {
        char digits[16];
        const auto end = std::to_chars(digits, digits + sizeof digits, token).ptr;
        lines.append(digits, end);
        lines += '\n';
        if (lines.size() < kBuffer) continue;
        write_output(lines);
        lines.clear();
    }
    write_output(lines);
    return kExitDone;
}

}  // namespace ingot
