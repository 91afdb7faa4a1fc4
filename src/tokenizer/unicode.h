// Unicode functions that byte-level BPE needs.
#pragma once

#include <string>
#include <string_view>

namespace ingot {

// Returns the text with each maximal part of a broken character replaced by U+FFFD, as Python's bytes.decode("utf-8",
// errors="replace") does. Source: Unicode 15, section 3.9, "U+FFFD Substitution of Maximal Subparts".
std::string replace_invalid_utf8(std::string_view text);
bool is_valid_utf8(std::string_view text);

// Returns normalization form C (UAX 15) of valid UTF-8, by utf8proc.
std::string to_nfc(std::string_view text);

// ---- Characters at the ends of valid UTF-8, for added tokens ----

// Returns the length in bytes of the white space (property White_Space) at the start or at the end of the text.
size_t leading_space(std::string_view text);
size_t trailing_space(std::string_view text);
// Returns whether the first or the last character is a word character: \w of UTS 18, annex C. False for an empty text.
bool begins_with_word(std::string_view text);
bool ends_with_word(std::string_view text);

}  // namespace ingot
