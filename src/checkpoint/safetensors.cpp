#include "src/checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>

#include "src/base/json_text.h"
#include "src/base/text.h"

namespace ingot {

using nlohmann::json;
using nlohmann::ordered_json;

static_assert(std::endian::native == std::endian::little, "safetensors and token shards are little-endian");

namespace {

constexpr std::pair<const char*, DType> kDtypes[] = {{"F64", DType::f64}, {"F32", DType::f32}, {"BF16", DType::bf16},
                                                     {"F16", DType::f16}, {"I32", DType::i32}, {"U8", DType::u8}};

// A tensor's name, entry and list take about 130 bytes, so the limits allow a hundred thousand tensors. The values of
// a malicious header can take thirty times its bytes in memory.
constexpr JsonLimits kHeaderLimits = {
    .max_bytes = size_t{16} << 20, .max_depth = 3, .advice = "the file is damaged, or not a safetensors file"};

// Throws for 1.5 and true as for any other wrong type; the library would convert them to 1.
int64_t integer(const json& value) {
    if (!value.is_number_integer()) return value.get_ref<const json::number_integer_t&>();
    return value.get<int64_t>();
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : SafetensorsFile(map_file(path), path) {}

SafetensorsFile::SafetensorsFile(MappedFile file, const std::string& path) : path_(path), file_(std::move(file)) {
    const auto fail = [&](const std::string& what) -> UserError {
        return UserError(join(path, ": ", what, ": the file is damaged, or not a safetensors file"));
    };
    if (file_.size < 8) throw fail(join("only ", file_.size, " bytes"));
    uint64_t header_bytes;
    std::memcpy(&header_bytes, file_.data.get(), 8);
    if (header_bytes > kHeaderLimits.max_bytes || header_bytes > file_.size - 8)
        throw fail(join("a header of ", header_bytes, " bytes in a file of ", file_.size));
    // The header is copied, since the file could change after it was checked.
    const std::string text(reinterpret_cast<const char*>(file_.data.get() + 8), header_bytes);
    file_.require_intact(8 + header_bytes);
    const json header = parse_json(text, path + ": the header is not JSON", kHeaderLimits);
    if (!header.is_object()) throw fail("the header is not JSON of an object");
    const uint64_t data_bytes = file_.size - 8 - header_bytes;
    std::vector<std::pair<uint64_t, uint64_t>> ranges;
    try {
        for (const auto& [key, entry] : header.items()) {
            if (key == "__metadata__") {
                metadata_ = entry.get<std::map<std::string, std::string>>();
                continue;
            }
            const std::string name = excerpt(key, 100), dtype = entry.at("dtype");
            const auto known = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                            [&](const auto& candidate) { return dtype == candidate.first; });
            if (known == std::end(kDtypes))
                throw UserError(join(path, ": ", name, " has the dtype ", excerpt(dtype, 60),
                                     ", this program reads F64, F32, BF16, F16, I32 and U8: convert the file"));
            std::vector<int64_t> shape;
            for (const json& extent : entry.at("shape")) shape.push_back(integer(extent));
            const json& offsets = entry.at("data_offsets");
            // A negative offset wraps round and so lies outside the file.
            const uint64_t begin = static_cast<uint64_t>(integer(offsets.at(0)));
            const uint64_t end = static_cast<uint64_t>(integer(offsets.at(1)));
            if (shape.empty() || shape.size() > Tensor::kMaxRank)
                throw fail(join(name, " has ", shape.size(), " axes"));
            Tensor tensor;
            tensor.dtype = known->second;
            tensor.rank = static_cast<int>(shape.size());
            constexpr uint64_t kMostElements = uint64_t{1} << 48;
            uint64_t count = 1,
                     extents = 1;  // of all axes; of those that are not empty, so that the product cannot overflow
            for (size_t axis = shape.size(); axis-- > 0;) {
                const bool is_impossible = shape[axis] < 0 ||
                                           static_cast<uint64_t>(shape[axis]) > kMostElements / extents ||
                                           (count > 0 && static_cast<uint64_t>(shape[axis]) > data_bytes / count + 1);
                if (is_impossible) throw fail(name + " has an impossible shape");
                tensor.shape[axis] = shape[axis];
                tensor.stride[axis] = static_cast<int64_t>(count);
                count *= static_cast<uint64_t>(shape[axis]);
                extents *= static_cast<uint64_t>(std::max<int64_t>(shape[axis], 1));
            }
            if (begin > end || end > data_bytes || end - begin != count * static_cast<uint64_t>(size_of(tensor.dtype)))
                throw fail(join(name, " spans bytes [", begin, ", ", end, ") of ", data_bytes));
            if ((8 + header_bytes + begin) % static_cast<uint64_t>(size_of(tensor.dtype)) != 0)
                throw fail(name + " is not aligned to its elements");
            tensor.data = const_cast<uint8_t*>(file_.data.get()) + 8 + header_bytes + begin;
            entries_[key] = tensor;
            ranges.emplace_back(begin, end);
        }
    } catch (const json::exception& error) {
        throw fail(join("the header is wrong (", error.what(), ")"));
    }
    std::sort(ranges.begin(), ranges.end());
    for (size_t i = 1; i < ranges.size(); ++i)
        if (ranges[i].first < ranges[i - 1].second) throw fail("tensors overlap");
}

std::vector<std::string> SafetensorsFile::names() const {
    std::vector<std::string> result;
    for (const auto& [name, tensor] : entries_) result.push_back(name);
    return result;
}

Tensor SafetensorsFile::tensor(const std::string& name) const {
    const auto found = entries_.find(name);
    REQUIRE(found != entries_.end(), path_, ": holds no tensor ", name,
            ": was it written by another version or model?");
    return found->second;
}

std::string safetensors_head(const std::vector<NamedTensor>& tensors,
                             const std::map<std::string, std::string>& metadata) {
    ordered_json header = ordered_json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    uint64_t offset = 0;
    for (const NamedTensor& named : tensors) {
        const Tensor& tensor = named.tensor;
        CHECK(!header.contains(named.name), "safetensors_head: two tensors are named ", named.name);
        const auto dtype = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                        [&](const auto& candidate) { return tensor.dtype == candidate.second; });
        const uint64_t end = offset + static_cast<uint64_t>(tensor.bytes());
        header[named.name] = {{"dtype", dtype->first},
                              {"shape", std::vector<int64_t>(tensor.shape, tensor.shape + tensor.rank)},
                              {"data_offsets", {offset, end}}};
        offset = end;
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');  // so that data is aligned
    const uint64_t header_bytes = text.size();
    return std::string(reinterpret_cast<const char*>(&header_bytes), sizeof header_bytes) + text;
}

void write_safetensors(OutputFile file, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata, ChunkedSha256* checksums,
                       const Device& device) {
    // Tensors of larger elements come first: the format allows no gaps, and so each starts at a multiple of its
    // element size.
    std::vector<NamedTensor> sorted = tensors;
    std::stable_sort(sorted.begin(), sorted.end(), [](const NamedTensor& a, const NamedTensor& b) {
        return size_of(a.tensor.dtype) > size_of(b.tensor.dtype);
    });
    for (const auto& [name, tensor] : sorted)
        CHECK(tensor.is_contiguous() && (tensor.device == DeviceKind::cpu || tensor.device == device.kind()),
              "write_safetensors: ", name, " is ", tensor.describe());
    const auto write = [&](const void* data, size_t bytes) {
        file.write(data, bytes);
        if (checksums != nullptr) checksums->update(data, bytes);
    };
    const std::string head = safetensors_head(sorted, metadata);
    write(head.data(), head.size());
    constexpr int64_t kPiece = 32 << 20;
    std::shared_ptr<void> staging;
    DeviceEvent fetched(device);
    for (const NamedTensor& named : sorted) {
        const int64_t bytes = named.tensor.bytes();
        if (named.tensor.device == DeviceKind::cpu) {
            write(named.tensor.data, static_cast<size_t>(bytes));
            continue;
        }
        if (!staging) staging = device.allocate_host(kPiece);
        for (int64_t begin = 0; begin < bytes; begin += kPiece) {
            const int64_t count = std::min(kPiece, bytes - begin);
            uint8_t* const source = static_cast<uint8_t*>(named.tensor.data) + begin;
            device.start_copy(Tensor::contiguous(staging.get(), DType::u8, {count}),
                              Tensor::contiguous(source, DType::u8, {count}, named.tensor.device), Stream::download);
            fetched.record(Stream::download);
            fetched.wait();
            write(staging.get(), static_cast<size_t>(count));
        }
    }
    file.sync_and_close();
}

}  // namespace ingot
