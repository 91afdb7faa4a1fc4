// A tensor is a view: pointer, dtype, shape, strides. It owns nothing; memory comes from a MemoryPlan (device.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/core/check.h"
#include "kernels/core/dtype.h"

namespace ingot {

enum class DeviceKind : uint8_t { cpu, cuda };

struct Tensor {
    static constexpr int kMaxRank = 4;

    void* data = nullptr;
    DType dtype = DType::f32;
    DeviceKind device = DeviceKind::cpu;
    int rank = 0;
    int64_t shape[kMaxRank] = {};
    int64_t stride[kMaxRank] = {};  // in elements

    // A contiguous view of `data`, row-major.
    static Tensor contiguous(void* data, DType dtype, std::initializer_list<int64_t> shape,
                             DeviceKind device = DeviceKind::cpu);

    explicit operator bool() const { return data != nullptr; }
    int64_t numel() const;
    int64_t bytes() const { return numel() * size_of(dtype); }
    bool is_contiguous() const;  // ignores strides of axes of one element, and of a tensor without elements
    // Returns whether two elements may share memory, by shape and strides: an expanded axis, or rows closer than they
    // are long. Views that interleave in other ways than the slices of one array are taken to overlap.
    bool overlaps_itself() const;

    // Returns the elements as T; refuses another dtype. It does not check the device.
    template <typename T>
    T* get() const {
        CHECK(dtype == kDTypeOf<T>, "tensor holds ", name_of(dtype), ", not ", name_of(kDTypeOf<T>));
        return static_cast<T*>(data);
    }

    // Returns the same elements with another shape; contiguous tensors only.
    Tensor view(std::initializer_list<int64_t> new_shape) const;
    // Returns elements [begin, end) along `axis`.
    Tensor slice(int axis, int64_t begin, int64_t end) const;
    // Splits the last axis into (count, size): (N, H * HS) becomes (N, H, HS). Strides stay.
    Tensor split_last(int64_t count, int64_t size) const;

    bool has_shape(std::initializer_list<int64_t> expected) const;
    std::string describe() const;  // "bf16 (64, 768)", for error messages
};

// An op's checks of its tensors: every stride of every tensor is either honoured by the op or refused here. All throw
// Error unless the tensor has memory, this shape, dtype and device. check_tensor() asks for contiguous elements as
// well. check_view(), for what is read, asks for a contiguous last axis alone: the other strides are free, and elements
// may share memory. check_output_view(), for what is written, also asks that no two elements share memory.
void check_tensor(const char* op, const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape,
                  DType dtype, DeviceKind device);
void check_view(const char* op, const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape,
                DType dtype, DeviceKind device);
void check_output_view(const char* op, const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape,
                       DType dtype, DeviceKind device);
// Scratch memory: at least `bytes`, contiguous, at a multiple of 16 bytes. It may be no tensor where 0 bytes are
// needed.
void check_workspace(const char* op, const Tensor& workspace, size_t bytes, DeviceKind device);

}  // namespace ingot
