#include "src/parallel/ranks.h"

#include <algorithm>

namespace ingot {

int64_t Ranks::agree(int64_t value) {
    int64_t largest = value;
    for (const std::string& text : exchange(std::to_string(value)))
        largest = std::max<int64_t>(largest, std::stoll(text));
    return largest;
}

}  // namespace ingot
