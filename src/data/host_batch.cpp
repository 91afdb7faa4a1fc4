#include "src/data/host_batch.h"

#include "kernels/core/check.h"
#include "kernels/core/profile.h"

namespace ingot {

void HostBatch::plan(const std::string& name, int64_t max_tokens, MemoryPlan* plan) {
    plan->add(name, DType::i32, {MicroBatch::kArrays, max_tokens}, &planned_);
    capacity_ = max_tokens;
}

void HostBatch::reserve_documents(int64_t n) {
    document_starts.reserve(static_cast<size_t>(n));
    row_starts_.reserve(static_cast<size_t>(n));
}

void HostBatch::resize(int64_t n) {
    if (n > capacity_) {
        CHECK(planned_.rank == 0, "a batch of ", n, " tokens, planned for ", capacity_);
        memory_ = device_.allocate_host(static_cast<size_t>(MicroBatch::kArrays * n) * sizeof(int32_t));
        capacity_ = n;
    }
    const MicroBatch arrays = MicroBatch::of(
        Tensor::contiguous(memory_ ? memory_.get() : planned_.data, DType::i32, {MicroBatch::kArrays, n}));
    const auto span = [n](const Tensor& array) { return std::span(array.get<int32_t>(), static_cast<size_t>(n)); };
    tokens = span(arrays.tokens), targets = span(arrays.targets), positions = span(arrays.positions);
    first_key = span(arrays.mask.first_key), end_key = span(arrays.mask.end_key);
    first_query = span(arrays.mask.first_query), end_query = span(arrays.mask.end_query);
}

Tensor HostBatch::all() const {
    return Tensor::contiguous(tokens.data(), DType::i32, {MicroBatch::kArrays, static_cast<int64_t>(tokens.size())});
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

void fill_batch(const Rows& rows, uint64_t first_row, int64_t num_rows, int64_t batch_rows, HostBatch* batch,
                const std::stop_token& stop) {
    const ProfileRange range("data");
    const int64_t T = rows.context_length(), N = batch_rows * T;
    CHECK(0 <= num_rows && num_rows <= batch_rows && batch_rows > 0, num_rows, " rows in a batch of ", batch_rows);
    CHECK(N <= INT32_MAX, "a micro-batch of ", N, " tokens: positions are int32");
    batch->resize(N);
    batch->document_starts.clear();
    for (int64_t b = 0; b < batch_rows; ++b) {
        const RowView view = {batch->tokens.data() + b * T, batch->targets.data() + b * T,
                              batch->positions.data() + b * T, &batch->row_starts_};
        batch->row_starts_.clear();
        if (b < num_rows)
            rows.fill(first_row + static_cast<uint64_t>(b), view, stop);
        else
            fill_padding(0, T, view);
        for (const int64_t start : batch->row_starts_) batch->document_starts.push_back(b * T + start);
    }
    fill_document_mask(batch->mask(), batch->document_starts, true);
}

}  // namespace ingot
