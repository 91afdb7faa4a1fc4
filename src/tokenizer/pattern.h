// Regular expressions of pre-tokenizers, matched by PCRE2.
//
// HF tokenizers matches them with Oniguruma. A pattern is accepted if it consists of constructs on which the two
// agree, as the published patterns do: literals, classes of characters and ranges, general categories (\p{L}), \s, \d,
// \r \n \t \f, groups, (?i:...) around ASCII letters, lookahead, alternatives, and the quantifiers * + ? {n} {n,}
// {n,m}, lazy or possessive where both read them so. Where they differ, the pattern is rewritten (\s is White_Space to
// Oniguruma; PCRE2 adds U+180E) or refused.
//
// A character's category comes from the Unicode version of the PCRE2 library (14 on Debian 12, Ubuntu 22.04 and
// 24.04), so that a later Oniguruma may split characters of later versions differently.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace ingot {

class Pattern {
  public:
    // `where` names the field in errors: "tokenizer.json: pre_tokenizer.pattern". Throws UserError for a construct that
    // is not supported, and for a pattern that matches the empty text.
    Pattern(const std::string& regex, const std::string& where);
    ~Pattern();
    Pattern(Pattern&&) noexcept;
    Pattern& operator=(Pattern&&) noexcept;

    // Finds the leftmost match at or after `offset` in `text`, which must be valid UTF-8; returns false if there is
    // none. Throws UserError where matching takes too long, since some patterns have exponentially many ways to match.
    // Not thread-safe: the object keeps scratch memory.
    bool find(std::string_view text, size_t offset, size_t* begin, size_t* end);

    // Return "10.42 2022-12-11" and "14.0.0".
    static std::string library_version();
    static std::string unicode_version();

  private:
    struct Compiled;
    [[noreturn]] void too_slow(std::string_view text, size_t offset, const std::string& why) const;
    std::unique_ptr<Compiled> compiled_;
    std::string where_, regex_;  // as errors show it
};

// Returns the pattern in PCRE2's syntax. Throws UserError as the constructor does. It is public for tests.
std::string translate_pattern(const std::string& regex, const std::string& where);

}  // namespace ingot
