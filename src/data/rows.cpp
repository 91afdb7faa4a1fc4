#include "src/data/rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/core/check.h"

namespace ingot {

namespace {

DataConfig in_file_order(DataConfig config) {
    config.shuffle = false;
    return config;
}

uint32_t largest_id(const int32_t* ids, int64_t count) {
    uint32_t largest = 0;  // ids as unsigned numbers, so that a negative one is large
    for (int64_t i = 0; i < count; ++i) largest = std::max(largest, static_cast<uint32_t>(ids[i]));
    return largest;
}

// Copies tokens [token, token + count) of the corpus, which lie in one shard, and the target of each but the last.
void copy_tokens(const Corpus& corpus, const Corpus::Place& place, int64_t token, int64_t count, int32_t* tokens,
                 int32_t* targets) {
    place.shard->copy(place.token, count, tokens);
    if (largest_id(tokens, count) >= static_cast<uint32_t>(corpus.vocab_size())) corpus.refuse_ids(token, count);
    std::memcpy(targets, tokens + 1, static_cast<size_t>(count - 1) * sizeof(int32_t));
    place.shard->apply_mask(place.token + 1, count - 1, targets);
}

// Returns token `token` as a target.
int32_t target_of(const Corpus& corpus, const Corpus::Place& place, int64_t token) {
    int32_t id = place.shard->token(place.token);
    if (static_cast<uint32_t>(id) >= static_cast<uint32_t>(corpus.vocab_size())) corpus.refuse_ids(token, 1);
    place.shard->apply_mask(place.token, 1, &id);
    return id;
}

}  // namespace

void fill_padding(int64_t begin, int64_t end, const RowView& out) {
    if (begin == end) return;
    std::fill(out.tokens + begin, out.tokens + end, 0);
    std::fill(out.targets + begin, out.targets + end, -1);
    std::iota(out.positions + begin, out.positions + end, 0);
    out.document_starts->push_back(begin);
}

DatasetRows::DatasetRows(const Corpus& corpus, const DataConfig& config, int64_t context_length, uint64_t seed)
    : Rows(context_length),
      corpus_(corpus),
      mask_documents_(config.mask_documents),
      shuffle_{.is_on = config.shuffle, .seed = seed} {
    CHECK(context_length > 0, "context_length is ", context_length);
    REQUIRE(corpus.num_tokens() > context_length, corpus.key(), " holds ", corpus.num_tokens(),
            " tokens, but a row of model.context_length ", context_length, " and its last target need ",
            context_length + 1, ": set a smaller model.context_length, or add text");
}

std::unique_ptr<DatasetRows> DatasetRows::make(const Corpus& corpus, const DataConfig& config, int64_t context_length,
                                               uint64_t seed) {
    if (config.packing == Packing::best_fit) return std::make_unique<BestFitRows>(corpus, config, context_length, seed);
    return std::make_unique<StreamRows>(corpus, config, context_length, seed);
}

std::shared_ptr<const EpochOrder> DatasetRows::order(int64_t epoch) const {
    if (!shuffle_.is_on) epoch = 0;
    return orders_.get(epoch, [&] { return EpochOrder(corpus_, shuffle_, epoch); });
}

// ---- The stream ----

double StreamRows::epochs(uint64_t num_rows) const {
    return static_cast<double>(num_rows) * static_cast<double>(context_length_) /
           static_cast<double>(corpus_.num_tokens());
}

int64_t StreamRows::epoch_tokens() const {
    return corpus_.num_tokens();
}

uint64_t StreamRows::first_row(int64_t epoch, int64_t group) const {
    const int64_t first_token = epoch * corpus_.num_tokens() + order(epoch)->first_token(group);
    return static_cast<uint64_t>((first_token + context_length_ - 1) / context_length_);
}

StreamRows::Place StreamRows::place_of(uint64_t row) const {
    // Row numbers are bounded so that no product exceeds 64 bits.
    CHECK(row < (uint64_t{1} << 62) / static_cast<uint64_t>(context_length_), "row ", row, " is beyond any training");
    const int64_t token = static_cast<int64_t>(row) * context_length_, epoch = token / corpus_.num_tokens();
    return {epoch, order(epoch)->group_of(token % corpus_.num_tokens())};
}

std::shared_ptr<const GroupDocuments> StreamRows::documents(int64_t epoch, int64_t group,
                                                            const std::stop_token& stop) const {
    const std::shared_ptr<const EpochOrder> order = this->order(epoch);
    return groups_.get({order->epoch(), group}, [&] { return GroupDocuments(corpus_, shuffle_, *order, group, stop); });
}

void StreamRows::fill(uint64_t row, const RowView& out, const std::stop_token& stop) const {
    const auto [epoch, group] = place_of(row);
    if (shuffle_.is_on) {
        const uint64_t first = first_row(epoch, group), count = first_row(epoch, group + 1) - first;
        row = first + permuted_index(row - first, count, shuffle_.seed, group_stream("data.rows", epoch, group));
    }
    fill_stream(epoch, static_cast<int64_t>(row) * context_length_ - epoch * corpus_.num_tokens(), context_length_, out,
                stop);
}

void StreamRows::prepare_after(uint64_t row, const std::stop_token& stop) const {
    const auto [epoch, group] = place_of(row);
    const bool is_last = group + 1 == num_groups();
    documents(is_last ? epoch + 1 : epoch, is_last ? 0 : group + 1, stop);
}

void StreamRows::fill_stream(int64_t epoch, int64_t position, int64_t count, const RowView& out,
                             const std::stop_token& stop) const {
    std::shared_ptr<const EpochOrder> order = this->order(epoch);
    int64_t group = order->group_of(position);
    std::shared_ptr<const GroupDocuments> documents = this->documents(epoch, group, stop);
    const int64_t in_group = position - order->first_token(group);
    int64_t d = documents->find(in_group);
    int64_t offset = in_group - documents->positions[static_cast<size_t>(d)];
    Corpus::Place place = corpus_.place(documents->begins[static_cast<size_t>(d)]);
    out.document_starts->clear();
    for (int64_t filled = 0; filled < count;) {
        const int64_t begin = documents->begins[static_cast<size_t>(d)], length = documents->length(d);
        const int64_t taken = std::min(length - offset, count - filled);
        int32_t *const tokens = out.tokens + filled, *const targets = out.targets + filled;
        place.token += offset;
        copy_tokens(corpus_, place, begin + offset, taken, tokens, targets);
        if (mask_documents_ || filled == 0) out.document_starts->push_back(filled);
        std::iota(out.positions + filled, out.positions + filled + taken,
                  mask_documents_ ? 0 : static_cast<int32_t>(filled));
        filled += taken;
        offset += taken;
        if (offset < length) {
            place.token += taken;
            targets[taken - 1] = target_of(corpus_, place, begin + offset);
            continue;
        }
        if (++d == documents->count()) {
            if (++group == num_groups()) {
                group = 0;
                epoch += 1;
            }
            documents = this->documents(epoch, group, stop);
            d = 0;
        }
        const int64_t next = documents->begins[static_cast<size_t>(d)];
        place = corpus_.place(next);
        offset = 0;
        const bool counts = !mask_documents_ ||
                            (corpus_.eot_side() == EotSide::start && corpus_.is_eot(place.shard->token(place.token)));
        targets[taken - 1] = counts ? target_of(corpus_, place, next) : -1;
    }
}

// ---- Best fit ----

std::shared_ptr<const BestFitRows::PackedGroup> BestFitRows::group(int64_t number, const std::stop_token& stop) const {
    const int64_t epoch = number / num_groups(), group = number % num_groups();
    const auto make = [&] {
        GroupDocuments documents(corpus_, shuffle_, *order(epoch), group, stop);
        PackedRows rows = pack_best_fit(documents.positions, context_length_);
        return PackedGroup{std::move(documents), std::move(rows)};
    };
    return groups_.get(shuffle_.is_on ? number : group, make);
}

BestFitRows::Place BestFitRows::place_of(uint64_t row, const std::stop_token& stop) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (row < first_rows_[0]) {  // before the bookmark
        first_group_ = 0;
        first_rows_ = {0};
    }
    while (first_rows_.back() <= row) {
        const int64_t number = first_group_ + static_cast<int64_t>(first_rows_.size()) - 1;
        first_rows_.push_back(first_rows_.back() + static_cast<uint64_t>(group(number, stop)->rows.count()));
    }
    const auto next = std::upper_bound(first_rows_.begin(), first_rows_.end(), row);
    return {first_group_ + (next - first_rows_.begin()) - 1, *(next - 1), *next - *(next - 1)};
}

void BestFitRows::fill(uint64_t row, const RowView& out, const std::stop_token& stop) const {
    const Place place = place_of(row, stop);
    const std::shared_ptr<const PackedGroup> group = this->group(place.group, stop);
    uint64_t index = row - place.first_row;
    if (shuffle_.is_on)
        index = permuted_index(index, place.num_rows, shuffle_.seed,
                               group_stream("data.rows", place.group / num_groups(), place.group % num_groups()));
    const std::vector<Piece>& pieces = group->rows.pieces;
    const int64_t first = group->rows.row_begins[index], last = group->rows.row_begins[index + 1];
    out.document_starts->clear();
    int64_t filled = 0;
    for (int64_t p = first; p < last; ++p) {
        const Piece& piece = pieces[static_cast<size_t>(p)];
        fill_piece(*group, piece, p + 1 < last ? &piece + 1 : nullptr, filled, out);
        filled += piece.length;
    }
    fill_padding(filled, context_length_, out);
}

void BestFitRows::fill_piece(const PackedGroup& group, const Piece& piece, const Piece* next, int64_t begin,
                             const RowView& out) const {
    const GroupDocuments& documents = group.documents;
    const int64_t token = documents.begins[static_cast<size_t>(piece.document)] + piece.offset;
    Corpus::Place place = corpus_.place(token);
    int32_t* const targets = out.targets + begin;
    copy_tokens(corpus_, place, token, piece.length, out.tokens + begin, targets);
    if (mask_documents_ || begin == 0) out.document_starts->push_back(begin);
    std::iota(out.positions + begin, out.positions + begin + piece.length,
              mask_documents_ ? 0 : static_cast<int32_t>(begin));
    // The target after the piece is the next token of the document; without masking, that of the row's next document;
    // else the EOT that opens the next document of the file.
    int32_t& last_target = targets[piece.length - 1];
    last_target = -1;
    if (piece.offset + piece.length < documents.length(piece.document) || mask_documents_) {
        if (place.rest == piece.length) return;  // the shard ends
        place.token += piece.length;
        const bool is_inside = piece.offset + piece.length < documents.length(piece.document);
        if (is_inside || (corpus_.eot_side() == EotSide::start && corpus_.is_eot(place.shard->token(place.token))))
            last_target = target_of(corpus_, place, token + piece.length);
    } else if (next != nullptr) {
        const int64_t next_token = documents.begins[static_cast<size_t>(next->document)] + next->offset;
        last_target = target_of(corpus_, corpus_.place(next_token), next_token);
    }
}

void BestFitRows::prepare_after(uint64_t row, const std::stop_token& stop) const {
    group(place_of(row, stop).group + 1, stop);
}

double BestFitRows::epochs(uint64_t num_rows) const {
    if (num_rows == 0) return 0;
    bool is_known = false;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        is_known = first_rows_.front() < num_rows && num_rows <= first_rows_.back();
    }
    if (!is_known)
        return static_cast<double>(num_rows) * static_cast<double>(context_length_) /
               static_cast<double>(epoch_tokens());
    const Place place = place_of(num_rows - 1, {});
    const std::shared_ptr<const EpochOrder> order = this->order(place.group / num_groups());
    const int64_t group = place.group % num_groups();
    const double group_tokens = static_cast<double>(order->first_token(group + 1) - order->first_token(group));
    const double part = static_cast<double>(num_rows - place.first_row) / static_cast<double>(place.num_rows);
    const double tokens = static_cast<double>(order->first_token(group)) + part * group_tokens;
    return static_cast<double>(place.group / num_groups()) + tokens / static_cast<double>(corpus_.num_tokens());
}

// The first group stands for all: others pack about as well.
int64_t BestFitRows::epoch_tokens() const {
    const std::shared_ptr<const PackedGroup> first = group(0, {});
    const double row_tokens = static_cast<double>(first->rows.count() * context_length_);
    const double fill = static_cast<double>(first->documents.positions.back()) / row_tokens;
    return static_cast<int64_t>(std::ceil(static_cast<double>(corpus_.num_tokens()) / fill));
}

std::optional<Bookmark> BestFitRows::bookmark(uint64_t row) const {
    // Start from the last group known to begin at or before `row`. If the previous row was read, the next group's
    // start is known.
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto next = std::upper_bound(first_rows_.begin(), first_rows_.end(), row);
    if (next == first_rows_.begin()) return std::nullopt;
    return Bookmark{first_group_ + (next - first_rows_.begin()) - 1, *(next - 1)};
}

bool BestFitRows::resume_at(const Bookmark& bookmark, uint64_t row) {
    // Bounds that need no counting: a row has 1 to T tokens, and `row` lies in the group or begins the next one. They
    // are computed in floating point, since a file may name any numbers.
    const double tokens = static_cast<double>(corpus_.num_tokens());
    const int64_t epoch = bookmark.group / num_groups();
    const double first_row = static_cast<double>(bookmark.first_row);
    const bool is_possible = first_row * static_cast<double>(context_length_) >= static_cast<double>(epoch) * tokens &&
                             first_row <= static_cast<double>(epoch + 1) * tokens && bookmark.first_row <= row &&
                             static_cast<double>(row - bookmark.first_row) <= tokens;
    if (!is_possible) return false;
    // With one group every epoch has the same documents, and so the same number of rows.
    if (num_groups() == 1) {
        const auto rows_of_epoch = static_cast<uint64_t>(group(bookmark.group, {})->rows.count());
        if (bookmark.first_row != static_cast<uint64_t>(epoch) * rows_of_epoch) return false;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    first_group_ = bookmark.group;
    first_rows_ = {bookmark.first_row};
    return true;
}

// ---- Validation ----

ValidationRows::ValidationRows(const Corpus& corpus, const DataConfig& config, int64_t context_length,
                               int64_t max_tokens)
    : Rows(context_length), stream_(corpus, in_file_order(config), context_length, 0) {
    CHECK(max_tokens > 0, "max_tokens is ", max_tokens);
    num_tokens_ = corpus.num_tokens();
    num_rows_ = (std::min(num_tokens_ - 1, max_tokens) + context_length - 1) / context_length;
}

void ValidationRows::fill(uint64_t row, const RowView& out, const std::stop_token& stop) const {
    CHECK(row < static_cast<uint64_t>(num_rows_), "validation row ", row, " of ", num_rows_);
    const int64_t position = static_cast<int64_t>(row) * context_length_;
    const int64_t count = std::min(context_length_, num_tokens_ - 1 - position);
    stream_.fill_stream(0, position, count, out, stop);
    fill_padding(count, context_length_, out);
}

}  // namespace ingot
