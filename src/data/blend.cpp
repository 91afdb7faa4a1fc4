#include "src/data/blend.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "kernels/core/check.h"
#include "kernels/core/rng.h"

namespace ingot {

std::vector<int64_t> blend_shares(const std::vector<double>& weights) {
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    std::vector<int64_t> shares;
    std::vector<std::pair<double, size_t>> remainders;
    int64_t left = kBlendRows;
    for (size_t d = 0; d < weights.size(); ++d) {
        const double exact = weights[d] / sum * static_cast<double>(kBlendRows);
        shares.push_back(static_cast<int64_t>(std::floor(exact)));
        remainders.emplace_back(-(exact - std::floor(exact)), d);
        left -= shares.back();
    }
    std::sort(remainders.begin(), remainders.end());
    // Rounding of the sum may leave one more than there are datasets, or take one too many.
    for (size_t i = 0; left > 0; ++i, --left) shares[remainders[i % remainders.size()].second] += 1;
    for (; left < 0; ++left) *std::max_element(shares.begin(), shares.end()) -= 1;
    return shares;
}

BlendedRows::BlendedRows(std::vector<Dataset> datasets, uint64_t seed)
    : Rows(datasets.at(0).rows->context_length()), datasets_(std::move(datasets)), seed_(seed) {
    int64_t sum = 0;
    for (const Dataset& dataset : datasets_) sum += dataset.share;
    CHECK(sum == kBlendRows, "shares sum to ", sum);
    CHECK(datasets_.size() <= UINT16_MAX, datasets_.size(), " datasets");
    origin_.first_rows.assign(datasets_.size(), 0);
}

std::shared_ptr<const BlendedRows::Block> BlendedRows::block(uint64_t number) const {
    return blocks_.get(number, [&] {
        std::vector<uint16_t> of_slot;  // slots of the datasets side by side; rows take them in a permuted order
        for (size_t d = 0; d < datasets_.size(); ++d)
            of_slot.insert(of_slot.end(), static_cast<size_t>(datasets_[d].share), static_cast<uint16_t>(d));
        Block block;
        std::vector<uint16_t> seen(datasets_.size(), 0);
        for (uint64_t i = 0; i < kBlendRows; ++i) {
            const uint16_t d = of_slot[permuted_index(i, kBlendRows, seed_, stream_of("data.blend") + number)];
            block.datasets.push_back(d);
            block.places.push_back(seen[d]++);
        }
        return block;
    });
}

BlendedRows::Source BlendedRows::source(uint64_t row) const {
    CHECK(row >= origin_.first_row, "row ", row, " lies before the blend's first, ", origin_.first_row);
    row -= origin_.first_row;
    if (datasets_.size() == 1) return {0, origin_.first_rows[0] + row};
    const uint64_t number = row / kBlendRows;
    const std::shared_ptr<const Block> block = this->block(number);
    const size_t d = block->datasets[row % kBlendRows];
    return {d, origin_.first_rows[d] + number * static_cast<uint64_t>(datasets_[d].share) +
                   block->places[row % kBlendRows]};
}

void BlendedRows::fill(uint64_t row, const RowView& out, const std::stop_token& stop) const {
    const Source from = source(row);
    datasets_[from.dataset].rows->fill(from.row, out, stop);
}

void BlendedRows::prepare_after(uint64_t row, const std::stop_token& stop) const {
    for (size_t d = 0; d < datasets_.size(); ++d)
        datasets_[d].rows->prepare_after(origin_.first_rows[d] + count(d, row - origin_.first_row), stop);
}

uint64_t BlendedRows::count(size_t dataset, uint64_t num_rows) const {
    if (datasets_.size() == 1) return num_rows;
    const uint64_t whole = num_rows / kBlendRows;
    const std::shared_ptr<const Block> block = this->block(whole);
    const auto first = block->datasets.begin(), last = first + static_cast<int64_t>(num_rows % kBlendRows);
    return whole * static_cast<uint64_t>(datasets_[dataset].share) +
           static_cast<uint64_t>(std::count(first, last, dataset));
}

std::vector<uint64_t> BlendedRows::counts(uint64_t begin, uint64_t end) const {
    CHECK(begin >= origin_.first_row && begin <= end, "rows ", begin, " to ", end);
    std::vector<uint64_t> result;
    for (size_t d = 0; d < datasets_.size(); ++d)
        result.push_back(count(d, end - origin_.first_row) - count(d, begin - origin_.first_row));
    return result;
}

nlohmann::ordered_json BlendedRows::state(uint64_t rows_consumed) const {
    const std::vector<uint64_t> consumed = counts(origin_.first_row, rows_consumed);
    nlohmann::ordered_json state = {{"first_row", origin_.first_row}, {"datasets", nlohmann::ordered_json::array()}};
    for (size_t d = 0; d < datasets_.size(); ++d) {
        const uint64_t next = origin_.first_rows[d] + consumed[d];
        const nlohmann::ordered_json bookmark = datasets_[d].rows->bookmark(next);
        nlohmann::ordered_json entry = {{"name", datasets_[d].name},
                                        {"share", datasets_[d].share},
                                        {"tokens", datasets_[d].rows->corpus().num_tokens()},
                                        {"first_row", origin_.first_rows[d]},
                                        {"next_row", next}};
        if (!bookmark.is_null()) entry["bookmark"] = bookmark;
        state["datasets"].push_back(std::move(entry));
    }
    return state;
}

std::vector<std::string> BlendedRows::resume(const nlohmann::ordered_json& state, uint64_t rows_consumed) {
    std::vector<std::string> lines;
    const nlohmann::ordered_json then = state.value("datasets", nlohmann::ordered_json::array());
    origin_ = {.first_row = rows_consumed, .first_rows = std::vector<uint64_t>(datasets_.size(), 0)};
    if (then.empty()) {
        if (datasets_.size() == 1)
            origin_ = {.first_row = 0, .first_rows = {0}};
        else
            lines.push_back(join("the blend begins at row ", rows_consumed, ", each dataset with its first row"));
        return lines;
    }
    bool is_same = then.size() == datasets_.size();
    for (size_t d = 0; is_same && d < datasets_.size(); ++d)
        is_same = then[d].at("share") == datasets_[d].share &&
                  (then[d].at("name") == datasets_[d].name ||
                   then[d].at("tokens") == datasets_[d].rows->corpus().num_tokens());
    std::vector<bool> is_taken(then.size(), false);
    for (size_t d = 0; d < datasets_.size(); ++d) {
        Dataset& dataset = datasets_[d];
        const int64_t tokens = dataset.rows->corpus().num_tokens();
        const auto find = [&](auto&& matches) {
            size_t i = 0;
            while (i < then.size() && (is_taken[i] || !matches(then[i]))) ++i;
            return i;
        };
        size_t i = is_same ? d : find([&](const auto& entry) { return entry.at("name") == dataset.name; });
        if (i == then.size()) i = find([&](const auto& entry) { return entry.at("tokens") == tokens; });
        if (i == then.size()) {
            lines.push_back(join(dataset.name, " is new: it begins with its first row"));
            continue;
        }
        is_taken[i] = true;
        const uint64_t next = then[i].at("next_row");
        origin_.first_rows[d] = is_same ? then[i].at("first_row").get<uint64_t>() : next;
        if (!is_same) lines.push_back(join(dataset.name, " goes on with its row ", next));
        if (then[i].at("tokens") == tokens)
            dataset.rows->resume_at(then[i].value("bookmark", nlohmann::ordered_json()));
        else
            lines.push_back(join(dataset.name, " has ", tokens, " tokens, it had ", then[i].at("tokens").dump(),
                                 ": rows come in another order, and some text may come again"));
    }
    if (is_same) origin_.first_row = state.at("first_row");
    return lines;
}

std::vector<std::string> BlendedRows::describe(uint64_t rows_consumed) const {
    const std::vector<uint64_t> consumed = counts(origin_.first_row, rows_consumed);
    const double all = static_cast<double>(std::max<uint64_t>(1, rows_consumed - origin_.first_row));
    std::vector<std::string> lines;
    for (size_t d = 0; d < datasets_.size(); ++d) {
        const uint64_t next = origin_.first_rows[d] + consumed[d];
        char text[160];
        std::snprintf(text, sizeof text, "%.2f%% of the rows (%.2f%% by its share), %.3f epochs",
                      100 * static_cast<double>(consumed[d]) / all,
                      100 * static_cast<double>(datasets_[d].share) / static_cast<double>(kBlendRows),
                      datasets_[d].rows->epochs(next));
        lines.push_back(datasets_[d].name + ": " + text);
    }
    return lines;
}

}  // namespace ingot
