#include "src/batch.h"

namespace ingot {

BatchBuffers::BatchBuffers(int64_t max_tokens, MemoryPlan* plan) {
    plan->add("batch.tokens", DType::i32, {max_tokens}, &buffers_.tokens);
    plan->add("batch.targets", DType::i32, {max_tokens}, &buffers_.targets);
    plan->add("batch.positions", DType::i32, {max_tokens}, &buffers_.positions);
    plan->add("batch.first_key", DType::i32, {max_tokens}, &buffers_.mask.first_key);
    plan->add("batch.end_key", DType::i32, {max_tokens}, &buffers_.mask.end_key);
    plan->add("batch.first_query", DType::i32, {max_tokens}, &buffers_.mask.first_query);
    plan->add("batch.end_query", DType::i32, {max_tokens}, &buffers_.mask.end_query);
}

MicroBatch BatchBuffers::upload(const Device& device, const HostBatch& host) const {
    const int64_t n = static_cast<int64_t>(host.tokens.size());
    const auto copy = [&](const Tensor& buffer, const std::vector<int32_t>& values) {
        const Tensor destination = buffer.slice(0, 0, n);
        device.copy(destination, Tensor::contiguous(const_cast<int32_t*>(values.data()), DType::i32, {n}));
        return destination;
    };
    return {.tokens = copy(buffers_.tokens, host.tokens),
            .targets = copy(buffers_.targets, host.targets),
            .positions = copy(buffers_.positions, host.positions),
            .mask = {.first_key = copy(buffers_.mask.first_key, host.first_key),
                     .end_key = copy(buffers_.mask.end_key, host.end_key),
                     .first_query = copy(buffers_.mask.first_query, host.first_query),
                     .end_query = copy(buffers_.mask.end_query, host.end_query)}};
}

}  // namespace ingot
