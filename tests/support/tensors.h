// Tensors that own their memory, and comparisons, for tests.
#pragma once

#include <gtest/gtest.h>

#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/device.h"

namespace ingot::test {

// Elements before and after each row (the last dimension) of a buffer that are in none.
struct Margins {
    int64_t before = 0, after = 0;
};

// A tensor on `device` in memory of its own, poisoned with NaN, with a fence of sentinel bytes on both sides and, if
// asked, margins between its rows, which hold NaN and must keep it.
class Buffer {
  public:
    Buffer(const Device& device, DType dtype, std::initializer_list<int64_t> shape)
        : Buffer(Margins{}, device, dtype, shape) {}
    Buffer(Margins margins, const Device& device, DType dtype, std::initializer_list<int64_t> shape);
    // Host values, rounded to dtype (i32: converted), then copied to the device.
    Buffer(const Device& device, DType dtype, std::initializer_list<int64_t> shape, const std::vector<double>& values)
        : Buffer(device, dtype, shape) {
        set(values);
    }
    Buffer(Margins margins, const Device& device, DType dtype, std::initializer_list<int64_t> shape,
           const std::vector<double>& values)
        : Buffer(margins, device, dtype, shape) {
        set(values);
    }
    ~Buffer();  // fails the test if a fence or a margin was written over
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    operator const Tensor&() const { return tensor_; }
    const Tensor& tensor() const { return tensor_; }
    std::vector<double> values() const;  // read back and widened, without the margins
    void set(const std::vector<double>& values) const;

  private:
    // Of an element, counted from the first margin.
    size_t place_of(size_t i) const {
        const size_t width = static_cast<size_t>(width_),
                     margins = static_cast<size_t>(margins_.before + margins_.after);
        return margins == 0 ? i : i / width * (width + margins) + static_cast<size_t>(margins_.before) + i % width;
    }
    Device device_;
    Margins margins_;
    int64_t width_ = 0, num_rows_ = 0, bytes_ = 0;
    std::shared_ptr<void> memory_;
    Tensor tensor_, all_;
};

// Standard normals times `scale` plus `offset`; a pure function of (seed, index).
std::vector<double> normals(int64_t count, uint64_t seed, double scale = 1, double offset = 0);
// Rounds each value as a store in `dtype` would.
std::vector<double> rounded(std::vector<double> values, DType dtype);

// ||actual - expected|| / ||expected||. NaN anywhere, or a size that differs, gives infinity.
double relative_error(const std::vector<double>& actual, const std::vector<double>& expected);
double max_abs_error(const std::vector<double>& actual, const std::vector<double>& expected);

// Passes only if relative_error(actual, expected) <= bound; written so that NaN fails.
testing::AssertionResult close(const std::vector<double>& actual, const std::vector<double>& expected, double bound);
// Bit for bit (values widened exactly); NaN never equals.
testing::AssertionResult same(const std::vector<double>& actual, const std::vector<double>& expected);

// The tolerance of a kernel: inputs are rounded to the dtype first. `plain` is the CPU twin in fp32, its outputs
// rounded to the dtype once; the kernel's relative L2 error against `exact` may be twice the plain version's, plus a
// floor: two ulps of fp32, because both compute in fp32 and a scalar that belongs to a row shifts all of its elements
// alike, plus two ulps of the dtype on one element, the largest: a value next to a tie may round either way, and in a
// tensor of few elements the plain version may happen to be exact.
double precision_bound(DType dtype, const std::vector<double>& plain, const std::vector<double>& exact);

// The CUDA device, or null with the reason in *why: such tests say that they were skipped, and why.
std::shared_ptr<Device> cuda_device(std::string* why);

}  // namespace ingot::test

#define INGOT_CUDA_OR_SKIP(variable)                                                                         \
    std::string variable##_why;                                                                              \
    const std::shared_ptr<::ingot::Device> variable##_pointer = ::ingot::test::cuda_device(&variable##_why); \
    if (!variable##_pointer) GTEST_SKIP() << "needs a GPU: " << variable##_why;                              \
    const ::ingot::Device& variable = *variable##_pointer
