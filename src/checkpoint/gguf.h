// The GGUF file format, version 3: key/values, a table of tensors, and their data, all little-endian.
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/core/dtype.h"
#include "src/base/files.h"

namespace ingot {

// A file to be written. Values and the table are held in memory, the data of tensors is not.
class GgufFile {
  public:
    void add_uint32(const std::string& key, int64_t value);
    void add_float32(const std::string& key, double value);
    void add_bool(const std::string& key, bool value);
    void add_string(const std::string& key, const std::string& value);
    // An empty array is written as one, too.
    void add_strings(const std::string& key, const std::vector<std::string>& values);
    void add_int32s(const std::string& key, const std::vector<int32_t>& values);

    // `shape` as elsewhere, the last axis contiguous; the file has it the other way round. `write` puts the elements
    // into the file: as many as the shape says, of f32, f16 or bf16.
    void add_tensor(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
                    std::function<void(OutputFile*)> write);

    size_t num_tensors() const { return tensors_.size(); }
    // Of the whole file.
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
    std::string header() const;  // all that stands before the data, padded

    uint64_t num_values_ = 0;
    std::string values_;
    std::vector<TensorInfo> tensors_;
};

}  // namespace ingot
