// Method: one thread reads files from the page cache, since the first pass of each measurement is not counted. Batches
// are those of training, from the run's first row on.
#include "src/bench/data.h"

#include <cstdio>

#include "kernels/core/check.h"
#include "kernels/core/measure.h"
#include "src/base/text.h"
#include "src/config/config.h"
#include "src/data/host_batch.h"
#include "src/data/shard.h"
#include "src/train/training_data.h"

namespace ingot {

namespace {

// Measures a scan for documents and ids of at most 2^28 tokens of the corpus's first shard.
void bench_scan(const Corpus& corpus, const Config& config, double seconds) {
    const Shard& shard = *corpus.place(0).shard;
    const TokenRules rules = {.vocab_size = config.model.vocab_size,
                              .eot_token = config.data.eot_token.value_or(-1),
                              .eot_side = corpus.eot_side()};
    const Segment& first = corpus.segments()[0];
    std::vector<int64_t> starts;
    double scanned = 0, began = 0;
    for (int pass = 0; pass < 2 || seconds_now() - began < seconds; ++pass) {
        if (pass == 1) began = seconds_now();
        starts.clear();
        shard.scan(0, first.end, rules, &starts, {});
        if (pass > 0) scanned += static_cast<double>(first.end);
    }
    const double rate = scanned / (seconds_now() - began);
    std::printf("looking for documents: %.2f GB/s, %.0fM tokens/s (%s, %s in %s of %s)\n",
                rate * static_cast<double>(bytes_of(shard.type())) * 1e-9, rate * 1e-6, name_of(shard.type()),
                counted(static_cast<int64_t>(starts.size()), "document").c_str(), counted(first.end, "token").c_str(),
                shard.path().c_str());
}

}  // namespace

void bench_data(const BenchDataOptions& options) {
    REQUIRE(options.seconds > 0, "--seconds must be above 0");
    const Config config = read_config(options.config, options.overrides);
    const double opening = seconds_now();
    const TrainingData data(config);
    std::printf("%sopened in %.3f s\n", data.describe().c_str(), seconds_now() - opening);
    bench_scan(*data.corpora[0], config, options.seconds);

    const int64_t batch_rows = config.training.micro_batch_size, T = config.model.context_length;
    HostBatch batch;
    uint64_t row = 0;
    const auto fill = [&] {
        fill_batch(*data.train, row, batch_rows, batch_rows, &batch);
        row += static_cast<uint64_t>(batch_rows);
    };
    const double first = seconds_now();
    fill();
    std::printf("first batch: %.3f s\n", seconds_now() - first);
    // The first pass over the rows of the measurement brings their files into the page cache.
    const auto measure = [&](double seconds) {
        const double began = seconds_now();
        const uint64_t first_row = row;
        while (seconds_now() - began < seconds) fill();
        return static_cast<double>(row - first_row) * static_cast<double>(T) / (seconds_now() - began);
    };
    measure(options.seconds);
    row = static_cast<uint64_t>(batch_rows);
    const double rate = measure(options.seconds);
    std::printf("batches of %ld x %ld tokens: %.1fM tokens/s\n", static_cast<long>(batch_rows), static_cast<long>(T),
                rate * 1e-6);
}

}  // namespace ingot
