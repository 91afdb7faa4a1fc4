// `./train data`: packed rows as training reads them, for people.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/tokenizer/tokenizer.h"

namespace ingot {

struct ShowRowsOptions {
    std::string config_file;
    std::vector<std::string> overrides;  // "section.key=value"
    uint64_t first_row = 0;              // counted from 0 through the whole run
    int64_t num_rows = 1;
};

// A row of T tokens, as RowView has it.
struct ShownRow {
    std::vector<int32_t> tokens, targets, positions;
    std::vector<int64_t> document_starts;
};

// One block for each document: where it lies in the row, its positions, which of its tokens have no target, and its
// text; ids where the tokenizer is null. A target that is not the next token of the row (that of the row's last token,
// say) is shown too.
std::string describe_row(const ShownRow& row, const Tokenizer* tokenizer);

// Prints to standard output. Returns the exit code; throws UserError for a config or data that a run would refuse.
int show_rows(const ShowRowsOptions& options);

}  // namespace ingot
