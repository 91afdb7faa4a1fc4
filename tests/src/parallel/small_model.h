// A model of three layers for tests of who owns what.
#pragma once

#include "src/config/config.h"

namespace ingot::test {

inline ModelConfig small_model(bool ties_embeddings = true) {
    ModelConfig config;
    config.n_layers = 3;
    config.d_model = 24;
    config.n_heads = config.n_kv_heads = 3;
    config.head_dim = 8;
    config.d_ff = 40;
    config.context_length = 16;
    config.vocab_size = 301;
    config.tie_embeddings = ties_embeddings;
    return config;
}

}  // namespace ingot::test
