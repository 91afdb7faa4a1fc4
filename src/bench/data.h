// ./bench data measures how fast one thread reads and packs the rows of a config.
#pragma once

#include <string>
#include <vector>

namespace ingot {

struct BenchDataOptions {
    std::string config;                  // a run's config; its data must exist
    std::vector<std::string> overrides;  // "section.key=value"
    double seconds = 5;                  // of each measurement
};

// Prints to stdout the GB/s of scanning tokens for documents, and the tokens/s of batches. Throws UserError.
void bench_data(const BenchDataOptions&);

}  // namespace ingot
