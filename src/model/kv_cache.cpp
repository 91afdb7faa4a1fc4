#include "src/model/kv_cache.h"

namespace ingot {

KvCache::KvCache(const ModelConfig& config, DType dtype, int64_t capacity, MemoryPlan* plan) {
    CHECK(capacity >= 1, "a cache for ", capacity, " tokens");
    plan->add("kv_cache.k", dtype, {config.n_layers, capacity, config.n_kv_heads, config.head_dim}, &k_);
    plan->add("kv_cache.v", dtype, {config.n_layers, capacity, config.n_kv_heads, config.head_dim}, &v_);
}

}  // namespace ingot
