// The arrays of a micro-batch, by name, in the memory of any device.
#pragma once

#include "kernels/attention/attention.h"
#include "kernels/core/tensor.h"

namespace ingot {

// A packed row of n tokens.
struct MicroBatch {
    static constexpr int64_t kArrays = 7;
    // Returns the views of `arrays` (7, n) int32, which one copy takes to a device.
    static MicroBatch of(const Tensor& arrays) {
        const auto array = [&](int64_t i) { return arrays.slice(0, i, i + 1).view({arrays.shape[1]}); };
        return {.tokens = array(0),
                .targets = array(1),
                .positions = array(2),
                .mask = {.first_key = array(3), .end_key = array(4), .first_query = array(5), .end_query = array(6)}};
    }

    Tensor tokens, targets;  // (n) int32; target -1 = ignored
    Tensor positions;        // (n) int32, within the document
    AttentionMask mask;      // (n) int32 each
};

}  // namespace ingot
