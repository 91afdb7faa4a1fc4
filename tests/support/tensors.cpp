#include "tests/support/tensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/core/rng.h"

#ifdef __clang__
// LeakSanitizer reports memory that clang's OpenMP runtime allocates for its threads and never frees.
extern "C" const char* __lsan_default_suppressions() {
    return "leak:libomp.so\n";
}
#endif

namespace ingot::test {

namespace {

constexpr int64_t kFence = 256;  // bytes on each side; keeps the alignment that a plan gives
constexpr uint8_t kSentinel = 0xa5;

void store(DType dtype, void* data, int64_t index, double value) {
    switch (dtype) {
        case DType::f64:
            static_cast<double*>(data)[index] = value;
            break;
        case DType::f32:
            static_cast<float*>(data)[index] = static_cast<float>(value);
            break;
        case DType::bf16:
            static_cast<bf16*>(data)[index] = to_bf16(static_cast<float>(value));
            break;
        case DType::f16:
            static_cast<f16*>(data)[index] = to_f16(static_cast<float>(value));
            break;
        case DType::i32:
            static_cast<int32_t*>(data)[index] = static_cast<int32_t>(value);
            break;
        case DType::u8:
            static_cast<uint8_t*>(data)[index] = static_cast<uint8_t>(value);
            break;
    }
}

double load(DType dtype, const void* data, int64_t index) {
    switch (dtype) {
        case DType::f64:
            return static_cast<const double*>(data)[index];
        case DType::f32:
            return static_cast<const float*>(data)[index];
        case DType::bf16:
            return to_float(static_cast<const bf16*>(data)[index]);
        case DType::f16:
            return to_float(static_cast<const f16*>(data)[index]);
        case DType::i32:
            return static_cast<const int32_t*>(data)[index];
        case DType::u8:
            return static_cast<const uint8_t*>(data)[index];
    }
    return std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

Buffer::Buffer(const Device& device, DType dtype, std::initializer_list<int64_t> shape) : device_(device) {
    tensor_ = Tensor::contiguous(nullptr, dtype, shape, device.kind());
    const int64_t bytes = tensor_.bytes();
    memory_ = device.allocate(static_cast<size_t>(bytes + 2 * kFence));
    all_ = Tensor::contiguous(memory_.get(), DType::u8, {bytes + 2 * kFence}, device.kind());
    tensor_.data = static_cast<uint8_t*>(memory_.get()) + kFence;
    device.fill_bytes(all_, kSentinel);
    device.fill_bytes(tensor_, 0xff);
}

Buffer::Buffer(const Device& device, DType dtype, std::initializer_list<int64_t> shape,
               const std::vector<double>& values)
    : Buffer(device, dtype, shape) {
    set(values);
}

void Buffer::set(const std::vector<double>& values) {
    CHECK(static_cast<int64_t>(values.size()) == tensor_.numel(), values.size(), " values for ", tensor_.describe());
    std::vector<uint8_t> bytes(static_cast<size_t>(tensor_.bytes()));
    for (size_t i = 0; i < values.size(); ++i) store(tensor_.dtype, bytes.data(), static_cast<int64_t>(i), values[i]);
    Tensor host = tensor_;
    host.data = bytes.data();
    host.device = DeviceKind::cpu;
    device_.copy(tensor_, host);
}

std::vector<double> Buffer::values() const {
    std::vector<uint8_t> bytes(static_cast<size_t>(tensor_.bytes()));
    Tensor host = tensor_;
    host.data = bytes.data();
    host.device = DeviceKind::cpu;
    device_.copy(host, tensor_);
    std::vector<double> values(static_cast<size_t>(tensor_.numel()));
    for (size_t i = 0; i < values.size(); ++i) values[i] = load(tensor_.dtype, bytes.data(), static_cast<int64_t>(i));
    return values;
}

Buffer::~Buffer() {
    std::vector<uint8_t> bytes(static_cast<size_t>(all_.bytes()));
    device_.copy(Tensor::contiguous(bytes.data(), DType::u8, {all_.numel()}), all_);
    for (int64_t i = 0; i < kFence; ++i) {
        if (bytes[static_cast<size_t>(i)] == kSentinel && bytes[bytes.size() - 1 - static_cast<size_t>(i)] == kSentinel)
            continue;
        ADD_FAILURE() << "a fence round " << tensor_.describe() << " was written over, " << i << " bytes from its end";
        return;
    }
}

std::vector<double> normals(int64_t count, uint64_t seed, double scale, double offset) {
    std::vector<double> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i) values[i] = offset + scale * random_normal(seed, 0, i);
    return values;
}

std::vector<double> rounded(const std::vector<double>& values, DType dtype) {
    std::vector<double> result(values.size());
    double cell = 0;
    for (size_t i = 0; i < values.size(); ++i) {
        store(dtype, &cell, 0, values[i]);
        result[i] = load(dtype, &cell, 0);
    }
    return result;
}

double relative_error(const std::vector<double>& actual, const std::vector<double>& expected) {
    if (actual.size() != expected.size()) return std::numeric_limits<double>::infinity();
    double difference = 0, norm = 0;
    for (size_t i = 0; i < actual.size(); ++i) {
        difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
        norm += expected[i] * expected[i];
    }
    if (!(difference >= 0) || !(norm >= 0)) return std::numeric_limits<double>::infinity();
    if (difference == 0) return 0;
    return std::sqrt(difference / norm);
}

double max_abs_error(const std::vector<double>& actual, const std::vector<double>& expected) {
    if (actual.size() != expected.size()) return std::numeric_limits<double>::infinity();
    double worst = 0;
    for (size_t i = 0; i < actual.size(); ++i) {
        const double difference = std::abs(actual[i] - expected[i]);
        if (!(difference <= worst))
            worst = difference == difference ? difference : std::numeric_limits<double>::infinity();
    }
    return worst;
}

testing::AssertionResult close(const std::vector<double>& actual, const std::vector<double>& expected, double bound) {
    const double error = relative_error(actual, expected);
    if (error <= bound) return testing::AssertionSuccess();
    return testing::AssertionFailure() << "relative error " << error << " > " << bound << " over " << expected.size()
                                       << " elements";
}

testing::AssertionResult same(const std::vector<double>& actual, const std::vector<double>& expected) {
    if (actual.size() != expected.size())
        return testing::AssertionFailure() << actual.size() << " elements, expected " << expected.size();
    for (size_t i = 0; i < actual.size(); ++i)
        if (!(actual[i] == expected[i]) || std::signbit(actual[i]) != std::signbit(expected[i]))
            return testing::AssertionFailure()
                   << "element " << i << " is " << actual[i] << ", expected " << expected[i];
    return testing::AssertionSuccess();
}

double precision_bound(DType dtype, const std::vector<double>& plain, const std::vector<double>& exact) {
    double squares = 0, largest = 0;
    for (const double value : exact) {
        squares += value * value;
        largest = std::max(largest, std::abs(value));
    }
    const double ulp = dtype == DType::bf16 ? 0x1p-7 : dtype == DType::f16 ? 0x1p-10 : 0;
    return 2 * relative_error(plain, exact) + 2 * 0x1p-23 + (squares > 0 ? 2 * ulp * largest / std::sqrt(squares) : 0);
}

std::shared_ptr<Device> cuda_device(std::string* why) {
    if (Device::num_cuda_devices(why) == 0) return nullptr;
    static const std::shared_ptr<Device> device = std::make_shared<Device>(Device::cuda(0));
    return device;
}

}  // namespace ingot::test
