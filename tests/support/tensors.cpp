#include "tests/support/tensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/core/rng.h"

#ifdef __clang__
// LeakSanitizer reports memory that clang's OpenMP runtime allocates for its threads and never frees.
extern "C" const char* __lsan_default_suppressions() {
    return "leak:libomp.so\n";
}
#endif

#ifdef __GLIBC__
#include <malloc.h>
// Large vectors come and go: the process keeps their pages, which the system would otherwise clear again each time.
[[maybe_unused]] const int keeps_freed_memory = mallopt(M_MMAP_MAX, 0) + mallopt(M_TRIM_THRESHOLD, -1);
#endif

namespace ingot::test {

namespace {

constexpr int64_t kFence = 256;                      // bytes on each side; keeps the alignment that a plan gives
constexpr uint8_t kSentinel = 0xa5, kPoison = 0xff;  // 0xff in every byte is a NaN of every floating-point type

// function(i) for i in [0, count), by all threads where there is much to do.
template <typename Function>
void for_each_index(size_t count, const Function& function) {
#pragma omp parallel for schedule(static) if (count > 20000)
    for (size_t i = 0; i < count; ++i) function(i);
}

template <typename Function>
void with_type(DType dtype, const Function& function) {
    switch (dtype) {
        case DType::f64:
            return function(double{});
        case DType::f32:
            return function(float{});
        case DType::bf16:
            return function(bf16{});
        case DType::f16:
            return function(f16{});
        case DType::i32:
            return function(int32_t{});
        case DType::u8:
            return function(uint8_t{});
        case DType::e4m3:
            return function(e4m3{});
        case DType::e5m2:
            return function(e5m2{});
    }
}

template <typename T>
T narrow(double value) {
    if constexpr (std::is_same_v<T, bf16>)
        return to_bf16(static_cast<float>(value));
    else if constexpr (std::is_same_v<T, f16>)
        return to_f16(static_cast<float>(value));
    else if constexpr (std::is_same_v<T, e4m3>)
        return to_e4m3(static_cast<float>(value));
    else if constexpr (std::is_same_v<T, e5m2>)
        return to_e5m2(static_cast<float>(value));
    else
        return static_cast<T>(value);
}

template <typename T>
double widen(T value) {
    if constexpr (std::is_arithmetic_v<T>)
        return static_cast<double>(value);
    else
        return to_float(value);
}

}  // namespace

Buffer::Buffer(Margins margins, const Device& device, DType dtype, std::initializer_list<int64_t> shape)
    : device_(device), margins_(margins) {
    tensor_ = Tensor::contiguous(nullptr, dtype, shape, device.kind());
    const int last = tensor_.rank - 1;
    width_ = last < 0 ? 1 : tensor_.shape[last];
    const int64_t row = margins.before + width_ + margins.after;
    num_rows_ = width_ == 0 ? 0 : tensor_.numel() / width_;
    for (int axis = 0; axis < last; ++axis) tensor_.stride[axis] = tensor_.stride[axis] / width_ * row;
    bytes_ = num_rows_ * row * size_of(dtype);
    memory_ = device.allocate(static_cast<size_t>(bytes_ + 2 * kFence));
    all_ = Tensor::contiguous(memory_.get(), DType::u8, {bytes_ + 2 * kFence}, device.kind());
    tensor_.data = static_cast<uint8_t*>(memory_.get()) + kFence + margins.before * size_of(dtype);
    device.fill_bytes(all_, kSentinel);
    device.fill_bytes(all_.slice(0, kFence, kFence + bytes_), kPoison);
}

void Buffer::set(const std::vector<double>& values) const {
    CHECK(static_cast<int64_t>(values.size()) == tensor_.numel(), values.size(), " values for ", tensor_.describe());
    const auto bytes = std::make_unique_for_overwrite<uint8_t[]>(static_cast<size_t>(bytes_));
    if (margins_.before + margins_.after > 0) std::memset(bytes.get(), kPoison, static_cast<size_t>(bytes_));
    with_type(tensor_.dtype, [&](auto type) {
        auto* const to = reinterpret_cast<decltype(type)*>(bytes.get());
        for_each_index(values.size(), [&](size_t i) { to[place_of(i)] = narrow<decltype(type)>(values[i]); });
    });
    device_.copy(all_.slice(0, kFence, kFence + bytes_), Tensor::contiguous(bytes.get(), DType::u8, {bytes_}));
}

std::vector<double> Buffer::values() const {
    const auto bytes = std::make_unique_for_overwrite<uint8_t[]>(static_cast<size_t>(bytes_));
    device_.copy(Tensor::contiguous(bytes.get(), DType::u8, {bytes_}), all_.slice(0, kFence, kFence + bytes_));
    std::vector<double> values(static_cast<size_t>(tensor_.numel()));
    with_type(tensor_.dtype, [&](auto type) {
        const auto* const from = reinterpret_cast<const decltype(type)*>(bytes.get());
        for_each_index(values.size(), [&](size_t i) { values[i] = widen(from[place_of(i)]); });
    });
    return values;
}

Buffer::~Buffer() {
    // All of it is read back only where there are margins in it.
    const bool has_margins = margins_.before + margins_.after > 0;
    const int64_t end = all_.numel();
    std::vector<uint8_t> bytes(static_cast<size_t>(has_margins ? end : 2 * kFence));
    if (has_margins) {
        device_.copy(Tensor::contiguous(bytes.data(), DType::u8, {end}), all_);
    } else {
        device_.copy(Tensor::contiguous(bytes.data(), DType::u8, {kFence}), all_.slice(0, 0, kFence));
        device_.copy(Tensor::contiguous(bytes.data() + kFence, DType::u8, {kFence}), all_.slice(0, end - kFence, end));
    }
    for (int64_t i = 0; i < kFence; ++i) {
        if (bytes[static_cast<size_t>(i)] == kSentinel && bytes[bytes.size() - 1 - static_cast<size_t>(i)] == kSentinel)
            continue;
        ADD_FAILURE() << "a fence round " << tensor_.describe() << " was written over, " << i << " bytes from its end";
        return;
    }
    if (!has_margins) return;
    const int64_t size = size_of(tensor_.dtype), row = (margins_.before + width_ + margins_.after) * size;
    for (int64_t i = 0; i < bytes_; ++i) {
        const int64_t at = i % row;
        if (at >= margins_.before * size && at < (margins_.before + width_) * size) continue;
        if (bytes[static_cast<size_t>(kFence + i)] == kPoison) continue;
        ADD_FAILURE() << "the margin of row " << i / row << " of " << tensor_.describe() << " was written over";
        return;
    }
}

std::vector<double> normals(int64_t count, uint64_t seed, double scale, double offset) {
    std::vector<double> values(static_cast<size_t>(count));
    for_each_index(values.size(), [&](size_t i) { values[i] = offset + scale * random_normal(seed, 0, i); });
    return values;
}

std::vector<double> rounded(std::vector<double> values, DType dtype) {
    with_type(dtype, [&](auto type) {
        for_each_index(values.size(), [&](size_t i) { values[i] = widen(narrow<decltype(type)>(values[i])); });
    });
    return values;
}

double relative_error(const std::vector<double>& actual, const std::vector<double>& expected) {
    if (actual.size() != expected.size()) return std::numeric_limits<double>::infinity();
    double difference = 0, norm = 0;
#pragma omp parallel for reduction(+ : difference, norm) if (actual.size() > 20000)
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
