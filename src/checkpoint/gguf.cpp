#include "src/checkpoint/gguf.h"

#include <bit>
#include <cstring>
#include <utility>

#include "kernels/core/check.h"

namespace ingot {

namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint32_t kVersion = 3;
constexpr int64_t kAlignment = 32;  // of each tensor's data: the default of the format

// gguf_metadata_value_type; the types of tensors are ggml_type.
enum ValueType : uint32_t { kUint32 = 4, kInt32 = 5, kFloat32 = 6, kBool = 7, kString = 8, kArray = 9 };
enum TensorType : uint32_t { kTensorF32 = 0, kTensorF16 = 1, kTensorBf16 = 30 };

uint32_t tensor_type(DType dtype) {
    if (dtype == DType::f32) return kTensorF32;
    if (dtype == DType::f16) return kTensorF16;
    CHECK(dtype == DType::bf16, "gguf: a tensor of another type than f32, f16 and bf16");
    return kTensorBf16;
}

template <typename T>
void put(std::string* out, T value) {
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    out->append(bytes, sizeof(T));
}

void put_string(std::string* out, const std::string& text) {
    put<uint64_t>(out, text.size());
    *out += text;
}

int64_t aligned(int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

int64_t GgufFile::TensorInfo::bytes() const {
    int64_t count = size_of(dtype);
    for (const int64_t extent : shape) count *= extent;
    return count;
}

void GgufFile::add_key(const std::string& key, uint32_t type) {
    put_string(&values_, key);
    put(&values_, type);
    ++num_values_;
}

void GgufFile::add_uint32(const std::string& key, int64_t value) {
    CHECK(value >= 0 && value <= UINT32_MAX, "gguf: ", key, " is ", value);
    add_key(key, kUint32);
    put(&values_, static_cast<uint32_t>(value));
}

void GgufFile::add_float32(const std::string& key, double value) {
    add_key(key, kFloat32);
    put(&values_, static_cast<float>(value));
}

void GgufFile::add_bool(const std::string& key, bool value) {
    add_key(key, kBool);
    put<uint8_t>(&values_, value ? 1 : 0);
}

void GgufFile::add_string(const std::string& key, const std::string& value) {
    add_key(key, kString);
    put_string(&values_, value);
}

void GgufFile::add_strings(const std::string& key, const std::vector<std::string>& values) {
    add_key(key, kArray);
    put<uint32_t>(&values_, kString);
    put<uint64_t>(&values_, values.size());
    for (const std::string& value : values) put_string(&values_, value);
}

void GgufFile::add_int32s(const std::string& key, const std::vector<int32_t>& values) {
    add_key(key, kArray);
    put<uint32_t>(&values_, kInt32);
    put<uint64_t>(&values_, values.size());
    for (const int32_t value : values) put(&values_, value);
}

void GgufFile::add_tensor(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
                          std::function<void(OutputFile*)> write) {
    constexpr size_t kLongestName = 63;
    CHECK(name.size() <= kLongestName, "gguf: ", name, " is longer than ", kLongestName, " bytes");
    tensors_.push_back({name, dtype, shape, std::move(write)});
}

std::string GgufFile::header() const {
    std::string out = "GGUF";
    put(&out, kVersion);
    put<uint64_t>(&out, tensors_.size());
    put(&out, num_values_);
    out += values_;
    uint64_t offset = 0;
    for (const TensorInfo& tensor : tensors_) {
        put_string(&out, tensor.name);
        put(&out, static_cast<uint32_t>(tensor.shape.size()));
        for (size_t axis = tensor.shape.size(); axis-- > 0;) put(&out, static_cast<uint64_t>(tensor.shape[axis]));
        put(&out, tensor_type(tensor.dtype));
        put(&out, offset);
        offset += static_cast<uint64_t>(aligned(tensor.bytes()));
    }
    out.resize(static_cast<size_t>(aligned(static_cast<int64_t>(out.size()))), '\0');
    return out;
}

int64_t GgufFile::bytes() const {
    int64_t bytes = static_cast<int64_t>(header().size());
    for (const TensorInfo& tensor : tensors_) bytes += aligned(tensor.bytes());
    return bytes;
}

void GgufFile::write(OutputFile* file, const std::function<void()>& advance) const {
    const std::string head = header();
    file->write(head.data(), head.size());
    for (const TensorInfo& tensor : tensors_) {
        tensor.write(file);
        const char padding[kAlignment] = {};
        file->write(padding, static_cast<size_t>(aligned(tensor.bytes()) - tensor.bytes()));
        advance();
    }
}

}  // namespace ingot
