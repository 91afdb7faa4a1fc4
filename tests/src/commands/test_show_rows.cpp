// A packed row as `./train data` shows it.
//
// Seen to catch: the end of a document one token late; the last token's target left out; runs of ignored targets shown
// as their first; a target that is the next token shown although the row says so already.
#include <gtest/gtest.h>

#include "src/commands/show_rows.h"

namespace ingot::test {
namespace {

// "ab\n" EOT | "cd" | padding of two: as row_view has it, with bytes as tokens and 256 as EOT. The second document goes
// on in a later row of the stream, whose first byte is "e".
const ShownRow kRow = {
    {'a', 'b', '\n', 256, 'c', 'd', 0, 0}, {'b', '\n', 256, -1, 'd', 'e', -1, -1}, {0, 1, 2, 3, 0, 1, 0, 1}, {0, 4, 6}};

TEST(ShowRows, AsText) {
    EXPECT_EQ(describe_row(kRow, bytes_tokenizer().get()),
              "document 1: tokens 0 to 3, positions 0 to 3, no target at 3\n"
              "  | ab\n"
              "  | <256>\n"
              "document 2: tokens 4 to 5, positions 0 to 1, every token has a target\n"
              "  | cd\n"
              "  the target at 5 is e\n"
              "document 3: tokens 6 to 7, positions 0 to 1, no target at 6-7\n"
              "  | \\x00\\x00\n");
}

TEST(ShowRows, AsIds) {
    EXPECT_EQ(describe_row({{7, 8, 9}, {8, -1, 5}, {0, 1, 2}, {0}}, nullptr),
              "document 1: tokens 0 to 2, positions 0 to 2, no target at 1\n"
              "  | 7 8 9\n"
              "  the target at 2 is <5>\n");
}

}  // namespace
}  // namespace ingot::test
