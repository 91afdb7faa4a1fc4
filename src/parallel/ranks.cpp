#include "src/parallel/ranks.h"

#include <algorithm>

#include "src/parallel/alone.h"

namespace ingot {

std::unique_ptr<Ranks> one_rank() {
    return std::make_unique<Alone>();
}

int64_t Ranks::agree(int64_t value) {
    int64_t largest = value;
    for (const std::string& text : exchange(std::to_string(value)))
        largest = std::max<int64_t>(largest, std::stoll(text));
    return largest;
}

std::string list_of_ranks(const std::vector<int64_t>& ranks) {
    constexpr size_t kMost = 16;
    std::string text = ranks.size() == 1 ? "rank " : "ranks ";
    for (size_t i = 0; i < std::min(ranks.size(), kMost); ++i) text += join(i == 0 ? "" : ", ", ranks[i]);
    return ranks.size() <= kMost ? text : join(text, " and ", ranks.size() - kMost, " more");
}

std::string summary_of_ranks(const std::vector<std::string>& texts) {
    std::vector<std::pair<std::string, std::vector<int64_t>>> groups;  // what is said, and by whom
    for (size_t rank = 0; rank < texts.size(); ++rank) {
        if (texts[rank].empty()) continue;
        auto group =
            std::find_if(groups.begin(), groups.end(), [&](const auto& each) { return each.first == texts[rank]; });
        if (group == groups.end()) group = groups.insert(groups.end(), {texts[rank], {}});
        group->second.push_back(static_cast<int64_t>(rank));
    }
    std::string summary;
    for (const auto& [text, ranks] : groups)
        summary += join(summary.empty() ? "" : "; ", list_of_ranks(ranks), ": ", text);
    return summary;
}

}  // namespace ingot
