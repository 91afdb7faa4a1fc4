// `./train data` prints packed rows as training reads them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/tokenizer/tokenizer.h"

namespace ingot {

struct ShowRowsOptions {
    std::string config_file;
    std::vector<std::string> overrides;  // "section.key=value"
    uint64_t first_row = 0;              // counts from 0 through the whole run
    int64_t num_rows = 1;
};

// A row of T tokens, with the fields of a RowView.
struct ShownRow {
    std::vector<int32_t> tokens, targets, positions;
    std::vector<int64_t> document_starts;
};

// Returns a block of lines for each document: its place in the row, its positions, which tokens have no target, and
// its text, or ids if `tokenizer` is null. A target that is not the next token of the row (such as that of the row's
// last token) is shown too.
std::string describe_row(const ShownRow& row, const Tokenizer* tokenizer);

// Prints rows on stdout. Returns the exit code; throws UserError for a config or data that a run would refuse.
int show_rows(const ShowRowsOptions& options);

}  // namespace ingot
