// Measures how good the choice of an algorithm is, for benchmarks. CUDA only, but no CUDA header here.
#pragma once

#include <string>

#include "kernels/matmul/matmul.h"

namespace ingot {

struct MatmulStudy {
    struct Entry {
        std::string algorithm;  // "id 66 tile 20 stages 35 splits 1": the library's numbers
        double seconds = 0;     // of one run, under load
    };
    Entry first;  // the library's first choice
    Entry tuned;  // what set_matmul_tuning() would choose
    Entry best;   // the fastest of all that were searched, with first and tuned among them
    double tuning_seconds = 0;
    int64_t num_searched = 0;        // in the full search
    bool is_search_complete = true;  // false: it was cut off
};

// Measures all entries in turns for `seconds`. The full search goes, for up to search_seconds, through all
// algorithms that the library has for these types, with all tiles, stages and numbers of parts, as far as it accepts
// them; then through cluster shapes, block orders and options of the best of them. 0: no full search, `best` is the
// better of the other two. Overwrites the operands.
MatmulStudy study_matmul(const Device&, const Gemm&, double seconds, double search_seconds);

}  // namespace ingot
