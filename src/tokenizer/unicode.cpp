#include "src/tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/core/check.h"
#include "src/base/text.h"

namespace ingot {

namespace {

bool is_ascii_word(const char* text) {
    uint64_t word;
    std::memcpy(&word, text, sizeof word);
    return (word & 0x8080808080808080u) == 0;
}

// Returns how many bytes at the front are whole characters.
size_t valid_prefix(std::string_view text) {
    size_t i = 0;
    while (i < text.size()) {
        if (i + 8 <= text.size() && is_ascii_word(text.data() + i)) {
            i += 8;
            continue;
        }
        const int length = utf8_length(text.data() + i, text.size() - i);
        if (length <= 0) break;
        i += static_cast<size_t>(length);
    }
    return i;
}

// Returns how many bytes one U+FFFD replaces at the front of an invalid text: the longest prefix of some valid
// character, at least one byte.
size_t maximal_part(std::string_view text) {
    size_t length = 1;
    while (length < text.size() && length < 4 && utf8_length(text.data(), length + 1) == -1) ++length;
    return utf8_length(text.data(), 1) == -1 ? length : 1;
}

// Returns the code point at the start of `text`, which is valid.
int32_t code_point(const char* text, size_t size) {
    utf8proc_int32_t code = 0;
    const auto length =
        utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text), static_cast<utf8proc_ssize_t>(size), &code);
    CHECK(length > 0, "utf8proc found invalid UTF-8 in valid text");
    return code;
}

// Returns the offset of the last character.
size_t last_character(std::string_view text) {
    size_t begin = text.size() - 1;
    while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xc0) == 0x80) --begin;
    return begin;
}

bool is_space(int32_t code) {
    return (code >= 9 && code <= 13) || code == 0x20 || code == 0x85 || code == 0xa0 || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f ||
           code == 0x3000;
}

// A word character is alphabetic, a mark, a decimal number, a connector or a joiner. Alphabetic is L, Nl, some marks,
// and the circled letters.
bool is_word(int32_t code) {
    switch (utf8proc_category(code)) {
        case UTF8PROC_CATEGORY_LU:
        case UTF8PROC_CATEGORY_LL:
        case UTF8PROC_CATEGORY_LT:
        case UTF8PROC_CATEGORY_LM:
        case UTF8PROC_CATEGORY_LO:
        case UTF8PROC_CATEGORY_MN:
        case UTF8PROC_CATEGORY_MC:
        case UTF8PROC_CATEGORY_ME:
        case UTF8PROC_CATEGORY_ND:
        case UTF8PROC_CATEGORY_NL:
        case UTF8PROC_CATEGORY_PC:
            return true;
        default:
            return code == 0x200c || code == 0x200d || (code >= 0x24b6 && code <= 0x24e9) ||
                   (code >= 0x1f130 && code <= 0x1f149) || (code >= 0x1f150 && code <= 0x1f169) ||
                   (code >= 0x1f170 && code <= 0x1f189);
    }
}

// Appends the text decomposed, with its marks in order, and composed (UAX 15, D108 and D117). utf8proc's own function
// for all three orders marks by exchanging neighbours, which takes hours for a few hundred thousand marks in a row;
// files do contain such runs.
void append_nfc(std::string_view text, std::vector<utf8proc_int32_t>* codes, std::string* out) {
    constexpr auto kForm = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    constexpr utf8proc_ssize_t kLongest = 18;  // the longest decomposition of a character
    codes->clear();
    for (size_t i = 0; i < text.size();) {
        utf8proc_int32_t parts[kLongest];
        int boundary = 0;
        const auto count =
            utf8proc_decompose_char(code_point(text.data() + i, text.size() - i), parts, kLongest, kForm, &boundary);
        CHECK(count >= 0 && count <= kLongest, "utf8proc: a decomposition of ", count, " characters");
        codes->insert(codes->end(), parts, parts + count);
        i += static_cast<size_t>(utf8_length(text.data() + i, text.size() - i));
    }
    const auto mark_class = [](utf8proc_int32_t code) { return utf8proc_get_property(code)->combining_class; };
    for (auto begin = codes->begin(); begin != codes->end();) {
        const auto end = std::find_if(begin, codes->end(), [&](auto code) { return mark_class(code) == 0; });
        std::stable_sort(begin, end, [&](auto a, auto b) { return mark_class(a) < mark_class(b); });
        begin = end == codes->end() ? end : end + 1;
    }
    const auto length = utf8proc_normalize_utf32(codes->data(), static_cast<utf8proc_ssize_t>(codes->size()), kForm);
    CHECK(length >= 0, "utf8proc: ", utf8proc_errmsg(length));
    for (utf8proc_ssize_t i = 0; i < length; ++i) {
        utf8proc_uint8_t bytes[4];
        const auto size = utf8proc_encode_char((*codes)[static_cast<size_t>(i)], bytes);
        out->append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(size));
    }
}

// Returns whether the byte leads a character below U+0300 (lead bytes below 0xcc), which is in form C itself and never
// composes with a character before it.
bool is_below_u0300(char c) {
    return static_cast<uint8_t>(c) < 0xcc;
}

}  // namespace

bool is_valid_utf8(std::string_view text) {
    return valid_prefix(text) == text.size();
}

std::string replace_invalid_utf8(std::string_view text) {
    std::string result;
    result.reserve(text.size());
    while (!text.empty()) {
        const size_t valid = valid_prefix(text);
        result += text.substr(0, valid);
        text.remove_prefix(valid);
        if (text.empty()) break;
        result += "\xef\xbf\xbd";
        text.remove_prefix(maximal_part(text));
    }
    return result;
}

std::string to_nfc(std::string_view text) {
    // U+11A7 comes just before the first Hangul final and is not one itself, but utf8proc before 2.9 composes, and so
    // loses, it. It is a starter that composes with nothing, so it can split the text as an ASCII character does.
    constexpr std::string_view kNoFinal = "\xe1\x86\xa7";
    std::string result;
    std::vector<utf8proc_int32_t> codes;
    result.reserve(text.size());
    size_t begin = 0;
    while (begin < text.size()) {
        if (text.compare(begin, kNoFinal.size(), kNoFinal) == 0) {
            result += kNoFinal;
            begin += kNoFinal.size();
            continue;
        }
        // A run below U+0300 stays as it is, except its last character, which may compose with the next one.
        size_t end = begin;
        while (end < text.size() && is_below_u0300(text[end])) ++end;
        if (end == text.size()) {
            result += text.substr(begin);
            break;
        }
        const size_t last = end > begin ? begin + last_character(text.substr(begin, end - begin)) : begin;
        result += text.substr(begin, last - begin);
        // The next ASCII character composes with nothing before it, so that the form of both sides is the form of the
        // whole (UAX 15, section 9).
        size_t next = end;
        while (next < text.size() && static_cast<uint8_t>(text[next]) >= 0x80 &&
               text.compare(next, kNoFinal.size(), kNoFinal) != 0)
            ++next;
        append_nfc(text.substr(last, next - last), &codes, &result);
        begin = next;
    }
    return result;
}

size_t leading_space(std::string_view text) {
    size_t length = 0;
    while (length < text.size() && is_space(code_point(text.data() + length, text.size() - length)))
        length += static_cast<size_t>(utf8_length(text.data() + length, text.size() - length));
    return length;
}

size_t trailing_space(std::string_view text) {
    size_t begin = text.size();
    while (begin > 0) {
        const size_t last = last_character(text.substr(0, begin));
        if (!is_space(code_point(text.data() + last, begin - last))) break;
        begin = last;
    }
    return text.size() - begin;
}

bool begins_with_word(std::string_view text) {
    return !text.empty() && is_word(code_point(text.data(), text.size()));
}

bool ends_with_word(std::string_view text) {
    if (text.empty()) return false;
    const size_t last = last_character(text);
    return is_word(code_point(text.data() + last, text.size() - last));
}

}  // namespace ingot
