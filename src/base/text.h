// Numbers and words for people: what messages, logs and progress bars share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ingot {

// "612k", "65.5k", "980": three significant digits.
std::string short_count(double value);

// 1234567 as "1,234,567"; not negative.
std::string with_commas(int64_t number);

// "1 document", "2,048 documents": what the noun is with an s.
std::string counted(int64_t number, const std::string& noun);

// "4h31m", "2m01s": whole seconds.
std::string short_duration(double seconds);

// How many single-character edits lie between two words (Levenshtein 1966).
size_t edit_distance(const std::string& a, const std::string& b);

// The candidate that `word` was probably meant to be, or "" if none is near: at most a third of its letters differ, and
// two in a short word.
std::string nearest_word(const std::string& word, const std::vector<std::string>& candidates);

// The length of the UTF-8 character that begins at `text` of `size` bytes: 1 to 4. 0: it is invalid (overlong forms,
// surrogates and values beyond U+10FFFF too). -1: it is cut off, and more bytes may complete it. Unicode 15, table 3-7.
int utf8_length(const char* text, size_t size);

// The text with control characters (U+0080 to U+009F too) and invalid UTF-8 made visible as \xNN, for a terminal.
// Newlines and tabs stay.
std::string printable(const std::string& text);

// The same on one line: newlines, tabs and characters that are invisible, end a line or change the direction of writing
// are made visible too.
std::string printable_line(const std::string& text);

// The text as printable_line() shows it, in at most `longest` bytes: of a longer one both ends, and "..." between them.
std::string excerpt(const std::string& text, size_t longest);

// "WARNING: ..." as one line on stderr that is printable and not too long, whatever names and values it holds.
void print_warning(const std::string& message);

// So long may a line of an error or a warning be.
constexpr size_t kLongestMessage = 1000;

}  // namespace ingot
