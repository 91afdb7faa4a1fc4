#include "src/model/batch.h"

namespace ingot {

BatchBuffers::BatchBuffers(const Device& device, int64_t max_tokens, MemoryPlan* plan, MemoryPlan* host_plan)
    : device_(device), slots_{Slot(device), Slot(device)} {
    for (int i = 0; i < kSlots; ++i) {
        Slot& slot = slots_[static_cast<size_t>(i)];
        plan->add(join("batch.", i), DType::i32, {MicroBatch::kArrays, max_tokens}, &slot.arrays);
        if (host_plan != nullptr) slot.host.plan(join("batch.host", i), max_tokens, host_plan);
    }
}

void BatchBuffers::advance() {
    slots_[static_cast<size_t>(current_)].read.record(Stream::compute);
    current_ = (current_ + 1) % kSlots;
    slots_[static_cast<size_t>(current_)].copied.wait();
}

HostBatch* BatchBuffers::next() {
    advance();
    return &slots_[static_cast<size_t>(current_)].host;
}

MicroBatch BatchBuffers::upload(const HostBatch& batch) {
    Slot& slot = slots_[static_cast<size_t>(current_)];
    const Tensor host = batch.all();
    const int64_t n = host.shape[1];
    CHECK(n <= slot.arrays.shape[1], "a batch of ", n, " tokens, planned for ", slot.arrays.shape[1]);
    const Tensor device =
        Tensor::contiguous(slot.arrays.data, DType::i32, {MicroBatch::kArrays, n}, slot.arrays.device);
    slot.read.block(Stream::upload);
    device_.start_copy(device, host, Stream::upload);
    slot.copied.record(Stream::upload);
    slot.copied.block(Stream::compute);
    return MicroBatch::of(device);
}

}  // namespace ingot
