// `./train tokenize`: text to token ids.
#pragma once

#include <string>

namespace ingot {

struct TokenizeOptions {
    std::string tokenizer;  // "bytes", or the path of a tokenizer.json
    bool is_count = false;  // how many there are, instead of the ids
};

// Reads standard input to its end and writes its ids to standard output, one a line. Returns the exit code; throws
// Error.
int tokenize(const TokenizeOptions& options);

// All of standard input, at most `max_bytes`. Throws UserError where there is more; `what` names it in the error,
// `hint` says what to do about it.
std::string read_standard_input(size_t max_bytes, const std::string& what, const std::string& hint);

}  // namespace ingot
