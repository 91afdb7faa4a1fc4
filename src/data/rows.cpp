#include "src/data/rows.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "kernels/core/check.h"
#include "kernels/core/profile.h"
#include "kernels/core/rng.h"

namespace ingot {

namespace {

constexpr int64_t kSampleEvery = 16;

// Uniform numbers below a bound, exactly (Lemire 2019, "Fast random integer generation in an interval").
class BoundedNumbers {
  public:
    BoundedNumbers(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}
    uint32_t below(uint32_t bound) {
        uint64_t product = static_cast<uint64_t>(random_bits(seed_, stream_, index_++)) * bound;
        if (static_cast<uint32_t>(product) < bound) {
            const uint32_t threshold = -bound % bound;  // 2^32 mod bound: so many low words would be one too often
            while (static_cast<uint32_t>(product) < threshold)
                product = static_cast<uint64_t>(random_bits(seed_, stream_, index_++)) * bound;
        }
        return static_cast<uint32_t>(product >> 32);
    }

  private:
    uint64_t seed_, stream_, index_ = 0;
};

// Token 0, no target, a document of its own.
void fill_padding(int64_t begin, int64_t end, const RowView& out) {
    if (begin == end) return;
    std::fill(out.tokens + begin, out.tokens + end, 0);
    std::fill(out.targets + begin, out.targets + end, -1);
    std::iota(out.positions + begin, out.positions + end, 0);
    out.document_starts->push_back(begin);
}

}  // namespace

uint64_t permuted_index(uint64_t index, uint64_t count, uint64_t seed, uint64_t stream) {
    CHECK(index < count, index, " is outside [0, ", count, ")");
    // A Feistel network permutes the smallest domain of 2^(2 half_bits) >= count numbers; whoever leaves [0, count)
    // walks on until back (Black & Rogaway 2002, "Ciphers with arbitrary finite domains"): fewer than four steps on
    // average. Eight rounds, since tiny domains mix slowly.
    const int half_bits = (std::bit_width(count - 1) + 1) / 2;
    const uint64_t half_mask = (uint64_t{1} << half_bits) - 1;
    if (half_bits == 0) return index;
    do {
        uint64_t left = index >> half_bits, right = index & half_mask;
        for (uint32_t round = 0; round < 8; ++round) {
            const Philox4 counter = {{static_cast<uint32_t>(right), round, static_cast<uint32_t>(stream),
                                      static_cast<uint32_t>(stream >> 32)}};
            const uint64_t mixed = left ^ (philox4x32_10(counter, seed).x[0] & half_mask);
            left = right;
            right = mixed;
        }
        index = left << half_bits | right;
    } while (index >= count);
    return index;
}

DocumentOrder::DocumentOrder(const TokenShards& shards) : shards_(shards) {}

DocumentOrder::DocumentOrder(const TokenShards& shards, uint64_t seed, int64_t epoch) : shards_(shards) {
    const int64_t num_documents = shards.num_documents();
    order_.resize(static_cast<size_t>(num_documents));
    std::iota(order_.begin(), order_.end(), 0u);
    BoundedNumbers numbers(seed, stream_of("data.documents") + static_cast<uint64_t>(epoch));
    for (int64_t last = num_documents - 1; last > 0; --last)  // Fisher & Yates
        std::swap(order_[last], order_[numbers.below(static_cast<uint32_t>(last + 1))]);
    samples_.reserve(static_cast<size_t>(num_documents / kSampleEvery + 1));
    int64_t position = 0;
    for (int64_t place = 0; place < num_documents; ++place) {
        if (place % kSampleEvery == 0) samples_.push_back(position);
        position += shards.length(order_[place]);
    }
}

DocumentOrder::Location DocumentOrder::find(int64_t position) const {
    if (order_.empty()) {
        const int64_t place = shards_.document_of(position);
        return {.place = place, .offset = position - shards_.first_token(place)};
    }
    const int64_t sample = std::upper_bound(samples_.begin(), samples_.end(), position) - samples_.begin() - 1;
    int64_t place = sample * kSampleEvery, offset = position - samples_[sample];
    for (int64_t length; offset >= (length = shards_.length(order_[place])); ++place) offset -= length;
    return {.place = place, .offset = offset};
}

// ---- The stream ----

Rows::Rows(const TokenShards& shards, const DataConfig& config, int64_t context_length)
    : shards_(shards), mask_documents_(config.mask_documents), context_length_(context_length) {
    CHECK(context_length > 0, "context_length is ", context_length);
    REQUIRE(shards.num_tokens() > context_length, shards.key(), " holds ", shards.num_tokens(),
            " tokens, but a row of model.context_length ", context_length, " and its last target need ",
            context_length + 1, ": set a smaller model.context_length, or add text");
}

void Rows::fill_stream(int64_t epoch, int64_t position, int64_t count, const RowView& out) const {
    std::shared_ptr<const DocumentOrder> documents = order(epoch);
    auto [place, offset] = documents->find(position);
    Document document = shards_.document(documents->document(place));
    const bool eot_opens = shards_.eot_side() == EotSide::start;
    out.document_starts->clear();
    for (int64_t filled = 0; filled < count;) {
        const int64_t taken = std::min(document.length - offset, count - filled);
        int32_t *const tokens = out.tokens + filled, *const targets = out.targets + filled;
        shards_.copy(document, offset, taken, tokens);
        shards_.copy(document, offset + 1, taken - 1, targets);
        if (mask_documents_ || filled == 0) out.document_starts->push_back(filled);
        std::iota(out.positions + filled, out.positions + filled + taken,
                  mask_documents_ ? 0 : static_cast<int32_t>(filled));
        filled += taken;
        offset += taken;
        if (offset < document.length) {
            targets[taken - 1] = shards_.token(document, offset);
            continue;
        }
        if (++place == shards_.num_documents()) {
            documents = order(++epoch);
            place = 0;
        }
        document = shards_.document(documents->document(place));
        offset = 0;
        const bool counts = !mask_documents_ || (eot_opens && shards_.begins_with_eot(document));
        targets[taken - 1] = counts ? shards_.token(document, 0) : -1;
    }
}

RowSource::RowSource(const TokenShards& shards, const DataConfig& config, int64_t context_length, uint64_t seed)
    : Rows(shards, config, context_length), is_shuffled_(config.shuffle), seed_(seed) {
    REQUIRE(!is_shuffled_ || shards.num_documents() <= UINT32_MAX, shards.key(), " holds ", shards.num_documents(),
            " documents, and at most 2^32 can be shuffled: set data.shuffle to false, or list fewer files");
}

// Rows are numbered so that no product below leaves 64 bits.
int64_t RowSource::epoch_of(uint64_t row) const {
    CHECK(row < (uint64_t{1} << 62) / static_cast<uint64_t>(context_length_), "row ", row, " is beyond any training");
    return static_cast<int64_t>(row) * context_length_ / shards_.num_tokens();
}

uint64_t RowSource::first_row(int64_t epoch) const {
    return static_cast<uint64_t>((epoch * shards_.num_tokens() + context_length_ - 1) / context_length_);
}

void RowSource::fill(uint64_t row, const RowView& out) const {
    const int64_t epoch = epoch_of(row);
    if (is_shuffled_) {
        const uint64_t first = first_row(epoch), count = first_row(epoch + 1) - first;
        row = first + permuted_index(row - first, count, seed_, stream_of("data.rows") + static_cast<uint64_t>(epoch));
    }
    const int64_t position = static_cast<int64_t>(row) * context_length_ - epoch * shards_.num_tokens();
    fill_stream(epoch, position, context_length_, out);
}

std::shared_ptr<const DocumentOrder> RowSource::order(int64_t epoch) const {
    // The rows of an epoch reach into the next one, and threads that work ahead may be an epoch further.
    constexpr size_t kCachedOrders = 3;
    if (!is_shuffled_) epoch = 0;
    const std::lock_guard<std::mutex> lock(mutex_);
    auto found = std::find_if(cache_.begin(), cache_.end(), [&](const CachedOrder& c) { return c.epoch == epoch; });
    if (found == cache_.end()) {
        if (cache_.size() == kCachedOrders) cache_.pop_back();
        cache_.push_back({epoch, is_shuffled_ ? std::make_shared<DocumentOrder>(shards_, seed_, epoch)
                                              : std::make_shared<DocumentOrder>(shards_)});
        found = cache_.end() - 1;
    }
    std::rotate(cache_.begin(), found, found + 1);
    return cache_.front().order;
}

ValidationRows::ValidationRows(const TokenShards& shards, const DataConfig& config, int64_t context_length,
                               int64_t max_tokens)
    : Rows(shards, config, context_length), order_(std::make_shared<DocumentOrder>(shards)) {
    CHECK(max_tokens > 0, "max_tokens is ", max_tokens);
    const int64_t num_inputs = std::min(shards.num_tokens() - 1, max_tokens);
    num_rows_ = (num_inputs + context_length - 1) / context_length;
}

void ValidationRows::fill(uint64_t row, const RowView& out) const {
    CHECK(row < static_cast<uint64_t>(num_rows_), "validation row ", row, " of ", num_rows_);
    const int64_t position = static_cast<int64_t>(row) * context_length_;
    const int64_t count = std::min(context_length_, shards_.num_tokens() - 1 - position);
    fill_stream(0, position, count, out);
    fill_padding(count, context_length_, out);
}

// ---- Micro-batches ----

void HostBatch::resize(int64_t n) {
    if (n > capacity_) {
        memory_ = device_.allocate_host(static_cast<size_t>(kArrays * n) * sizeof(int32_t));
        capacity_ = n;
    }
    int32_t* data = static_cast<int32_t*>(memory_.get());
    for (std::span<int32_t>* array : {&tokens, &targets, &positions, &first_key, &end_key, &first_query, &end_query}) {
        *array = {data, static_cast<size_t>(n)};
        data += n;
    }
}

Tensor HostBatch::all() const {
    return Tensor::contiguous(memory_.get(), DType::i32, {kArrays, static_cast<int64_t>(tokens.size())});
}

double HostBatch::visible_pairs() const {
    double pairs = 0;
    for (size_t i = 0; i < document_starts.size(); ++i) {
        const int64_t end =
            i + 1 < document_starts.size() ? document_starts[i + 1] : static_cast<int64_t>(tokens.size());
        const double length = static_cast<double>(end - document_starts[i]);
        pairs += length * length / 2;
    }
    return pairs;
}

AttentionMask HostBatch::mask() const {
    const auto view = [](std::span<int32_t> values) {
        return Tensor::contiguous(values.data(), DType::i32, {static_cast<int64_t>(values.size())});
    };
    return {view(first_key), view(end_key), view(first_query), view(end_query)};
}

void fill_batch(const Rows& rows, uint64_t first_row, int64_t num_rows, int64_t batch_rows, HostBatch* batch) {
    const ProfileRange range("data");
    const int64_t T = rows.context_length(), N = batch_rows * T;
    CHECK(0 <= num_rows && num_rows <= batch_rows && batch_rows > 0, num_rows, " rows in a batch of ", batch_rows);
    CHECK(N <= INT32_MAX, "a micro-batch of ", N, " tokens: positions are int32");
    batch->resize(N);
    batch->document_starts.clear();
    std::vector<int64_t> row_starts;
    for (int64_t b = 0; b < batch_rows; ++b) {
        const RowView view = {batch->tokens.data() + b * T, batch->targets.data() + b * T,
                              batch->positions.data() + b * T, &row_starts};
        row_starts.clear();
        if (b < num_rows)
            rows.fill(first_row + static_cast<uint64_t>(b), view);
        else
            fill_padding(0, T, view);
        for (const int64_t start : row_starts) batch->document_starts.push_back(b * T + start);
    }
    fill_document_mask(batch->mask(), batch->document_starts, true);
}

}  // namespace ingot
