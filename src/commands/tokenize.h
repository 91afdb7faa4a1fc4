// `./train tokenize` converts text to token ids.
#pragma once

#include <string>

namespace ingot {

struct TokenizeOptions {
    std::string tokenizer;  // "bytes", or the path of a tokenizer.json
    bool is_count = false;  // print the number of ids instead of the ids
};

// Reads standard input to its end and prints an id a line on stdout. Returns the exit code; throws Error.
int tokenize(const TokenizeOptions& options);

// Returns all of standard input. Throws UserError if it has more than `max_bytes`: `what` names the input in the
// error, and `hint` tells the user what to do.
std::string read_standard_input(size_t max_bytes, const std::string& what, const std::string& hint);

}  // namespace ingot
