#include "kernels/core/device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iomanip>
#include <map>

#include "kernels/core/cuda_device.h"
#include "kernels/core/measure.h"

namespace ingot {

namespace {

constexpr size_t kAlignment = 256;  // what cudaMalloc gives; also a multiple of every vector width

size_t align_up(size_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

Device Device::cpu() {
    Device device;
    device.name_ = "CPU";
    return device;
}

Device Device::planned_cuda() {
    Device device;
    device.kind_ = DeviceKind::cuda;
    device.name_ = "CUDA (planned)";
    return device;
}

Device Device::cuda(int index) {
    Device device;
    device.kind_ = DeviceKind::cuda;
    device.context_ = open_cuda_context(index, &device.name_);
    return device;
}

Device Device::on_cuda_stream(int index, void* stream) {
    Device device;
    device.kind_ = DeviceKind::cuda;
    device.context_ = borrow_cuda_stream(index, stream, &device.name_);
    return device;
}

CudaContext& Device::context() const {
    CHECK(context_ != nullptr, "a CUDA op was called with the CPU device, or with one for plans alone");
    return *context_;
}

void Device::copy(const Tensor& destination, const Tensor& source) const {
    start_copy(destination, source, Stream::compute);
    const bool is_host_to_host = destination.device == DeviceKind::cpu && source.device == DeviceKind::cpu;
    const bool is_in_device = destination.device == DeviceKind::cuda && source.device == DeviceKind::cuda;
    if (!is_host_to_host && !is_in_device) cuda_synchronize(context());
}

void Device::start_copy(const Tensor& destination, const Tensor& source, Stream stream) const {
    CHECK(destination.is_contiguous() && source.is_contiguous() && destination.dtype == source.dtype &&
              destination.numel() == source.numel(),
          "copy of ", source.describe(), " to ", destination.describe());
    const size_t bytes = static_cast<size_t>(source.bytes());
    if (bytes == 0) return;
    if (destination.device == DeviceKind::cpu && source.device == DeviceKind::cpu) {
        std::memmove(destination.data, source.data, bytes);
        return;
    }
    cuda_start_copy(context(), stream, destination.data, source.data, bytes);
}

void Device::fill_bytes(const Tensor& tensor, uint8_t value) const {
    CHECK(tensor.is_contiguous(), "fill of ", tensor.describe());
    if (tensor.bytes() == 0) return;
    if (tensor.device == DeviceKind::cpu) {
        std::memset(tensor.data, value, static_cast<size_t>(tensor.bytes()));
        return;
    }
    cuda_fill(context(), tensor.data, value, static_cast<size_t>(tensor.bytes()));
}

void Device::synchronize() const {
    if (!is_cpu()) cuda_synchronize(context());
}

std::shared_ptr<void> Device::allocate(size_t bytes) const {
    CHECK(!is_planned(), "memory was asked of a device for plans alone");
    bytes = align_up(std::max<size_t>(bytes, 1));
    if (!is_cpu()) return cuda_allocate(context(), bytes);
    void* memory = std::aligned_alloc(kAlignment, bytes);
    if (memory == nullptr)
        throw Error(kExitAllocation, join("could not allocate ", format_bytes(bytes),
                                          " of host memory: use a smaller "
                                          "training.micro_batch_size or training.recompute = \"block\""));
    return {memory, std::free};
}

std::shared_ptr<void> Device::allocate_host(size_t bytes) const {
    if (!is_cpu()) return cuda_allocate_host(context(), align_up(std::max<size_t>(bytes, 1)));
    std::shared_ptr<void> memory = Device::cpu().allocate(bytes);
    std::memset(memory.get(), 0, bytes);
    return memory;
}

size_t Device::free_memory() const {
    return cuda_free_memory(context());
}

DeviceEvent::DeviceEvent(const Device& device) : device_(device) {
    if (!device.is_cpu() && !device.is_planned()) event_ = cuda_create_event(device.context());
}

void DeviceEvent::record(Stream stream) {
    is_recorded_ = true;
    if (event_) return cuda_record_event(device_.context(), event_.get(), stream);
    seconds_ = seconds_now();
}

void DeviceEvent::wait() const {
    if (event_ && is_recorded_) cuda_wait_event(event_.get());
}

void DeviceEvent::block(Stream stream) const {
    if (event_ && is_recorded_) cuda_block_stream(device_.context(), event_.get(), stream);
}

void DeviceEvent::block_from_outside(Stream stream) const {
    if (event_) cuda_block_stream_from_outside(device_.context(), event_.get(), stream);
}

double DeviceEvent::seconds_since(const DeviceEvent& earlier) const {
    CHECK(is_recorded_ && earlier.is_recorded_, "the time between events that were not recorded");
    if (event_) return cuda_seconds_between(earlier.event_.get(), event_.get());
    return seconds_ - earlier.seconds_;
}

double DeviceTimer::stop() {
    end_.record();
    end_.wait();
    return end_.seconds_since(begin_);
}

void DeviceGraph::run(const std::function<void()>& work) {
    if (!device_.is_cpu()) {
        if (!graph_) graph_ = cuda_record_graph(device_.context(), work);
        cuda_launch_graph(device_.context(), graph_.get());
        return;
    }
    work();
}

void MemoryPlan::add(const std::string& name, DType dtype, std::initializer_list<int64_t> shape, Tensor* slot) {
    for (const Entry& entry : entries_) CHECK(entry.name != name, "memory plan: ", name, " is planned twice");
    *slot = Tensor::contiguous(nullptr, dtype, shape);
    const size_t bytes = static_cast<size_t>(slot->bytes());
    entries_.push_back({name, total_, bytes, {slot}});
    total_ += align_up(bytes);
}

void MemoryPlan::share(const std::string& name, Tensor* slot) {
    for (Entry& entry : entries_) {
        if (entry.name != name) continue;
        *slot = *entry.slots[0];
        entry.slots.push_back(slot);
        return;
    }
    CHECK(false, "memory plan: ", name, " is not planned");
}

std::string MemoryPlan::table() const {
    std::map<std::string, size_t> sums;
    for (const Entry& entry : entries_) sums[entry.name.substr(0, entry.name.find('.'))] += align_up(entry.bytes);
    std::vector<std::pair<std::string, size_t>> rows(sums.begin(), sums.end());
    std::stable_sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
    std::ostringstream text;
    for (const auto& [name, bytes] : rows)
        text << "  " << std::left << std::setw(28) << name << std::right << std::setw(12) << format_bytes(bytes)
             << "\n";
    text << "  " << std::left << std::setw(28) << "total" << std::right << std::setw(12) << format_bytes(total_)
         << "\n";
    return text.str();
}

void MemoryPlan::place(const std::shared_ptr<void>& memory, const Device& device) {
    for (Entry& entry : entries_)
        for (Tensor* slot : entry.slots) {
            slot->data = static_cast<uint8_t*>(memory.get()) + entry.offset;
            slot->device = device.kind();
        }
}

std::shared_ptr<void> MemoryPlan::allocate(const Device& device, bool poison) {
    std::shared_ptr<void> memory = device.allocate(total_);
    device.fill_bytes(Tensor::contiguous(memory.get(), DType::u8, {static_cast<int64_t>(total_)}, device.kind()),
                      poison ? 0xff : 0);
    place(memory, device);
    return memory;
}

std::shared_ptr<void> MemoryPlan::allocate_host(const Device& device) {
    std::shared_ptr<void> memory = device.allocate_host(total_);
    place(memory, Device::cpu());
    return memory;
}

std::string format_bytes(size_t bytes) {
    const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = static_cast<double>(bytes);
    int unit = 0;
    while (value >= 1024 && unit < 4) {
        value /= 1024;
        ++unit;
    }
    std::ostringstream text;
    text << std::fixed << std::setprecision(unit == 0 ? 0 : 2) << value << " " << units[unit];
    return text.str();
}

}  // namespace ingot
