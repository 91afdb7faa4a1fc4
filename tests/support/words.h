// Lists of words in tests.
#pragma once

#include <sstream>
#include <string>
#include <vector>

namespace ingot::test {

// The parts of a text between separators, with `prefix` before each.
inline std::vector<std::string> words(const std::string& text, char separator = ' ', const std::string& prefix = "") {
    std::vector<std::string> result;
    std::istringstream stream(text);
    for (std::string word; std::getline(stream, word, separator);) result.push_back(prefix + word);
    return result;
}

}  // namespace ingot::test
