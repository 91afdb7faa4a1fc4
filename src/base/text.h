// Formats numbers and words for messages, logs and progress bars.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ingot {

// Returns three significant digits: "612k", "65.5k", "980".
std::string short_count(double value);

// Returns 1234567 as "1,234,567". The number must not be negative.
std::string with_commas(int64_t number);

// Returns "1 document", "2,048 documents"; the plural of `noun` must end in s.
std::string counted(int64_t number, const std::string& noun);

// Returns whole seconds as "4h31m" or "2m01s".
std::string short_duration(double seconds);

// Returns the number of single-character edits between two words (Levenshtein 1966).
size_t edit_distance(const std::string& a, const std::string& b);

// Returns the candidate that `word` was probably meant to be, or "" if none is close: at most a third of its letters
// may differ, or two in a short word.
std::string nearest_word(const std::string& word, const std::vector<std::string>& candidates);

// Returns the length, 1 to 4, of the UTF-8 character at the start of `text`, which has `size` bytes; 0 if it is
// invalid (also overlong forms, surrogates and values beyond U+10FFFF); -1 if it is cut off and more bytes may
// complete it. Source: Unicode 15, table 3-7.
int utf8_length(const char* text, size_t size);

// Returns the text with control characters (U+0080 to U+009F too) and invalid UTF-8 escaped as \xNN, for a terminal.
// Newlines and tabs stay.
std::string printable(const std::string& text);

// Does the same on one line: also escapes newlines, tabs and characters that are invisible, end a line or change the
// direction of writing.
std::string printable_line(const std::string& text);

// Returns the text as printable_line() does, in at most `longest` bytes: a longer one keeps both ends, with "..."
// between.
std::string excerpt(const std::string& text, size_t longest);

// Prints "WARNING: ..." on stderr as one printable line of bounded length, whatever the message holds.
void print_warning(const std::string& message);

// The longest line of an error or a warning, in bytes.
constexpr size_t kLongestMessage = 1000;

}  // namespace ingot
