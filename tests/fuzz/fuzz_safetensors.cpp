// Files of tensors (src/checkpoint/safetensors.h) from any bytes: a UserError, or tensors that lie inside the file and
// do not overlap, nothing else. scripts/dev/fuzz builds and runs it.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "kernels/core/check.h"
#include "src/checkpoint/safetensors.h"

namespace {

using namespace ingot;

void must(bool holds) {
    if (!holds) std::abort();
}

// At the beginning of a page, as a mapping is.
MappedFile file_of(const uint8_t* data, size_t size) {
    MappedFile file;
    file.size = size;
    if (size == 0) return file;
    constexpr std::align_val_t kPage{4096};
    auto* const bytes = static_cast<uint8_t*>(::operator new(size, kPage));
    std::memcpy(bytes, data, size);
    file.data = {bytes, [kPage](const uint8_t* owned) { ::operator delete(const_cast<uint8_t*>(owned), kPage); }};
    return file;
}

// Reads every element in its own type, and gives the bytes that it takes.
std::pair<uintptr_t, uintptr_t> read(const Tensor& tensor) {
    must(tensor.rank >= 1 && tensor.rank <= Tensor::kMaxRank && tensor.is_contiguous());
    const auto begin = reinterpret_cast<uintptr_t>(tensor.data);
    must(begin % static_cast<uintptr_t>(size_of(tensor.dtype)) == 0);
    volatile uint8_t sum = 0;
    for (int64_t i = 0; i < tensor.bytes(); ++i) sum = sum + static_cast<const uint8_t*>(tensor.data)[i];
    return {begin, begin + static_cast<uintptr_t>(tensor.bytes())};
}

}  // namespace

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

// Half of the changes are made to the values of one tensor's entry, so that its shape and its byte range still agree,
// or miss by little: bytes changed at random hardly ever do.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
    using nlohmann::json;
    uint64_t length = 0;
    if (size >= 8) std::memcpy(&length, data, 8);
    const bool has_header = seed % 2 == 0 && size > 8 && length <= size - 8;
    const json header = has_header ? json::parse(data + 8, data + 8 + length, nullptr, false) : json();
    if (!header.is_object() || header.empty()) return LLVMFuzzerMutate(data, size, max_size);
    std::minstd_rand random(seed);
    const auto below = [&](uint64_t bound) { return random() % bound; };
    json changed = header;
    auto entry = changed.begin();
    std::advance(entry, below(changed.size()));
    const uint64_t data_bytes = size - 8 - length;
    const uint64_t sizes[] = {0, 1, 2, 3, 7, data_bytes, data_bytes / 4, uint64_t{1} << 31, uint64_t{1} << 62};
    json shape = json::array();
    uint64_t bytes = 4;
    for (uint64_t axis = 0, rank = 1 + below(3); axis < rank; ++axis) {
        shape.push_back(sizes[below(std::size(sizes))]);
        bytes *= shape.back().get<uint64_t>();
    }
    const uint64_t begin = below(2) == 0 ? 4 * below(64) : data_bytes - std::min<uint64_t>(data_bytes, 4 * below(3));
    *entry = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {begin, begin + bytes + (below(8) == 0 ? 4 : 0)}}};
    std::string text = changed.dump(-1, ' ', false, json::error_handler_t::replace);
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const uint64_t new_length = text.size();
    if (8 + new_length + data_bytes > max_size) return LLVMFuzzerMutate(data, size, max_size);
    std::memmove(data + 8 + new_length, data + 8 + length, data_bytes);
    std::memcpy(data, &new_length, 8);
    std::memcpy(data + 8, text.data(), new_length);
    return 8 + new_length + data_bytes;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    try {
        const SafetensorsFile file(file_of(data, size), "x.safetensors");
        std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
        for (const std::string& name : file.names()) {
            must(file.contains(name));
            ranges.push_back(read(file.tensor(name)));
        }
        std::sort(ranges.begin(), ranges.end());
        for (size_t i = 1; i < ranges.size(); ++i)
            must(ranges[i].first >= ranges[i - 1].second || ranges[i].first == ranges[i].second);
        file.require_intact();
        (void)file.metadata();
        (void)file.tensor("there is none");
        std::abort();
    } catch (const UserError& error) {
        // One line that says something.
        must(std::strlen(error.what()) > 10 && std::strchr(error.what(), '\n') == nullptr);
    }
    return 0;
}
