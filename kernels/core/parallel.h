// Helpers of the CPU twins' loops.
//
// Fixed blocks: the CPU twins cut work into blocks that depend on the shape alone and add partial sums in index order,
// so that results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <limits>
#include <mutex>
#include <utility>

namespace ingot {

// Returns the part of [0, count) that belongs to `block` of `num_blocks`; sizes differ by one at most.
inline std::pair<int64_t, int64_t> block_range(int64_t count, int64_t num_blocks, int64_t block) {
    const int64_t size = count / num_blocks, extra = count % num_blocks;
    const int64_t begin = block * size + std::min(block, extra);
    return {begin, begin + size + (block < extra ? 1 : 0)};
}

// Returns whether a loop that reads and writes so many elements is worth OpenMP's threads, for a region's `if`. A
// loop over less than 64 KB of fp32 ends sooner than its threads have come together, which costs microseconds on idle
// cores and milliseconds on cores that others use too. The bits are the same either way. Not for loops that call a
// BLAS: that starts threads of its own where it finds itself outside a team (blas.h).
inline bool is_worth_threads(int64_t num_elements) {
    return num_elements >= (int64_t{1} << 14);
}

// Carries exceptions out of an OpenMP loop. None may leave an OpenMP region (the program would end), so an iteration
// that can fail runs its work through run(), and rethrow() stands after the loop:
//
//   LoopErrors errors;
//   #pragma omp parallel for
//   for (int64_t i = 0; i < count; ++i) errors.run(i, [&] { ... });
//   errors.rethrow();
class LoopErrors {
  public:
    template <typename Work>
    void run(int64_t index, Work&& work) noexcept {
        try {
            work();
        } catch (...) {
            const std::lock_guard lock(mutex_);
            if (index >= index_) return;
            index_ = index;
            error_ = std::current_exception();
        }
    }
    // Throws what the first iteration in index order threw, whichever thread came first; nothing if none did.
    void rethrow() const {
        if (error_) std::rethrow_exception(error_);
    }

  private:
    std::mutex mutex_;
    int64_t index_ = std::numeric_limits<int64_t>::max();
    std::exception_ptr error_;
};

}  // namespace ingot
