#include "src/model/batch.h"

namespace ingot {

BatchBuffers::BatchBuffers(const Device& device, int64_t max_tokens, MemoryPlan* plan, MemoryPlan* host_plan)
    : device_(device), slots_{Slot(device), Slot(device)} {
    for (int i = 0; i < kSlots; ++i) {
        Slot& slot = slots_[static_cast<size_t>(i)];
        plan->add(join("batch.", i), DType::i32, {HostBatch::kArrays, max_tokens}, &slot.arrays);
        if (host_plan != nullptr) slot.host.plan(join("batch.host", i), max_tokens, host_plan);
    }
}

HostBatch* BatchBuffers::next() {
    slots_[static_cast<size_t>(current_)].read.record(Queue::compute);
    current_ = (current_ + 1) % kSlots;
    Slot& slot = slots_[static_cast<size_t>(current_)];
    slot.copied.wait();
    return &slot.host;
}

MicroBatch BatchBuffers::upload(const HostBatch& batch) {
    Slot& slot = slots_[static_cast<size_t>(current_)];
    const Tensor host = batch.all();
    const int64_t n = host.shape[1];
    CHECK(n <= slot.arrays.shape[1], "a batch of ", n, " tokens, planned for ", slot.arrays.shape[1]);
    const Tensor device = Tensor::contiguous(slot.arrays.data, DType::i32, {HostBatch::kArrays, n}, slot.arrays.device);
    slot.read.block(Queue::upload);
    device_.start_copy(device, host, Queue::upload);
    slot.copied.record(Queue::upload);
    slot.copied.block(Queue::compute);
    const auto array = [&](int64_t i) { return device.slice(0, i, i + 1).view({n}); };
    return {.tokens = array(0),
            .targets = array(1),
            .positions = array(2),
            .mask = {.first_key = array(3), .end_key = array(4), .first_query = array(5), .end_query = array(6)}};
}

}  // namespace ingot
