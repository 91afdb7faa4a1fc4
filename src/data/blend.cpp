#include "src/data/blend.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "kernels/core/check.h"
#include "kernels/core/rng.h"
#include "src/base/text.h"

namespace ingot {

using nlohmann::ordered_json;

namespace {

constexpr size_t kShownName = 200;  // bytes of a dataset's name in messages

}  // namespace

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
    // The sum is rounded too, so that one more than there are datasets may be left, or one too few.
    for (size_t i = 0; left > 0; ++i, --left) shares[remainders[i % remainders.size()].second] += 1;
    for (; left < 0; ++left) *std::max_element(shares.begin(), shares.end()) -= 1;
    return shares;
}

// ---- What a checkpoint keeps ----

namespace {

ordered_json fingerprint_json(const Fingerprint& fingerprint) {
    ordered_json object = {{"content", fingerprint.content}};
    if (!fingerprint.times.empty()) object["times"] = fingerprint.times;
    return object;
}

Fingerprint fingerprint_of(const JsonFields& fields, const char* key) {
    if (!fields.has(key)) return {};  // an older checkpoint
    const JsonFields object = fields.object(key);
    constexpr size_t kDigits = 64;
    return {object.text("content", kDigits), object.has("times") ? object.text("times", kDigits) : ""};
}

BlendState::Dataset dataset_of(const JsonFields& fields, int64_t rows_consumed) {
    constexpr size_t kLongestName = size_t{1} << 20;  // no config is longer
    constexpr int64_t kManyTokens = int64_t{1} << 60;
    BlendState::Dataset dataset;
    dataset.name = fields.text("name", kLongestName);
    dataset.share = fields.integer("share", 1, kBlendRows);
    dataset.tokens = fields.integer("tokens", 1, kManyTokens);
    const int64_t first_row = fields.integer("first_row", 0, rows_consumed);
    const int64_t next_row = fields.integer("next_row", first_row, rows_consumed);
    dataset.first_row = static_cast<uint64_t>(first_row);
    dataset.next_row = static_cast<uint64_t>(next_row);
    if (fields.has("bookmark")) {
        const JsonFields bookmark = fields.object("bookmark");
        // A group has at least one row.
        dataset.bookmark = {.group = bookmark.integer("group", 0, next_row),
                            .first_row = static_cast<uint64_t>(bookmark.integer("first_row", 0, next_row))};
    }
    dataset.fingerprint = fingerprint_of(fields, "fingerprint");
    return dataset;
}

}  // namespace

void to_json(ordered_json& json, const BlendState& state) {
    json = {{"first_row", state.first_row}, {"datasets", ordered_json::array()}};
    for (const BlendState::Dataset& dataset : state.datasets) {
        ordered_json entry = {{"name", dataset.name},
                              {"share", dataset.share},
                              {"tokens", dataset.tokens},
                              {"first_row", dataset.first_row},
                              {"next_row", dataset.next_row}};
        if (dataset.bookmark)
            entry["bookmark"] = {{"group", dataset.bookmark->group}, {"first_row", dataset.bookmark->first_row}};
        if (!dataset.fingerprint.content.empty()) entry["fingerprint"] = fingerprint_json(dataset.fingerprint);
        json["datasets"].push_back(std::move(entry));
    }
    if (!state.validation.content.empty()) json["validation"] = fingerprint_json(state.validation);
}

BlendState blend_state_from_json(const JsonFields& fields, int64_t rows_consumed) {
    BlendState state;
    if (!fields.has("datasets")) return state;
    const int64_t first_row = fields.integer("first_row", 0, rows_consumed);
    state.first_row = static_cast<uint64_t>(first_row);
    int64_t shares = 0, rows = 0;
    for (const JsonFields& entry : fields.objects("datasets", kBlendRows)) {
        state.datasets.push_back(dataset_of(entry, rows_consumed));
        shares += state.datasets.back().share;
        rows += static_cast<int64_t>(state.datasets.back().next_row - state.datasets.back().first_row);
    }
    if (state.datasets.empty()) return state;
    if (shares != kBlendRows) fields.refuse("datasets", join("datasets whose shares sum to ", kBlendRows));
    if (rows != rows_consumed - first_row)
        fields.refuse("datasets", join("datasets that have read ", rows_consumed - first_row, " rows together"));
    state.validation = fingerprint_of(fields, "validation");
    return state;
}

// ---- The rows ----

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
        std::vector<uint16_t> of_slot;  // the slots of each dataset in turn; rows take them in a permuted order
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

BlendState BlendedRows::state(uint64_t rows_consumed) const {
    const std::vector<uint64_t> consumed = counts(origin_.first_row, rows_consumed);
    BlendState state;
    state.first_row = origin_.first_row;
    for (size_t d = 0; d < datasets_.size(); ++d) {
        const DatasetRows& rows = *datasets_[d].rows;
        const uint64_t next = origin_.first_rows[d] + consumed[d];
        state.datasets.push_back({.name = datasets_[d].name,
                                  .share = datasets_[d].share,
                                  .tokens = rows.corpus().num_tokens(),
                                  .first_row = origin_.first_rows[d],
                                  .next_row = next,
                                  .bookmark = rows.bookmark(next),
                                  .fingerprint = rows.corpus().fingerprint()});
    }
    return state;
}

std::vector<std::string> BlendedRows::resume(const BlendState& state, uint64_t rows_consumed) {
    std::vector<std::string> lines;
    const std::vector<BlendState::Dataset>& then = state.datasets;
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
        is_same = then[d].share == datasets_[d].share &&
                  (then[d].name == datasets_[d].name || then[d].tokens == datasets_[d].rows->corpus().num_tokens());
    std::vector<bool> is_taken(then.size(), false);
    for (size_t d = 0; d < datasets_.size(); ++d) {
        Dataset& dataset = datasets_[d];
        const std::string name = excerpt(dataset.name, kShownName);
        const int64_t tokens = dataset.rows->corpus().num_tokens();
        const auto find = [&](auto&& matches) {
            size_t i = 0;
            while (i < then.size() && (is_taken[i] || !matches(then[i]))) ++i;
            return i;
        };
        size_t i = is_same ? d : find([&](const auto& entry) { return entry.name == dataset.name; });
        if (i == then.size()) i = find([&](const auto& entry) { return entry.tokens == tokens; });
        if (i == then.size()) {
            lines.push_back(join(name, " is new: it begins with its first row"));
            continue;
        }
        is_taken[i] = true;
        origin_.first_rows[d] = is_same ? then[i].first_row : then[i].next_row;
        if (!is_same) lines.push_back(join(name, " goes on with its row ", then[i].next_row));
        if (then[i].tokens != tokens) {
            lines.push_back(join(name, " has ", tokens, " tokens, it had ", then[i].tokens,
                                 ": rows come in another order, and some text may come again"));
            continue;
        }
        const std::string change = fingerprint_change(then[i].fingerprint, dataset.rows->corpus().fingerprint());
        if (!change.empty()) lines.push_back(name + " " + change);
        // A bookmark counts rows, which are the same only for the same documents.
        if (then[i].fingerprint.content != dataset.rows->corpus().fingerprint().content &&
            !then[i].fingerprint.content.empty())
            continue;
        if (then[i].bookmark && !dataset.rows->resume_at(*then[i].bookmark, then[i].next_row))
            lines.push_back(name + " has no such group of rows as the checkpoint says: they are counted again");
    }
    if (is_same) origin_.first_row = state.first_row;
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
        lines.push_back(excerpt(datasets_[d].name, kShownName) + ": " + text);
    }
    return lines;
}

}  // namespace ingot
