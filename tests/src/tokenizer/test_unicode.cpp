// Broken UTF-8, NFC, and the patterns of pre-tokenizers.
// Seen to catch: one U+FFFD for each broken byte; a stretch that is cut before the last character that takes a mark;
// U+11A7 lost; marks left in their order; \s with U+180E; a quantifier of a quantifier passed on.
#include "src/tokenizer/unicode.h"

#include <gtest/gtest.h>

#include "kernels/core/check.h"
#include "src/tokenizer/pattern.h"
#include "tests/support/errors.h"

namespace ingot::test {
namespace {

TEST(Unicode, ReplacesEachMaximalPart) {
    const std::string r = "\xef\xbf\xbd";
    EXPECT_EQ(replace_invalid_utf8("plain \xc3\xbc"), "plain \xc3\xbc");
    EXPECT_EQ(replace_invalid_utf8("\xc3"), r);
    EXPECT_EQ(replace_invalid_utf8("\xe2\x82"), r);
    EXPECT_EQ(replace_invalid_utf8("\xe2\x82\xe2\x82\xac"), r + "\xe2\x82\xac");
    EXPECT_EQ(replace_invalid_utf8("\xf0\x9f\x98!"), r + "!");
    EXPECT_EQ(replace_invalid_utf8("\xc0\x80"), r + r);
    EXPECT_EQ(replace_invalid_utf8("\xed\xa0\x80"), r + r + r);  // a surrogate
    EXPECT_EQ(replace_invalid_utf8("\xf4\x90\x80\x80"), r + r + r + r);
    EXPECT_EQ(replace_invalid_utf8("12345678901234\x80x"), "12345678901234" + r + "x");
    EXPECT_FALSE(is_valid_utf8("12345678\xff"));
    EXPECT_TRUE(is_valid_utf8(""));
}

TEST(Unicode, ComposesAcrossCuts) {
    EXPECT_EQ(to_nfc("e\xcc\x81"), "\xc3\xa9");
    EXPECT_EQ(to_nfc("plain text, e\xcc\x81 and e\xcc\x81"), "plain text, \xc3\xa9 and \xc3\xa9");
    EXPECT_EQ(to_nfc("\xc3\xa7\xcc\x81"), "\xe1\xb8\x89");                      // c cedilla, acute: one letter
    EXPECT_EQ(to_nfc("q\xcc\x87\xcc\xa3"), "q\xcc\xa3\xcc\x87");                // marks in order
    EXPECT_EQ(to_nfc("\xe2\x84\xab"), "\xc3\x85");                              // Angstrom
    EXPECT_EQ(to_nfc("\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8"), "\xea\xb0\x81");  // Hangul
    EXPECT_EQ(to_nfc("\xea\xb0\x80\xe1\x86\xa7"), "\xea\xb0\x80\xe1\x86\xa7");  // U+11A7 is no final
    EXPECT_EQ(to_nfc("\xe1\x86\xa7\xe1\x86\xa7\xcc\x81z"), "\xe1\x86\xa7\xe1\x86\xa7\xcc\x81z");
    EXPECT_EQ(to_nfc("\xcc\x81"), "\xcc\x81");
    EXPECT_EQ(to_nfc(""), "");
    // Marks without end are put in order in less than the square of their number.
    std::string mixed = "x", above, below;
    for (int i = 0; i < 300'000; ++i) {
        mixed += "\xcc\x81\xcc\xa3";
        above += "\xcc\x81";
        below += "\xcc\xa3";
    }
    EXPECT_TRUE(to_nfc(mixed) == "x" + below + above);
    std::string zero("a\0b\xcc\x81", 5);
    EXPECT_EQ(to_nfc(zero), zero);  // a NUL ends nothing
}

TEST(Unicode, KnowsSpacesAndWords) {
    EXPECT_EQ(leading_space(" \t\xc2\xa0\xe3\x80\x80x"), 7u);
    EXPECT_EQ(trailing_space("x\xe2\x80\xa8 \n"), 5u);
    EXPECT_EQ(trailing_space("\xe1\xa0\x8e"), 0u);  // U+180E is none
    EXPECT_EQ(leading_space("   "), 3u);
    EXPECT_EQ(trailing_space(""), 0u);
    EXPECT_TRUE(begins_with_word("_x"));
    EXPECT_TRUE(begins_with_word("\xe4\xb8\xad"));
    EXPECT_TRUE(ends_with_word("x\xcc\x81"));
    EXPECT_FALSE(ends_with_word("x-"));
    EXPECT_FALSE(begins_with_word(""));
}

std::string first_match(const std::string& regex, const std::string& text, size_t offset = 0) {
    Pattern pattern(regex, "test");
    size_t begin = 0, end = 0;
    return pattern.find(text, offset, &begin, &end) ? text.substr(begin, end - begin) : "no match";
}

TEST(Pattern, ReadsAsOniguruma) {
    EXPECT_EQ(first_match(R"(\s+)", "a\xe1\xa0\x8e \xc2\x85z"), " \xc2\x85");  // not U+180E
    EXPECT_EQ(first_match(R"([^\s]+)", " \xe1\xa0\x8e "), "\xe1\xa0\x8e");
    EXPECT_EQ(first_match(R"(\S+)", "\xc2\xa0 ab "), "ab");
    EXPECT_EQ(first_match(R"(\p{N}{1,3})", "12345"), "123");
    EXPECT_EQ(first_match(R"(\p{^L}+)", "ab12"), "12");
    EXPECT_EQ(first_match(R"(\d+)", "x\xd9\xa1\xd9\xa2"), "\xd9\xa1\xd9\xa2");
    EXPECT_EQ(first_match("(?i:'s|'re)", "X'RE"), "'RE");
    EXPECT_EQ(first_match("(?i:'s)", "X'\xc5\xbf"), "'\xc5\xbf");  // long s
    EXPECT_EQ(first_match(R"(\s+(?!\S))", "a   b"), "  ");
    EXPECT_EQ(first_match(R"(\p{L}++a?)", "aaa"), "aaa");
    EXPECT_EQ(first_match("\\u4e2d|\\x{1F600}", "\xf0\x9f\x98\x80"), "\xf0\x9f\x98\x80");
    EXPECT_EQ(first_match("(a|b)+", "xabab"), "abab");
    EXPECT_EQ(first_match("a", "aba", 1), "a");
    EXPECT_EQ(first_match("c", "aba"), "no match");
    // One match over more than a stack holds.
    const std::string spaces(3'000'000, ' ');
    EXPECT_EQ(first_match(R"(\s*[\r\n]+|\s+(?!\S)|\s+)", spaces + "x").size(), spaces.size() - 1);
}

TEST(Pattern, RefusesWhatMayDiffer) {
    for (const char* regex : {"(?<=a)b",    "(?<n>a)",
                              "(?i)a",      "(?>a)",
                              "(*FAIL)",    "a.b",
                              "^a",         "a$",
                              "\\w+",       "\\bx",
                              "\\v",        "\\h",
                              "\\R",        "\\X",
                              "\\K",        "\\1",
                              "\\x41",      "\\p{Han}",
                              "\\p{Alpha}", "\\pL",
                              "\\p{",       "[[:alpha:]]",
                              "[a&&b]",     "[a[b]]",
                              "[]",         "[a",
                              "a{,3}",      "a{3}+",
                              "a{2}?",      "a{x}",
                              "a**",        "a+++",
                              "*a",         "(?i:\\p{L})",
                              "(?i:[a])",   "(?i:ss)",
                              "(?i:fi)",    "(?i:\xc3\xa9)",
                              "[\\S]",      "a|*",
                              "(a",         "a)",
                              "a]",         "}",
                              "\\",         "",
                              "a*",         "a|",
                              "\xff"})
        EXPECT_THROW(Pattern(regex, "test"), UserError) << regex;
    const std::string what = test::user_error_of([] { Pattern("(?:x|\\w)", "some.json: pattern"); });
    EXPECT_EQ(what.rfind("some.json: pattern has an escape that is not supported at character 6", 0), 0u) << what;
}

}  // namespace
}  // namespace ingot::test
