// Fixed blocks: the CPU twins cut work into blocks that depend on the shape alone and add partial sums in index order,
// so that results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

namespace ingot {

// The part of [0, count) that belongs to `block` of `num_blocks`; sizes differ by one at most.
inline std::pair<int64_t, int64_t> block_range(int64_t count, int64_t num_blocks, int64_t block) {
    const int64_t size = count / num_blocks, extra = count % num_blocks;
    const int64_t begin = block * size + std::min(block, extra);
    return {begin, begin + size + (block < extra ? 1 : 0)};
}

}  // namespace ingot
