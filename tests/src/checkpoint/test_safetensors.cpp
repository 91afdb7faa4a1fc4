// Seen to catch: ranges not compared with the file's size; the overlap check dropped; the header not padded to 8 bytes.
#include "src/checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "tests/support/errors.h"
#include "tests/support/in_folder.h"
#include "tests/support/tensors.h"

namespace ingot::test {
namespace {

const Device cpu = Device::cpu();

class Safetensors : public InFolder {
  protected:
    std::string path(const std::string& name = "file.safetensors") const { return InFolder::path(name); }
    void write_bytes(const std::string& bytes) const { write("file.safetensors", bytes); }
    std::string read_bytes() const { return read("file.safetensors"); }
    // Writes the length, the header and `data_bytes` zeros.
    void write_header(const std::string& header, size_t data_bytes) const {
        const uint64_t length = header.size();
        std::string bytes(8, '\0');
        std::memcpy(bytes.data(), &length, 8);
        write_bytes(bytes + header + std::string(data_bytes, '\0'));
    }
    // Expects that opening fails with the user's error, which names the file and says `what`.
    void expect_refused(const std::string& what) const {
        const std::string error = user_error_of([&] { const SafetensorsFile file(path()); }, "accepted");
        EXPECT_NE(error.find(path()), std::string::npos) << error;
        EXPECT_NE(error.find(what), std::string::npos) << error;
    }
    void expect_header_refused(const std::string& header, size_t data_bytes, const std::string& what) const {
        SCOPED_TRACE(header);
        write_header(header, data_bytes);
        expect_refused(what);
    }
};

TEST_F(Safetensors, RoundTrip) {
    // Three bytes first: what follows must still be aligned.
    const Buffer bytes(cpu, DType::u8, {3}, {1, 2, 255}), doubles(cpu, DType::f64, {2, 3}, normals(6, 1));
    const Buffer floats(cpu, DType::f32, {1, 2, 3, 1}, normals(6, 2)), half(cpu, DType::bf16, {5}, normals(5, 3));
    const Buffer sixteen(cpu, DType::f16, {1}, {0.5}), integers(cpu, DType::i32, {4}, {-1, 0, 1, 1 << 30});
    const Buffer empty(cpu, DType::f32, {0, 7}, {});
    const std::vector<std::pair<std::string, const Buffer*>> all = {
        {"bytes", &bytes},   {"half", &half},         {"doubles", &doubles}, {"sixteen", &sixteen},
        {"floats", &floats}, {"integers", &integers}, {"empty", &empty}};
    std::vector<NamedTensor> tensors;
    for (const auto& [name, buffer] : all) tensors.push_back({name, *buffer});
    const std::map<std::string, std::string> metadata = {{"step", "12"}, {"text", "a \"quote\", \xc3\xa9 and\nmore"}};
    write_safetensors(OutputFile(path()), tensors, metadata);
    const SafetensorsFile file(path());
    EXPECT_EQ(file.metadata(), metadata);
    EXPECT_EQ(file.names().size(), all.size());
    for (const auto& [name, buffer] : all) {
        const Tensor tensor = file.tensor(name), &original = buffer->tensor();
        EXPECT_EQ(tensor.describe(), original.describe());
        EXPECT_TRUE(tensor.is_contiguous()) << name;
        EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.data) % static_cast<uintptr_t>(size_of(tensor.dtype)), 0u) << name;
        EXPECT_EQ(std::memcmp(tensor.data, original.data, static_cast<size_t>(original.bytes())), 0) << name;
    }
    EXPECT_TRUE(file.contains("half"));
    EXPECT_FALSE(file.contains("whole"));
    EXPECT_THROW(file.tensor("whole"), UserError);
    uint64_t header;
    std::memcpy(&header, read_bytes().data(), 8);
    EXPECT_EQ(header % 8, 0u);
}

TEST_F(Safetensors, NoTensorsAndNoMetadata) {
    write_safetensors(OutputFile(path()), {}, {});
    const SafetensorsFile file(path());
    EXPECT_TRUE(file.names().empty());
    EXPECT_TRUE(file.metadata().empty());
}

TEST_F(Safetensors, EveryTruncationIsRefused) {
    const Buffer a(cpu, DType::f32, {3}, {1, 2, 3}), b(cpu, DType::f64, {1}, {4});
    write_safetensors(OutputFile(path()), {{"a", a}, {"b", b}}, {});
    const std::string whole = read_bytes();
    for (size_t size = 0; size < whole.size(); ++size) {
        write_bytes(whole.substr(0, size));
        SCOPED_TRACE(size);
        expect_refused("damaged");
    }
}

TEST_F(Safetensors, DamagedHeadersAreRefused) {
    expect_header_refused("not json", 0, "not JSON");
    expect_header_refused("[]", 0, "not JSON");
    expect_header_refused("{\"a\":1}", 4, "header is wrong");
    expect_header_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "header is wrong");
    expect_header_refused("{\"__metadata__\":{\"a\":1}}", 0, "header is wrong");
    const auto entry = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
        return "{\"a\":{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}}";
    };
    expect_header_refused(entry("\"F8\"", "[1]", "[0,1]"), 1, "dtype F8");
    expect_header_refused(entry("3", "[1]", "[0,4]"), 4, "header is wrong");
    expect_header_refused(entry("\"F32\"", "[]", "[0,4]"), 4, "0 axes");
    expect_header_refused(entry("\"F32\"", "[1,1,1,1,1]", "[0,4]"), 4, "5 axes");
    expect_header_refused(entry("\"F32\"", "[-1]", "[0,4]"), 4, "impossible shape");
    expect_header_refused(entry("\"F32\"", "[4611686018427387904,4]", "[0,0]"), 4, "impossible shape");
    expect_header_refused(entry("\"F32\"", "[4294967296,4294967296,4294967296]", "[0,0]"), 4, "impossible shape");
    expect_header_refused(entry("\"F32\"", "[18446744073709551615]", "[0,4]"), 4, "impossible shape");
    // An empty tensor has no bytes, so its other extents are bounded by themselves.
    expect_header_refused(entry("\"F32\"", "[2147483648,4611686018427387904,0]", "[0,0]"), 4, "impossible shape");
    expect_header_refused(entry("\"F32\"", "[2]", "[0,4]"), 8, "spans bytes");
    expect_header_refused(entry("\"F32\"", "[2]", "[4,12]"), 8, "spans bytes");
    expect_header_refused(entry("\"F32\"", "[1]", "[4,0]"), 8, "spans bytes");
    expect_header_refused(entry("\"F32\"", "[1]", "[-4,0]"), 8, "spans bytes");
    expect_header_refused(entry("\"F32\"", "[1]", "[18446744073709551612,0]"), 8, "spans bytes");
    expect_header_refused(entry("\"F32\"", "[1]", "[0]"), 4, "header is wrong");
    // Numbers that a conversion would quietly change.
    expect_header_refused(entry("\"F32\"", "[1.5]", "[0,4]"), 4, "header is wrong");
    expect_header_refused(entry("\"F32\"", "[1]", "[0.5,4.5]"), 8, "header is wrong");
    expect_header_refused(entry("\"F32\"", "[true]", "[0,4]"), 4, "header is wrong");
}

TEST_F(Safetensors, OverlapAndMisalignmentAreRefused) {
    const std::string a = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},";
    std::string overlapping = a + "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}";
    overlapping.resize((overlapping.size() + 7) / 8 * 8, ' ');
    expect_header_refused(overlapping, 8, "overlap");
    std::string misaligned = "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[1,5]}}";
    misaligned.resize((misaligned.size() + 7) / 8 * 8, ' ');
    expect_header_refused(misaligned, 8, "not aligned");
}

TEST_F(Safetensors, HugeHeaderLengthIsRefused) {
    for (const uint64_t length : {uint64_t{1} << 40, std::numeric_limits<uint64_t>::max(), uint64_t{17}}) {
        std::string bytes(24, ' ');
        std::memcpy(bytes.data(), &length, 8);
        write_bytes(bytes);
        expect_refused("a header of");
    }
    // This header is whole, and larger than any of ours: its values would take thirty times as much memory.
    write_header("{" + std::string(size_t{16} << 20, ' ') + "}", 0);
    expect_refused("a header of");
}

TEST_F(Safetensors, BytesThatAreMappedAlready) {
    const Buffer a(cpu, DType::f32, {3}, {1, 2, 3});
    write_safetensors(OutputFile(path()), {{"a", a}}, {});
    const SafetensorsFile file(map_file(path()), "another name");
    EXPECT_EQ(file.tensor("a").get<float>()[2], 3);
    EXPECT_THROW(SafetensorsFile(MappedFile(), "another name"), UserError);
}

TEST_F(Safetensors, FilesThatAreNotThere) {
    EXPECT_THROW(SafetensorsFile(path("missing")), UserError);
    EXPECT_THROW(SafetensorsFile(folder_.string()), UserError);
    EXPECT_THROW(write_safetensors(OutputFile(path("no/such/folder")), {}, {}), Error);
}

TEST_F(Safetensors, WritingRefuses) {
    const Buffer a(cpu, DType::f32, {2, 4}, std::vector<double>(8));
    EXPECT_THROW(write_safetensors(OutputFile(path()), {{"a", a.tensor().slice(1, 0, 2)}}, {}), Error);
    EXPECT_THROW(write_safetensors(OutputFile(path()), {{"a", a}, {"a", a}}, {}), Error)
        << "one of the two would be lost";
}

}  // namespace
}  // namespace ingot::test
