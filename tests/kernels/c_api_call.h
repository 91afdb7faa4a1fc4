// A call of libingot.so's functions whose every tensor can be laid out anew: for tests of strides.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/c_api.h"
#include "kernels/core/cuda_device.h"
#include "tests/support/tensors.h"

namespace ingot::test {

// Holds bytes where a device can use them; on the CPU exactly as many, so that AddressSanitizer sees each one beyond.
class Memory {
  public:
    Memory(const Device& device, const std::vector<uint8_t>& bytes) : device_(device), host_(bytes) {
        if (device.is_cpu() || bytes.empty()) return;
        memory_ = device.allocate(bytes.size());
        device.copy(view(memory_.get(), device.kind()), view(host_.data(), DeviceKind::cpu));
    }
    uint8_t* data() { return memory_ ? static_cast<uint8_t*>(memory_.get()) : host_.data(); }
    const std::vector<uint8_t>& read() {
        if (memory_) device_.copy(view(host_.data(), DeviceKind::cpu), view(memory_.get(), device_.kind()));
        return host_;
    }

  private:
    Tensor view(void* data, DeviceKind kind) const {
        return Tensor::contiguous(data, DType::u8, {static_cast<int64_t>(host_.size())}, kind);
    }
    Device device_;
    std::vector<uint8_t> host_;
    std::shared_ptr<void> memory_;
};

using Strides = std::vector<int64_t>;

// Visits all index tuples of a shape in order: visit(number, offset in elements by these strides).
template <typename Visit>
void for_elements(const std::vector<int64_t>& shape, const Strides& strides, const Visit& visit) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    for (int64_t number = 0; number < count; ++number) {
        int64_t rest = number, offset = 0;
        for (size_t axis = shape.size(); axis-- > 0; rest /= shape[axis]) offset += rest % shape[axis] * strides[axis];
        visit(number, offset);
    }
}

inline Strides contiguous_strides(const std::vector<int64_t>& shape) {
    Strides strides(shape.size(), 1);
    for (size_t axis = shape.size() - 1; axis-- > 0;) strides[axis] = strides[axis + 1] * shape[axis + 1];
    return strides;
}

// One tensor of a call.
struct Argument {
    std::string name;
    ingot_tensor* place;  // within the call's struct
    DType dtype;
    std::vector<int64_t> shape;
    bool is_written;
    std::shared_ptr<Memory> memory;
    int64_t origin = 0;  // where element 0 lies, in elements
    Strides strides;

    size_t size() const { return static_cast<size_t>(size_of(dtype)); }
    // Returns its elements, one after the other.
    std::vector<uint8_t> elements() {
        const std::vector<uint8_t>& bytes = memory->read();
        std::vector<uint8_t> result;
        for_elements(shape, strides, [&](int64_t, int64_t offset) {
            const auto at = bytes.begin() + static_cast<int64_t>(size()) * (origin + offset);
            result.insert(result.end(), at, at + static_cast<int64_t>(size()));
        });
        return result;
    }
    // Gives it memory of its own with these strides, and the elements; of elements that share memory the last one
    // counts.
    void lay(const Device& device, const Strides& new_strides, const std::vector<uint8_t>& elements) {
        int64_t first = 0, last = 0;
        for_elements(shape, new_strides,
                     [&](int64_t, int64_t offset) { first = std::min(first, offset), last = std::max(last, offset); });
        std::vector<uint8_t> bytes(size() * static_cast<size_t>(last - first + 1), 0xff);
        for_elements(shape, new_strides, [&](int64_t number, int64_t offset) {
            std::memcpy(bytes.data() + size() * static_cast<size_t>(offset - first),
                        elements.data() + size() * static_cast<size_t>(number), size());
        });
        strides = new_strides, origin = -first;
        memory = std::make_shared<Memory>(device, bytes);
        place->data = memory->data() + size() * static_cast<size_t>(origin);
        place->dtype = static_cast<int32_t>(dtype), place->ndim = static_cast<int32_t>(shape.size());
        for (size_t axis = 0; axis < shape.size(); ++axis)
            place->shape[axis] = shape[axis], place->strides[axis] = strides[axis];
    }
    std::vector<double> values() {
        const std::vector<uint8_t> bytes = elements();
        const Device cpu = Device::cpu();
        std::vector<double> result;
        for (size_t at = 0; at < bytes.size(); at += size()) {
            const auto as = [&](auto value) {
                std::memcpy(&value, bytes.data() + at, sizeof value);
                return value;
            };
            switch (dtype) {
                case DType::f64:
                    result.push_back(as(0.0));
                    break;
                case DType::f32:
                    result.push_back(static_cast<double>(as(0.0f)));
                    break;
                case DType::bf16:
                    result.push_back(static_cast<double>(to_float(as(bf16{}))));
                    break;
                case DType::f16:
                    result.push_back(static_cast<double>(to_float(as(f16{}))));
                    break;
                case DType::i32:
                    result.push_back(as(int32_t{0}));
                    break;
                case DType::u8:
                    result.push_back(as(uint8_t{0}));
                    break;
                case DType::e4m3:
                case DType::e5m2:
                    CHECK(false, "the C ABI has no fp8");
            }
        }
        return result;
    }
};

// The CPU, or the stream of the first GPU.
inline ingot_device c_device(const Device& device) {
    return {.struct_size = sizeof(ingot_device),
            .kind = device.is_cpu() ? INGOT_CPU : INGOT_CUDA,
            .index = 0,
            .stream = device.is_cpu() ? nullptr : cuda_stream(device.context())};
}

// A call of one op with memory of its own; always the same numbers.
class Call {
  public:
    Call(const Device& device, DType dtype)
        : dtype(dtype),
          stats(accumulation_dtype(dtype)),
          c_device(test::c_device(device)),
          device_(device),
          loss_scale_(device, DType::f64, {1}, {2}) {}
    template <typename Arguments>
    Arguments& arguments(int (*function)(const ingot_device*, const Arguments*)) {
        const auto given = std::make_shared<Arguments>();
        std::memset(given.get(), 0, sizeof *given);
        given->struct_size = sizeof *given;
        run = [this, given, function] { return function(&c_device, given.get()); };
        return *given;
    }
    void reads(const std::string& name, ingot_tensor& place, DType type, const std::vector<int64_t>& shape,
               const std::vector<double>& values = {}) {
        add(name, place, type, shape, values, false);
    }
    void writes(const std::string& name, ingot_tensor& place, DType type, const std::vector<int64_t>& shape,
                const std::vector<double>& values = {}) {
        add(name, place, type, shape, values, true);
    }
    const double* loss_scale() const { return loss_scale_.tensor().get<double>(); }
    // Returns the bytes of all memory that the call may have written to.
    std::vector<uint8_t> all_memory() {
        std::vector<uint8_t> all;
        for (Argument& argument : all_arguments) {
            const std::vector<uint8_t>& bytes = argument.memory->read();
            all.insert(all.end(), bytes.begin(), bytes.end());
        }
        return all;
    }
    Argument& argument(const std::string& name) {
        for (Argument& each : all_arguments)
            if (each.name == name) return each;
        throw std::logic_error(name);
    }
    const Device& device() const { return device_; }

    const DType dtype, stats;
    ingot_device c_device;
    std::function<int()> run;
    std::vector<Argument> all_arguments;

  private:
    void add(const std::string& name, ingot_tensor& place, DType type, const std::vector<int64_t>& shape,
             std::vector<double> values, bool is_written) {
        Argument argument = {name, &place, type, shape, is_written, nullptr, 0, {}};
        int64_t count = 1;
        for (const int64_t extent : shape) count *= extent;
        if (values.empty() && type != DType::u8) values = rounded(normals(count, 40 + all_arguments.size(), 0.5), type);
        std::vector<uint8_t> elements(argument.size() * static_cast<size_t>(count));
        if (!values.empty()) {
            const Buffer host(Device::cpu(), type, {count}, values);
            std::memcpy(elements.data(), host.tensor().data, elements.size());
        }
        argument.lay(device_, contiguous_strides(shape), elements);
        all_arguments.push_back(argument);
    }
    const Device device_;
    const Buffer loss_scale_;
};

}  // namespace ingot::test
