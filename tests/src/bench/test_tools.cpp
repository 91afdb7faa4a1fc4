// What the commands print: progress bars, the line of an evaluation.
// Seen to catch: a bar as wide as the terminal, a line for short work.
#include <gtest/gtest.h>

#include <cmath>

#include "src/base/progress.h"
#include "src/commands/evaluate.h"

namespace ingot::test {
namespace {

struct FakeOutput {
    ProgressOutput output(bool is_terminal, int width = 80) {
        return {.is_terminal = is_terminal,
                .write = [this](const std::string& piece) { pieces.push_back(piece); },
                .now = [this] { return seconds; },
                .width = [width] { return width; }};
    }
    double seconds = 100;
    std::vector<std::string> pieces;
};

TEST(Progress, OneLineOnATerminal) {
    FakeOutput fake;
    {
        Progress progress("evaluating", 200, "rows", fake.output(true));
        for (int i = 0; i < 100; ++i) {
            fake.seconds += 0.0625;  // exact in binary: every second one is drawn
            progress.advance(1);
        }
    }
    ASSERT_GE(fake.pieces.size(), 3u);
    EXPECT_LE(fake.pieces.size(), 2u + 63u);  // at most ten a second in 6.25 seconds, the first and the last
    EXPECT_EQ(fake.pieces[fake.pieces.size() - 2],
              "\revaluating [########........] 50% | 100/200 rows | 16 rows/s | eta 0m06s");
    for (const std::string& piece : fake.pieces) {
        EXPECT_EQ(piece[0], '\r');
        EXPECT_EQ(piece.find('\n'), std::string::npos);
        EXPECT_LE(piece.size(), 81u);
    }
    // What is left behind is an empty line.
    const std::string& last = fake.pieces.back();
    EXPECT_EQ(last.find_first_not_of(" \r"), std::string::npos);
    EXPECT_GE(last.size(), fake.pieces[fake.pieces.size() - 2].size());
}

TEST(Progress, StaysInsideANarrowTerminal) {
    for (const int width : {1, 10, 40, 60}) {
        FakeOutput fake;
        Progress progress("evaluating", 200, "rows", fake.output(true, width));
        fake.seconds += 1;
        progress.advance(17);
        for (const std::string& piece : fake.pieces)
            EXPECT_LE(static_cast<int>(piece.size()) - 1, std::max(width - 1, 1));
    }
}

TEST(Progress, LinesInAFile) {
    FakeOutput fake;
    {
        Progress progress("evaluating", 100, "rows", fake.output(false));
        for (int i = 0; i < 100; ++i) {
            fake.seconds += 0.35;
            progress.advance(1);
        }
        progress.finish();
        progress.finish();
    }
    EXPECT_EQ(fake.pieces, (std::vector<std::string>{"evaluating: 29% | 29/100 rows | 2.86 rows/s | eta 0m25s\n",
                                                     "evaluating: 58% | 58/100 rows | 2.86 rows/s | eta 0m15s\n",
                                                     "evaluating: 87% | 87/100 rows | 2.86 rows/s | eta 0m05s\n",
                                                     "evaluating: 100 rows in 0m35s\n"}));
    fake.pieces.clear();
    {
        Progress progress("evaluating", 100, "rows", fake.output(false));
        fake.seconds += 9;
        progress.advance(100);
    }
    EXPECT_TRUE(fake.pieces.empty());  // done before there was anything to say
}

TEST(Evaluate, LineAndJson) {
    Evaluation evaluation{.loss_sum = 3.41273 * 864, .targets = 864, .bytes = 3456};
    EXPECT_EQ(evaluation_line(evaluation), "loss 3.41273 | perplexity 30.35 | bits/byte 1.23 | targets 864");
    nlohmann::ordered_json json = evaluation_json(evaluation);
    EXPECT_DOUBLE_EQ(json["loss"], 3.41273);
    EXPECT_DOUBLE_EQ(json["perplexity"], std::exp(3.41273));
    EXPECT_DOUBLE_EQ(json["bits_per_byte"], 3.41273 / std::log(2.0) / 4);
    evaluation.bytes.reset();
    EXPECT_EQ(evaluation_line(evaluation), "loss 3.41273 | perplexity 30.35 | targets 864");
    EXPECT_TRUE(evaluation_json(evaluation)["bits_per_byte"].is_null());
    evaluation.loss_sum = 1e6 * 864;  // e to that is no number
    EXPECT_TRUE(evaluation_json(evaluation)["perplexity"].is_null());
}

}  // namespace
}  // namespace ingot::test
