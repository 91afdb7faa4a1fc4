// The layout of the workspace of the CUDA embedding backward (embedding.cu), known without CUDA so that it can be
// planned.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ingot {

// Offsets in bytes. The sort has two buffers, which it writes in turn.
struct EmbeddingWorkspace {
    static constexpr int kTile = 4096;  // tokens that a block sorts
    static constexpr int kBins = 512;   // values of a digit
    static constexpr int kPiece = 64;   // sorted tokens that are summed at a time

    size_t tokens[2], order[2], counts, leading, trailing, bytes = 0;
    EmbeddingWorkspace(int64_t N, int64_t C) {
        const auto divide = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
        const auto take = [&](int64_t count) {
            const size_t offset = bytes;
            bytes += static_cast<size_t>(divide(count * 4, 256) * 256);
            return offset;
        };
        for (int i = 0; i < 2; ++i) {
            tokens[i] = take(N);
            order[i] = take(N);
        }
        counts = take(divide(N, kTile) * kBins);
        leading = take(divide(N, kPiece) * C);
        trailing = take(divide(N, kPiece) * C);
    }
};

}  // namespace ingot
