// The key/value cache of a text that is generated.
#pragma once

#include "kernels/core/device.h"
#include "src/config/config.h"

namespace ingot {

// Keys (rotated and normed as attention reads them) and values of the tokens of one document that were read so far.
class KvCache {
  public:
    // Plans memory for a document of up to `capacity` tokens.
    KvCache(const ModelConfig& config, DType dtype, int64_t capacity, MemoryPlan* plan) {
        CHECK(capacity >= 1, "a cache for ", capacity, " tokens");
        plan->add("kv_cache.k", dtype, {config.n_layers, capacity, config.n_kv_heads, config.head_dim}, &k_);
        plan->add("kv_cache.v", dtype, {config.n_layers, capacity, config.n_kv_heads, config.head_dim}, &v_);
    }
    KvCache(const KvCache&) = delete;  // the plan knows where the tensors are
    KvCache& operator=(const KvCache&) = delete;

    int64_t capacity() const { return k_.shape[1]; }
    int64_t length() const { return length_; }
    bool is_full() const { return length_ == capacity(); }
    void clear() { length_ = 0; }

  private:
    friend class Model;
    int64_t length_ = 0;
    Tensor k_, v_;  // (L, capacity, NKV, HS)
};

}  // namespace ingot
