#include "kernels/core/tensor.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace ingot {

Tensor Tensor::contiguous(void* data, DType dtype, std::initializer_list<int64_t> shape, DeviceKind device) {
    CHECK(shape.size() >= 1 && shape.size() <= kMaxRank, "a tensor has 1 to ", kMaxRank, " axes, not ", shape.size());
    Tensor tensor;
    tensor.data = data;
    tensor.dtype = dtype;
    tensor.device = device;
    tensor.rank = static_cast<int>(shape.size());
    int axis = 0;
    for (const int64_t extent : shape) {
        CHECK(extent >= 0, "axis ", axis, " has a negative extent ", extent);
        tensor.shape[axis++] = extent;
    }
    int64_t stride = 1;
    for (axis = tensor.rank - 1; axis >= 0; --axis) {
        tensor.stride[axis] = stride;
        stride *= tensor.shape[axis];
    }
    return tensor;
}

int64_t Tensor::numel() const {
    if (rank == 0) return 0;
    int64_t count = 1;
    for (int axis = 0; axis < rank; ++axis) count *= shape[axis];
    return count;
}

bool Tensor::is_contiguous() const {
    if (numel() == 0) return true;
    int64_t expected = 1;
    for (int axis = rank - 1; axis >= 0; --axis) {
        if (shape[axis] != 1 && stride[axis] != expected) return false;
        expected *= shape[axis];
    }
    return true;
}

bool Tensor::overlaps_itself() const {
    if (numel() == 0) return false;
    std::vector<std::pair<int64_t, int64_t>> axes;  // stride, extent
    for (int axis = 0; axis < rank; ++axis)
        if (shape[axis] > 1) axes.emplace_back(stride[axis], shape[axis]);
    std::sort(axes.begin(), axes.end());
    // From the shortest stride to the longest, each step must lead past all elements that the axes before it reach.
    int64_t last = 0;
    for (const auto& [step, extent] : axes) {
        if (step <= last) return true;
        last += (extent - 1) * step;
    }
    return false;
}

Tensor Tensor::view(std::initializer_list<int64_t> new_shape) const {
    CHECK(is_contiguous(), "view() needs a contiguous tensor, this is ", describe());
    const Tensor result = contiguous(data, dtype, new_shape, device);
    CHECK(result.numel() == numel(), "view() of ", describe(), " as ", result.describe());
    return result;
}

Tensor Tensor::slice(int axis, int64_t begin, int64_t end) const {
    CHECK(axis >= 0 && axis < rank && 0 <= begin && begin <= end && end <= shape[axis], "slice [", begin, ", ", end,
          ") of axis ", axis, " of ", describe());
    Tensor result = *this;
    result.data = static_cast<uint8_t*>(data) + begin * stride[axis] * size_of(dtype);
    result.shape[axis] = end - begin;
    return result;
}

Tensor Tensor::split_last(int64_t count, int64_t size) const {
    CHECK(rank >= 1 && rank < kMaxRank && shape[rank - 1] == count * size && stride[rank - 1] == 1, "split_last(",
          count, ", ", size, ") of ", describe());
    Tensor result = *this;
    result.rank = rank + 1;
    result.shape[rank - 1] = count;
    result.stride[rank - 1] = size;
    result.shape[rank] = size;
    result.stride[rank] = 1;
    return result;
}

bool Tensor::has_shape(std::initializer_list<int64_t> expected) const {
    if (static_cast<int>(expected.size()) != rank) return false;
    int axis = 0;
    for (const int64_t extent : expected)
        if (shape[axis++] != extent) return false;
    return true;
}

std::string Tensor::describe() const {
    if (data == nullptr && rank == 0) return "no tensor";
    std::string text = join(name_of(dtype), device == DeviceKind::cuda ? " on CUDA (" : " (");
    for (int axis = 0; axis < rank; ++axis) text += join(axis > 0 ? ", " : "", shape[axis]);
    text += ")";
    if (!is_contiguous()) {
        text += " strides (";
        for (int axis = 0; axis < rank; ++axis) text += join(axis > 0 ? ", " : "", stride[axis]);
        text += ")";
    }
    return text;
}

namespace {

void check_kind(const char* op, const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape,
                DType dtype, DeviceKind device) {
    const bool matches =
        tensor.data != nullptr && tensor.has_shape(shape) && tensor.dtype == dtype && tensor.device == device;
    if (matches) return;
    const Tensor expected = Tensor::contiguous(nullptr, dtype, shape, device);
    CHECK(matches, op, ": ", name, " is ", tensor.describe(), tensor.data == nullptr ? " (null)" : "", ", expected ",
          expected.describe());
}

}  // namespace

void check_tensor(const char* op, const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape,
                  DType dtype, DeviceKind device) {
    check_kind(op, name, tensor, shape, dtype, device);
    CHECK(tensor.is_contiguous(), op, ": ", name, " is ", tensor.describe(), ", it must be contiguous");
}

void check_view(const char* op, const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape,
                DType dtype, DeviceKind device) {
    check_kind(op, name, tensor, shape, dtype, device);
    const int last = tensor.rank - 1;
    CHECK(tensor.numel() == 0 || tensor.shape[last] == 1 || tensor.stride[last] == 1, op, ": ", name, " is ",
          tensor.describe(), ", its last axis must be contiguous");
}

void check_output_view(const char* op, const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape,
                       DType dtype, DeviceKind device) {
    check_view(op, name, tensor, shape, dtype, device);
    CHECK(!tensor.overlaps_itself(), op, ": ", name, " is ", tensor.describe(),
          ", it is written, so that no two of its elements may share memory");
}

void check_workspace(const char* op, const Tensor& workspace, size_t bytes, DeviceKind device) {
    if (bytes == 0) return;
    CHECK(workspace.data != nullptr && workspace.device == device && workspace.is_contiguous() &&
              static_cast<size_t>(workspace.bytes()) >= bytes,
          op, ": the workspace is ", workspace.describe(), ", it must be contiguous and have ", bytes, " bytes: ask ",
          op, "_workspace() how many");
    CHECK(reinterpret_cast<uintptr_t>(workspace.data) % 16 == 0, op,
          ": the workspace is not aligned to 16 bytes: give memory that begins at a multiple of 16");
}

}  // namespace ingot
