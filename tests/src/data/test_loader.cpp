// The thread that fills batches ahead: the same rows for any number of ranks, errors, prompt ends, no allocation.
//
// Seen to catch: a slot of the ring given out while the caller still has it (BatchesStayWhileTheyAreInUse); the padding
// of the last batch left out (EveryNumberOfRanksReadsTheSameRows); a cache that makes a promise for what it has, counts
// of a blend as a vector, no room for documents kept (RowsAllocateNothing).
#include "src/data/loader.h"

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <new>

#include "src/data/blend.h"
#include "tests/src/data/token_files.h"

// ---- Every allocation of this program, by any thread, is counted ----

namespace {
std::atomic<int64_t> num_allocations = 0;
}

#if defined(__has_feature)  // clang's way to say it
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)  // which has an operator new of its own, and hooks
// As in sanitizer/allocator_interface.h, which GCC does not install.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, size_t),
                                                         void (*)(const volatile void*));
namespace {
[[maybe_unused]] const int hooks = __sanitizer_install_malloc_and_free_hooks(
    [](const volatile void*, size_t) { num_allocations += 1; }, [](const volatile void*) {});
}
#else
// Not inline, else the compiler sees free() called for what came from new.
__attribute__((noinline)) void* operator new(std::size_t bytes) {
    num_allocations += 1;
    if (void* const memory = std::malloc(std::max<std::size_t>(bytes, 1))) return memory;
    throw std::bad_alloc();
}
__attribute__((noinline)) void operator delete(void* memory) noexcept {
    std::free(memory);
}
__attribute__((noinline)) void operator delete(void* memory, std::size_t) noexcept {
    std::free(memory);
}
#endif

namespace ingot {
namespace {

constexpr int64_t kT = 8;

// Row r is r, r, r ...; what happens is up to the test.
class NumberedRows : public Rows {
  public:
    NumberedRows() : Rows(kT) {}
    void fill(uint64_t row, const RowView& out, const std::stop_token& stop) const override {
        if (row == fails_at) throw UserError("row of a bad file: copy it again");
        while (row == hangs_at && !stop.stop_requested()) std::this_thread::yield();
        if (stop.stop_requested()) throw Stopped{};
        std::fill_n(out.tokens, kT, static_cast<int32_t>(row));
        std::fill_n(out.targets, kT, static_cast<int32_t>(row));
        std::fill_n(out.positions, kT, 0);
        *out.document_starts = {0, 3};
        num_filled += 1;
    }
    uint64_t fails_at = ~uint64_t{0}, hangs_at = ~uint64_t{0};
    mutable std::atomic<int64_t> num_filled = 0;
};

// The same rows, and whether anything was prepared.
class WatchedRows : public Rows {
  public:
    explicit WatchedRows(const Rows& rows) : Rows(rows.context_length()), rows_(rows) {}
    void fill(uint64_t row, const RowView& out, const std::stop_token& stop) const override {
        rows_.fill(row, out, stop);
    }
    void prepare_after(uint64_t row, const std::stop_token& stop) const override {
        rows_.prepare_after(row, stop);
        has_prepared = true;
    }
    mutable std::atomic<bool> has_prepared = false;

  private:
    const Rows& rows_;
};

const auto never = [] { return false; };

// Until it holds; at most a minute, for a loader that has failed.
void wait_until(const std::function<bool()>& holds) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (!holds()) {
        ASSERT_LT(std::chrono::steady_clock::now(), limit);
        std::this_thread::yield();
    }
}

class LoaderTest : public TokenFiles {
  protected:
    std::vector<HostBatch> ring_ = std::vector<HostBatch>(Loader::kBatches);
};

TEST_F(LoaderTest, EveryNumberOfRanksReadsTheSameRows) {
    const NumberedRows rows;
    const int64_t rows_per_step = 12, num_steps = 3;
    for (const int64_t ranks : {1, 2, 3, 4, 7})
        for (const int64_t batch_rows : {1, 2, 5}) {
            std::map<int64_t, int64_t> times;
            for (int64_t rank = 0; rank < ranks; ++rank) {
                const LoaderPlan plan = {.first_row = 100,
                                         .rows_per_step = rows_per_step,
                                         .batch_rows = batch_rows,
                                         .ranks = ranks,
                                         .rank = rank};
                Loader loader(rows, plan, ring_, {});
                for (int64_t i = 0; i < num_steps * plan.micro_steps(); ++i) {
                    const HostBatch* const batch = loader.next(never);
                    ASSERT_EQ(batch->tokens.size(), static_cast<size_t>(batch_rows * kT));
                    const int64_t step = i / plan.micro_steps();
                    for (int64_t b = 0; b < batch_rows; ++b) {
                        const int32_t target = batch->targets[static_cast<size_t>(b * kT)];
                        if (target == -1) continue;  // padding
                        times[target] += 1;
                        EXPECT_EQ((target - 100) / rows_per_step, step);
                    }
                }
            }
            EXPECT_EQ(times.size(), static_cast<size_t>(num_steps * rows_per_step)) << ranks << " ranks";
            for (const auto& [row, count] : times) EXPECT_EQ(count, 1) << "row " << row << ", " << ranks << " ranks";
        }
}

TEST_F(LoaderTest, BatchesAreReadyBeforeTheyAreAskedFor) {
    const NumberedRows rows;
    Loader loader(rows, {.rows_per_step = 2, .batch_rows = 2}, ring_, {});
    ASSERT_NO_FATAL_FAILURE(wait_until([&] { return rows.num_filled >= 8; }));  // nobody asked
    EXPECT_EQ(loader.next(never)->tokens[0], 0);
}

TEST_F(LoaderTest, BatchesStayWhileTheyAreInUse) {
    const NumberedRows rows;
    Loader loader(rows, {.rows_per_step = 2, .batch_rows = 2}, ring_, {});
    const HostBatch* before = loader.next(never);
    for (int32_t i = 1; i < 200; ++i) {
        const HostBatch* const batch = loader.next(never);
        std::this_thread::sleep_for(std::chrono::microseconds(i % 3 * 100));
        EXPECT_EQ(before->tokens[0], 2 * i - 2);
        EXPECT_EQ(before->tokens[kT], 2 * i - 1);
        EXPECT_EQ(batch->tokens[0], 2 * i);
        before = batch;
    }
}

// From a corpus, by both packings and as a blend, documents as short as they can be among others.
TEST_F(LoaderTest, RowsAllocateNothing) {
    std::vector<int64_t> ids;
    for (int64_t d = 0; d < 2000; ++d) {
        ids.insert(ids.end(), static_cast<size_t>(d % 14), d % 49);
        ids.push_back(49);
    }
    const std::vector<DataEntry> entries = {entry(write("a.bin", llmc(ids)))};
    const Corpus corpus(entries, "data.train", {.vocab_size = 50, .eot_token = 49, .eot_side = EotSide::end});
    for (const Packing packing : {Packing::stream, Packing::best_fit})
        for (const int64_t num_datasets : {1, 2}) {
            DataConfig config;
            config.packing = packing;
            std::vector<BlendedRows::Dataset> datasets;
            for (int64_t d = 0; d < num_datasets; ++d)
                datasets.push_back(
                    {"a", kBlendRows / num_datasets, DatasetRows::make(corpus, config, kT, static_cast<uint64_t>(d))});
            const BlendedRows rows(std::move(datasets), 5);
            rows.prepare_after(0, {});  // the one group of this epoch, and of the next
            const WatchedRows watched(rows);
            Loader loader(watched, {.rows_per_step = 4, .batch_rows = 4}, ring_, {});
            for (int i = 0; i < 20; ++i) loader.next(never);  // both datasets have been read then
            // A thread may allocate as it begins: both have begun then.
            ASSERT_NO_FATAL_FAILURE(wait_until([&] { return watched.has_prepared.load(); }));
            const int64_t before = num_allocations;
            int64_t num_documents = 0;
            for (int i = 0; i < 200; ++i)  // fewer rows than an epoch has, and than a blend's block
                num_documents += static_cast<int64_t>(loader.next(never)->document_starts.size());
            EXPECT_EQ(num_allocations - before, 0) << num_datasets << " datasets, best fit " << (packing != Packing{});
            EXPECT_GT(num_documents, 200 * 4);
        }
    const int64_t before = num_allocations;
    ::operator delete(::operator new(1));
    EXPECT_GT(num_allocations, before) << "they are counted";
}

TEST_F(LoaderTest, BatchesOfAPlan) {
    MemoryPlan plan;
    for (HostBatch& batch : ring_) batch.plan("loader." + std::to_string(&batch - ring_.data()), 2 * kT, &plan);
    const std::shared_ptr<void> memory = plan.allocate(Device::cpu());
    const NumberedRows rows;
    Loader loader(rows, {.rows_per_step = 2, .batch_rows = 2}, ring_, {});
    for (int i = 0; i < 2 * Loader::kBatches; ++i) {
        const uint8_t* const tokens = reinterpret_cast<const uint8_t*>(loader.next(never)->tokens.data());
        const int64_t offset = tokens - static_cast<const uint8_t*>(memory.get());
        EXPECT_TRUE(offset >= 0 && offset < static_cast<int64_t>(plan.total_bytes())) << offset;
    }
    HostBatch too_small;
    MemoryPlan another;
    too_small.plan("batch", kT, &another);
    EXPECT_THROW(too_small.resize(kT + 1), Error);
}

TEST_F(LoaderTest, ErrorsComeAfterTheBatchesBefore) {
    NumberedRows rows;
    rows.fails_at = 7;
    Loader loader(rows, {.rows_per_step = 2, .batch_rows = 2}, ring_, {});
    for (int32_t i = 0; i < 3; ++i) EXPECT_EQ(loader.next(never)->tokens[0], 2 * i);
    EXPECT_REFUSED(refusal_of([&] { loader.next(never); }), "bad file");
    EXPECT_THROW(loader.next(never), UserError);
}

TEST_F(LoaderTest, EndsWhileItReads) {
    NumberedRows rows;
    rows.hangs_at = 2;
    Loader loader(rows, {.rows_per_step = 2, .batch_rows = 2}, ring_, {});
    EXPECT_NE(loader.next(never), nullptr);
    int asked = 0;
    EXPECT_EQ(loader.next([&] { return ++asked == 2; }), nullptr);  // a signal, say
}  // and the thread that hangs ends here

TEST_F(LoaderTest, AnIdThatNobodyReachedEndsTheRun) {
    // More than a group of segments of 16 tokens: not read when it is opened.
    std::vector<DataEntry> entries;
    for (int i = 0; i < 70; ++i) {
        std::vector<int64_t> ids(20, 1);
        if (i == 69) ids[15] = 77;
        entries.push_back(entry(write(std::to_string(i) + ".bin", llmc(ids))));
    }
    const Corpus corpus(entries, "data.train", {.vocab_size = 50, .segment_tokens = 16});
    EXPECT_FALSE(corpus.is_read());
    const NumberedRows rows;
    Loader loader(rows, {.rows_per_step = 2, .batch_rows = 2}, ring_, {&corpus});
    const std::string error = refusal_of([&] {
        for (;;) loader.next(never);
    });
    EXPECT_REFUSED(error, "69.bin", "token 15 is 77", "model.vocab_size is 50", "at least 78");
}

}  // namespace
}  // namespace ingot
