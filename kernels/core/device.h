// Devices, on which ops run, and their memory. No CUDA header here: streams and handles are opaque.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/tensor.h"

namespace ingot {

struct CudaContext;  // stream, cuBLASLt handle and workspace: kernels/cuda/context.h

// The streams of a CUDA device. Ops run on `compute`; the others copy, and exchange data with other GPUs, while it
// runs. On the CPU device every call completes its work.
enum class Stream { compute, upload, download, collective };

// A handle that ops take by const reference; cheap to copy.
class Device {
  public:
    static Device cpu();
    // Opens GPU `index`. Throws UserError if this build has no CUDA, or if there is no such GPU.
    static Device cuda(int index);
    // GPU `index` and a stream (cudaStream_t) of the caller's, for the caller's own work; GEMMs do not run on
    // it. While a copy of this handle lives, the GPU is the thread's current one; afterwards the former one is again.
    static Device on_cuda_stream(int index, void* stream);
    // A CUDA device for plans alone, in a build without CUDA too: it has no memory and runs nothing. Plans take it for
    // an H100 of 80 GB.
    static Device planned_cuda();
    struct Planned {
        static constexpr size_t num_multiprocessors = 132;
        static constexpr size_t memory_bytes = size_t{79} << 30;  // as the card shows it
    };
    // Returns whether this program was built with the CUDA device.
    static bool has_cuda();
    // Returns how many GPUs can be used; 0 with the reason in *why (no driver, built without CUDA, ...).
    static int num_cuda_devices(std::string* why);
    // Returns where GPU `index` is, "0000:1B:00.0", without opening it; empty if that cannot be told.
    static std::string pci_bus_id(int index);

    DeviceKind kind() const { return kind_; }
    bool is_cpu() const { return kind_ == DeviceKind::cpu; }
    bool is_planned() const { return kind_ == DeviceKind::cuda && context_ == nullptr; }
    const std::string& name() const { return name_; }
    CudaContext& context() const;  // CUDA only

    // Copies all elements; both tensors contiguous, same dtype and count, each on the host or on this device. A copy
    // that touches the host's memory is complete when it returns.
    void copy(const Tensor& destination, const Tensor& source) const;
    // Sets all bytes, in stream order.
    void fill_bytes(const Tensor& tensor, uint8_t value) const;
    void zero(const Tensor& tensor) const { fill_bytes(tensor, 0); }
    // Copies as copy() does, but returns at once: host memory must come from allocate_host() and be left alone until a
    // DeviceEvent recorded after the copy is reached.
    void start_copy(const Tensor& destination, const Tensor& source, Stream stream = Stream::compute) const;
    // Waits for all work in flight and reports what failed in it.
    void synchronize() const;

    // Returns memory of the device, aligned to 256 bytes, as one allocation. Throws Error with exit code 5 when there
    // is none.
    std::shared_ptr<void> allocate(size_t bytes) const;
    // Returns host memory for start_copy(), zeroed: page-locked for a CUDA device.
    std::shared_ptr<void> allocate_host(size_t bytes) const;
    // Returns how many bytes could be allocated now. CUDA only.
    size_t free_memory() const;

  private:
    DeviceKind kind_ = DeviceKind::cpu;
    std::string name_;
    std::shared_ptr<CudaContext> context_;
};

// A point in the work of a stream (cudaEvent_t).
class DeviceEvent {
  public:
    explicit DeviceEvent(const Device& device);

    void record(Stream stream = Stream::compute);
    // Waits until the point is reached; returns at once where none was recorded. From any thread.
    void wait() const;
    // Work put into `stream` from now on begins after the point is reached. The host does not wait.
    void block(Stream stream) const;
    // Blocks `stream` as block() does, at a point that is recorded outside of the graphs in which this call may stand
    // (DeviceGraph): each launch of the graph waits for the last point recorded before it, if there is one.
    void block_from_outside(Stream stream) const;
    // Returns the seconds between two points that were reached.
    double seconds_since(const DeviceEvent& earlier) const;

  private:
    Device device_;
    bool is_recorded_ = false;
    double seconds_ = 0;           // CPU: when it was recorded
    std::shared_ptr<void> event_;  // CUDA
};

// Measures the time between two points of the compute stream.
class DeviceTimer {
  public:
    explicit DeviceTimer(const Device& device) : begin_(device), end_(device) {}
    void start() { begin_.record(); }
    // Waits for the work since start(), and returns the seconds that it took.
    double stop();

  private:
    DeviceEvent begin_, end_;
};

// Work that is launched again and again with the same memory and shapes. On CUDA the first call records it as a graph,
// and each call launches that graph as one; on the CPU each call does the work.
class DeviceGraph {
  public:
    explicit DeviceGraph(const Device& device) : device_(device) {}
    void run(const std::function<void()>& work);

  private:
    Device device_;
    std::shared_ptr<void> graph_;
};

// All long-lived memory is planned by name before any of it is allocated, so that the plan can be printed without a
// device, compared with what there is, and allocated at once. Tensors start at multiples of 256 bytes.
class MemoryPlan {
  public:
    // `slot` receives the tensor (null data until allocate()). It must stay where it is until then.
    void add(const std::string& name, DType dtype, std::initializer_list<int64_t> shape, Tensor* slot);
    // Makes `*slot` share the memory of the tensor already planned as `name` (e.g. one buffer for all layers).
    void share(const std::string& name, Tensor* slot);

    size_t total_bytes() const { return total_; }
    // Returns one line per name prefix (up to the first '.'), largest first.
    std::string table() const;
    // Allocates everything and fills the slots. `poison` fills the memory with 0xff bytes (NaN in every float format);
    // otherwise it is zeroed.
    std::shared_ptr<void> allocate(const Device& device, bool poison = false);
    // Allocates everything in host memory that `device` copies to and from without waiting.
    std::shared_ptr<void> allocate_host(const Device& device);

  private:
    void place(const std::shared_ptr<void>& memory, const Device& device);
    struct Entry {
        std::string name;
        size_t offset, bytes;
        std::vector<Tensor*> slots;
    };
    std::vector<Entry> entries_;
    size_t total_ = 0;
};

// Returns "1.21 GiB", for messages.
std::string format_bytes(size_t bytes);

}  // namespace ingot
