// ./bench data: how fast the rows of a config are read and packed, by one thread.
#pragma once

#include <string>
#include <vector>

namespace ingot {

struct BenchDataOptions {
    std::string config;                  // a run's config; its data must be there
    std::vector<std::string> overrides;  // "section.key=value"
    double seconds = 5;                  // of each measurement
};

// Prints to stdout: GB/s at which tokens are looked through for documents, and tokens/s of batches. Throws UserError.
void bench_data(const BenchDataOptions&);

}  // namespace ingot
