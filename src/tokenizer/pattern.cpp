#define PCRE2_CODE_UNIT_WIDTH 8
#include "src/tokenizer/pattern.h"

#include <pcre2.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <vector>

#include "kernels/core/check.h"
#include "src/base/text.h"
#include "src/tokenizer/unicode.h"

namespace ingot {

// ---- Translation ----

namespace {

// The property White_Space, for use inside a class.
constexpr const char* kSpace = "\\x{9}-\\x{d}\\x{85}\\p{Z}";

const char* const kCategories[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N", "Nd",
                                   "Nl", "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S", "Sm",
                                   "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Co"};

// Letter pairs that Oniguruma, ignoring case, also matches with one character: fi with U+FB01, ss with U+00DF.
const char* const kFoldedPairs[] = {"ss", "ff", "fi", "fl", "st"};

class Translator {
  public:
    Translator(const std::string& regex, const std::string& where) : in_(regex), where_(where) {}

    std::string translate() {
        if (!is_valid_utf8(in_) || in_.find('\0') != std::string::npos) refuse("is no UTF-8");
        while (at_ < in_.size()) item();
        if (!groups_.empty()) refuse("has a group that is not closed");
        return std::move(out_);
    }

  private:
    struct Group {
        bool ignores_case;
    };

    [[noreturn]] void refuse(const std::string& what) const {
        throw UserError(join(where_, " ", what, " at character ", at_ + 1, ": ", excerpt(in_, 80),
                             ": known are literals, classes, \\p{L} and other categories, \\s, (?:), (?i:), (?=), (?!) "
                             "and quantifiers; use a tokenizer with a published pattern (GPT-2, Llama-3, Qwen)"));
    }

    bool takes(std::string_view text) {
        if (in_.compare(at_, text.size(), text) != 0) return false;
        at_ += text.size();
        return true;
    }
    bool ignores_case() const { return !groups_.empty() && groups_.back().ignores_case; }

    void item() {
        const char c = in_[at_];
        if (takes("(?:"))
            open("(?:", ignores_case());
        else if (takes("(?i:"))
            open("(?i:", true);
        else if (takes("(?!"))
            open("(?!", ignores_case());
        else if (takes("(?="))
            open("(?=", ignores_case());
        else if (c == '(' && at_ + 1 < in_.size() && (in_[at_ + 1] == '?' || in_[at_ + 1] == '*'))
            refuse("has a kind of group that is not supported");
        else if (takes("("))
            open("(?:", ignores_case());
        else if (c == ')')
            close();
        else if (takes("|")) {
            out_ += '|';
            can_repeat_ = false;
            previous_ = '\0';
        } else if (c == '[')
            character_class();
        else if (std::strchr("*+?{", c) != nullptr)
            quantifier();
        else if (std::strchr(".^$]}", c) != nullptr)
            refuse("has an anchor, a dot or a bracket without its partner, which is not supported,");
        else if (c == '\\')
            atom(escape(false));
        else
            literal();
    }

    void atom(const std::string& text) {
        if (ignores_case()) refuse("has more than letters in (?i:...), which is not supported,");
        out_ += text;
        can_repeat_ = true;
        previous_ = '\0';
    }

    void literal() {
        const auto length = static_cast<size_t>(utf8_length(in_.data() + at_, in_.size() - at_));
        if (ignores_case()) {
            if (length > 1) refuse("has more than ASCII in (?i:...), which is not supported,");
            const char pair[] = {previous_, static_cast<char>(std::tolower(static_cast<uint8_t>(in_[at_]))), '\0'};
            for (const char* folded : kFoldedPairs)
                if (std::strcmp(pair, folded) == 0) refuse("has letters in (?i:...) that may also be one character");
            previous_ = pair[1];
        }
        // Characters such as '-' and '#' are literals outside a class in both libraries.
        out_ += in_.substr(at_, length);
        at_ += length;
        can_repeat_ = true;
    }

    void open(const char* as, bool ignores_case) {
        out_ += as;
        groups_.push_back({ignores_case});
        can_repeat_ = false;
        previous_ = '\0';
    }
    void close() {
        if (groups_.empty()) refuse("has a closing bracket without its partner");
        groups_.pop_back();
        out_ += ')';
        ++at_;
        can_repeat_ = true;
        previous_ = '\0';
    }

    // Translates one escape, inside a class or outside.
    std::string escape(bool is_in_class) {
        if (at_ + 1 >= in_.size()) refuse("ends with a backslash");
        const char c = in_[at_ + 1];
        const auto braces = [&](const std::string& text) { return is_in_class ? text : "[" + text + "]"; };
        if (c == 'p' || c == 'P') return property();
        if (c == 'x' || c == 'u') return code_point();
        at_ += 2;
        switch (c) {
            case 's':
                return braces(kSpace);
            case 'S':
                if (!is_in_class) return join("[^", kSpace, "]");
                break;
            case 'd':
                return "\\p{Nd}";
            case 'D':
                return "\\P{Nd}";
            case 'r':
            case 'n':
            case 't':
            case 'f':
                return std::string("\\") + c;
            default:
                if (std::ispunct(static_cast<uint8_t>(c)) != 0) return std::string("\\") + c;
        }
        at_ -= 2;
        refuse("has an escape that is not supported");
    }

    std::string property() {
        const size_t end = in_.find('}', at_);
        if (at_ + 2 >= in_.size() || in_[at_ + 2] != '{' || end == std::string::npos)
            refuse("has \\p without braces, which is not supported,");
        const bool is_negated = in_[at_ + 3] == '^';
        const size_t begin = at_ + 3 + (is_negated ? 1 : 0);
        const std::string name = in_.substr(begin, end - begin);
        if (std::find(std::begin(kCategories), std::end(kCategories), name) == std::end(kCategories))
            refuse("has a property that is no general category");
        const bool is_complement = (in_[at_ + 1] == 'P') != is_negated;
        at_ = end + 1;
        return join(is_complement ? "\\P{" : "\\p{", name, "}");
    }

    // Translates \x{1F600} and \u00e9. \xNN is a byte to Oniguruma, and refused.
    std::string code_point() {
        const bool has_braces = in_[at_ + 1] == 'x';
        const size_t begin = at_ + (has_braces ? 3 : 2);
        const size_t end = has_braces ? in_.find('}', at_) : begin + 4;
        if ((has_braces && (begin > in_.size() || in_[at_ + 2] != '{')) || end == std::string::npos || end > in_.size())
            refuse("has an escape that is not supported");
        const std::string digits = in_.substr(begin, end - begin);
        const bool is_hex = !digits.empty() && digits.size() <= 6 &&
                            digits.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
        if (!is_hex) refuse("has an escape that is not supported");
        at_ = end + (has_braces ? 1 : 0);
        return join("\\x{", digits, "}");
    }

    void character_class() {
        std::string text = "[";
        const size_t start = at_++;
        if (takes("^")) text += '^';
        bool is_empty = true;
        for (;; is_empty = false) {
            if (at_ >= in_.size()) {
                at_ = start;
                refuse("has a class that is not closed");
            }
            if (in_[at_] == ']') break;
            if (in_[at_] == '[' || in_.compare(at_, 2, "&&") == 0)
                refuse("has a class within a class, which is not supported,");
            if (in_[at_] == '\\') {
                text += escape(true);
                continue;
            }
            const auto length = static_cast<size_t>(utf8_length(in_.data() + at_, in_.size() - at_));
            text += in_.substr(at_, length);
            at_ += length;
        }
        if (is_empty) refuse("has an empty class");
        ++at_;
        atom(text + "]");
    }

    void quantifier() {
        if (!can_repeat_) refuse("has a quantifier with nothing to repeat");
        if (in_[at_] == '{') {
            // {,n} is a literal to PCRE2, and the meaning of {n}+ and {n}? depends on Oniguruma's syntax.
            const size_t end = in_.find('}', at_);
            const std::string bounds = end == std::string::npos ? "" : in_.substr(at_ + 1, end - at_ - 1);
            const bool is_plain = !bounds.empty() && bounds[0] != ',' && bounds.size() <= 9 &&
                                  bounds.find_first_not_of("0123456789,") == std::string::npos &&
                                  std::count(bounds.begin(), bounds.end(), ',') <= 1;
            if (!is_plain) refuse("has bounds that are not supported");
            out_ += "{" + bounds + "}";
            at_ = end + 1;
        } else {
            out_ += in_[at_++];
            if (at_ < in_.size() && (in_[at_] == '?' || in_[at_] == '+')) out_ += in_[at_++];
        }
        can_repeat_ = false;  // a quantifier of a quantifier is refused
        previous_ = '\0';
    }

    const std::string& in_;
    const std::string& where_;
    size_t at_ = 0;
    std::string out_;
    std::vector<Group> groups_;
    bool can_repeat_ = false;
    char previous_ = '\0';  // the previous literal, where case is ignored
};

std::string message_of(int code) {
    PCRE2_UCHAR text[256];
    pcre2_get_error_message(code, text, sizeof text);
    return reinterpret_cast<const char*>(text);
}

std::string configured(uint32_t what) {
    PCRE2_UCHAR text[64] = "";
    pcre2_config(what, text);
    return reinterpret_cast<const char*>(text);
}

}  // namespace

std::string translate_pattern(const std::string& regex, const std::string& where) {
    return Translator(regex, where).translate();
}

// ---- Matching ----

struct Pattern::Compiled {
    pcre2_code* code = nullptr;
    pcre2_match_data* data = nullptr;
    pcre2_match_context* context = nullptr;
    pcre2_jit_stack* stack = nullptr;
    ~Compiled() {
        pcre2_jit_stack_free(stack);
        pcre2_match_context_free(context);
        pcre2_match_data_free(data);
        pcre2_code_free(code);
    }
};

Pattern::Pattern(const std::string& regex, const std::string& where)
    : compiled_(std::make_unique<Compiled>()), where_(where) {
    constexpr size_t kLongest = 16384;  // published patterns have less than 500 bytes
    REQUIRE(regex.size() <= kLongest, where, " has ", regex.size(), " bytes, at most ", kLongest,
            " are compiled: use a tokenizer with a published pattern (GPT-2, Llama-3, Qwen)");
    const std::string text = translate_pattern(regex, where);
    regex_ = excerpt(regex, 80);
    int error = 0;
    size_t offset = 0;
    compiled_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                    PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_USE_OFFSET_LIMIT, &error,
                                    &offset, nullptr);
    REQUIRE(compiled_->code != nullptr, where, ": ", message_of(error), " at byte ", offset, " of ", excerpt(text, 80),
            ": use a tokenizer with a published pattern (GPT-2, Llama-3, Qwen)");
    uint32_t matches_empty = 0;
    pcre2_pattern_info(compiled_->code, PCRE2_INFO_MATCHEMPTY, &matches_empty);
    REQUIRE(matches_empty == 0, where,
            " matches the empty text: use a tokenizer with a published pattern (GPT-2, "
            "Llama-3, Qwen)");
    // Matching is slower without machine code, with the same result.
    pcre2_jit_compile(compiled_->code, PCRE2_JIT_COMPLETE);
    compiled_->data = pcre2_match_data_create(1, nullptr);
    compiled_->context = pcre2_match_context_create(nullptr);
    constexpr size_t kStackBytes = size_t{32} << 10, kMaxStackBytes = size_t{8} << 20;
    compiled_->stack = pcre2_jit_stack_create(kStackBytes, kMaxStackBytes, nullptr);
    CHECK(compiled_->data != nullptr && compiled_->context != nullptr, "pcre2: out of memory");
    pcre2_jit_stack_assign(compiled_->context, nullptr, compiled_->stack);
    constexpr uint32_t kHeapKibibytes = 1 << 20;  // for matching without machine code
    pcre2_set_heap_limit(compiled_->context, kHeapKibibytes);
}

Pattern::~Pattern() = default;
Pattern::Pattern(Pattern&&) noexcept = default;
Pattern& Pattern::operator=(Pattern&&) noexcept = default;

namespace {

// Returns how often PCRE2 may backtrack in one match. A run of a hundred megabytes of spaces can be one match, and the
// published patterns try each of its characters once or twice. A pattern with exponentially many ways to match reaches
// this limit in a fraction of a second on a text of usual length.
uint32_t match_limit(size_t bytes) {
    constexpr uint64_t kFirst = 1'000'000, kPerByte = 4;
    return static_cast<uint32_t>(std::min<uint64_t>(kFirst + kPerByte * bytes, UINT32_MAX));
}

double thread_seconds() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

bool Pattern::find(std::string_view text, size_t offset, size_t* begin, size_t* end) {
    pcre2_set_match_limit(compiled_->context, match_limit(text.size() - offset));
    // match_limit() holds for each start of a match. A pattern that reads to the end of the text from every start is
    // stopped by a second limit on the time of all starts together, for which they are tried in stretches. A published
    // pattern matches at the first start, or passes over a hundred megabytes in a second.
    constexpr double kMostSeconds = 2, kShort = 0.01;
    double first_seconds = -1, last_seconds = 0;
    for (size_t stretch = 16, from = offset; from <= text.size();) {
        const size_t last = std::min(text.size(), from + stretch);
        pcre2_set_offset_limit(compiled_->context, last);
        const int found = pcre2_match(compiled_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                      PCRE2_NO_UTF_CHECK, compiled_->data, compiled_->context);
        // There is room for one pair of offsets; 0 means that the pattern had groups.
        if (found >= 0) {
            const PCRE2_SIZE* const offsets = pcre2_get_ovector_pointer(compiled_->data);
            *begin = offsets[0];
            *end = offsets[1];
            return true;
        }
        if (found != PCRE2_ERROR_NOMATCH) too_slow(text, from, message_of(found));
        for (from = last + 1; from < text.size() && (static_cast<uint8_t>(text[from]) & 0xc0) == 0x80;) ++from;
        const double now = thread_seconds();
        if (first_seconds < 0) first_seconds = last_seconds = now;
        if (now - first_seconds > kMostSeconds) too_slow(text, from, "matching takes too long");
        if (now - last_seconds < kShort) stretch *= 2;
        last_seconds = now;
    }
    return false;
}

void Pattern::too_slow(std::string_view text, size_t offset, const std::string& why) const {
    constexpr size_t kShown = 40;
    throw UserError(join(where_, ": ", why, " for the pattern ", regex_, " at byte ", offset, " of the text (",
                         excerpt(std::string(text.substr(offset, kShown)), kShown),
                         "): use a tokenizer with a published pattern (GPT-2, Llama-3, Qwen)"));
}

std::string Pattern::library_version() {
    return configured(PCRE2_CONFIG_VERSION);
}

std::string Pattern::unicode_version() {
    return configured(PCRE2_CONFIG_UNICODE_VERSION);
}

}  // namespace ingot
