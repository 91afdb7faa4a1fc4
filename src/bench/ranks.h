// ./bench ranks: what several GPUs cost each other.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/parallel/ranks.h"

namespace ingot {

struct BenchRanksOptions {
    std::string config;
    std::vector<std::string> overrides;
    double seconds = 10;  // for each measurement of steps
    int64_t rounds = 2;
    std::string trace, json;  // files, or empty
};

// Measures, on every rank at once: the bus bandwidth of each collective of a step at the sizes of the config's buckets;
// a step, and the same step without collectives, in turns. The first rank prints. `device` is this rank's. Throws
// UserError for one rank: there is nothing to measure then.
void bench_ranks(const BenchRanksOptions& options, const Device& device, Ranks* ranks);

}  // namespace ingot
