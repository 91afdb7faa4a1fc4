// Writes the GGUF file format, version 3: key/values, a table of tensors, and their data, all little-endian. Source:
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/core/dtype.h"
#include "src/base/files.h"

namespace ingot {

// A file to be written. Values and the table are held in memory, but not the data of tensors.
class GgufFile {
  public:
    void add_uint32(const std::string& key, int64_t value);
    void add_float32(const std::string& key, double value);
    void add_bool(const std::string& key, bool value);
    void add_string(const std::string& key, const std::string& value);
    // Also writes an empty array.
    void add_strings(const std::string& key, const std::vector<std::string>& values);
    void add_int32s(const std::string& key, const std::vector<int32_t>& values);

    // `shape` has its last axis contiguous, as elsewhere; the file stores it reversed. `write` writes as many elements
    // as the shape has, in f32, f16 or bf16.
    void add_tensor(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
                    std::function<void(OutputFile*)> write);

    size_t num_tensors() const { return tensors_.size(); }
    // Returns the size of the whole file.
    int64_t bytes() const;
    // Calls `advance` after each tensor.
    void write(OutputFile* file, const std::function<void()>& advance) const;

  private:
    struct TensorInfo {
        std::string name;
        DType dtype;
        std::vector<int64_t> shape;
        std::function<void(OutputFile*)> write;
        int64_t bytes() const;  // of its data
    };
    void add_key(const std::string& key, uint32_t type);
    std::string header() const;  // everything before the data, padded

    uint64_t num_values_ = 0;
    std::string values_;
    std::vector<TensorInfo> tensors_;
};

}  // namespace ingot
