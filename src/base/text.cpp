#include "src/base/text.h"

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <utility>

namespace ingot {

std::string short_count(double value) {
    char text[32];
    if (value >= 999.5e6)
        std::snprintf(text, sizeof text, "%.3gB", value / 1e9);
    else if (value >= 1e6)
        std::snprintf(text, sizeof text, "%.3gM", value / 1e6);
    else if (value >= 1e3)
        std::snprintf(text, sizeof text, value >= 1e5 ? "%.0fk" : "%.1fk", value / 1e3);
    else
        std::snprintf(text, sizeof text, "%.3g", value);
    return text;
}

std::string with_commas(int64_t number) {
    std::string text = std::to_string(number);
    for (int64_t at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3)
        text.insert(static_cast<size_t>(at), 1, ',');
    return text;
}

std::string counted(int64_t number, const std::string& noun) {
    return with_commas(number) + " " + noun + (number == 1 ? "" : "s");
}

std::string short_duration(double seconds) {
    char text[32];
    // Beyond a million hours the exact number is of no use.
    const int64_t s = static_cast<int64_t>(std::min(seconds, 3.6e9) + 0.5);
    if (s >= 3600)
        std::snprintf(text, sizeof text, "%ldh%02ldm", static_cast<long>(s / 3600), static_cast<long>(s / 60 % 60));
    else
        std::snprintf(text, sizeof text, "%ldm%02lds", static_cast<long>(s / 60), static_cast<long>(s % 60));
    return text;
}

size_t edit_distance(const std::string& a, const std::string& b) {
    std::vector<size_t> row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= a.size(); ++i) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b.size(); ++j) {
            const size_t previous = row[j];
            row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
            diagonal = previous;
        }
    }
    return row[b.size()];
}

std::string nearest_word(const std::string& word, const std::vector<std::string>& candidates) {
    std::string best;
    size_t best_distance = std::max<size_t>(2, word.size() / 3) + 1;
    for (const std::string& candidate : candidates) {
        const size_t distance = edit_distance(word, candidate);
        // With as many edits as it has letters, any word could be made from any other.
        if (distance >= best_distance || distance >= candidate.size()) continue;
        best_distance = distance;
        best = candidate;
    }
    return best;
}

int utf8_length(const char* text, size_t size) {
    if (size == 0) return -1;
    const auto byte = [text](size_t i) { return static_cast<uint8_t>(text[i]); };
    const uint8_t lead = byte(0);
    if (lead < 0x80) return 1;
    if (lead < 0xc2 || lead > 0xf4) return 0;
    const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    // After four of the lead bytes the second byte has a narrower range.
    const uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    for (size_t i = 1; i < length; ++i) {
        if (i == size) return -1;
        if (byte(i) < (i == 1 ? low : 0x80) || byte(i) > (i == 1 ? high : 0xbf)) return 0;
    }
    return static_cast<int>(length);
}

namespace {

// Characters that are invisible, end a line or change the direction of writing: those of the categories Cf, Zl and Zp
// that a terminal or an editor acts on.
constexpr std::pair<uint32_t, uint32_t> kInvisible[] = {
    {0xad, 0xad},     {0x61c, 0x61c},   {0x180e, 0x180e},   {0x200b, 0x200f},   {0x2028, 0x202e},  {0x2060, 0x206f},
    {0xfeff, 0xfeff}, {0xfff9, 0xfffb}, {0x1bca0, 0x1bca3}, {0x1d173, 0x1d17a}, {0xe0000, 0xe007f}};

// Returns the code point of a valid character of `length` bytes.
uint32_t code_point(const char* text, int length) {
    const auto byte = [text](int i) { return static_cast<uint32_t>(static_cast<uint8_t>(text[i])); };
    uint32_t code = length == 1 ? byte(0) : byte(0) & (0xffu >> (length + 1));
    for (int i = 1; i < length; ++i) code = code << 6 | (byte(i) & 0x3f);
    return code;
}

bool is_invisible(uint32_t code) {
    return std::any_of(std::begin(kInvisible), std::end(kInvisible),
                       [code](const auto& range) { return code >= range.first && code <= range.second; });
}

bool is_continuation(char c) {
    return (static_cast<uint8_t>(c) & 0xc0) == 0x80;
}

}  // namespace

std::string printable(const std::string& text) {
    std::string result;
    for (size_t i = 0; i < text.size();) {
        const int length = utf8_length(text.data() + i, text.size() - i);
        const uint8_t first = static_cast<uint8_t>(text[i]);
        const bool is_control = (first < 0x20 && first != '\n' && first != '\t') || first == 0x7f ||
                                (first == 0xc2 && length == 2 && static_cast<uint8_t>(text[i + 1]) < 0xa0);
        if (length > 0 && !is_control) {
            result.append(text, i, static_cast<size_t>(length));
            i += static_cast<size_t>(length);
            continue;
        }
        const size_t escaped = length == 2 ? 2 : 1;
        for (size_t j = 0; j < escaped; ++j, ++i) {
            char code[8];
            std::snprintf(code, sizeof code, "\\x%02x", static_cast<uint8_t>(text[i]));
            result += code;
        }
    }
    return result;
}

std::string printable_line(const std::string& text) {
    const std::string lines = printable(text);
    std::string result;
    for (size_t i = 0; i < lines.size();) {
        const int length = utf8_length(lines.data() + i, lines.size() - i);  // the text is valid by now
        const uint32_t code = code_point(lines.data() + i, length);
        if (code == '\n') {
            result += "\\n";
        } else if (code == '\t') {
            result += "\\t";
        } else if (is_invisible(code)) {
            char name[16];
            std::snprintf(name, sizeof name, "\\u{%x}", code);
            result += name;
        } else {
            result.append(lines, i, static_cast<size_t>(length));
        }
        i += static_cast<size_t>(length);
    }
    return result;
}

std::string excerpt(const std::string& text, size_t longest) {
    // Escaping never makes a text shorter, so that of a long text only the ends have to be looked at.
    std::string line;
    if (text.size() <= 2 * longest) {
        line = printable_line(text);
    } else {
        size_t tail = text.size() - longest;
        while (tail < text.size() && is_continuation(text[tail])) ++tail;
        line = printable_line(text.substr(0, longest)) + printable_line(text.substr(tail));
    }
    if (line.size() <= longest) return line;
    constexpr size_t kMark = 3;
    size_t begin = (longest - kMark) * 2 / 3, end = line.size() - (longest - kMark - begin);
    while (begin > 0 && is_continuation(line[begin])) --begin;
    while (end < line.size() && is_continuation(line[end])) ++end;
    return line.substr(0, begin) + "..." + line.substr(end);
}

void print_warning(const std::string& message) {
    std::fprintf(stderr, "WARNING: %s\n", excerpt(message, kLongestMessage).c_str());
}

}  // namespace ingot
