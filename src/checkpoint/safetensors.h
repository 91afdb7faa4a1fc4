// The safetensors file format: an 8-byte little-endian header length, a JSON header (name -> dtype, shape, byte
// range), raw little-endian data. Source: https://github.com/huggingface/safetensors, "Format".
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/device.h"
#include "src/base/checksum.h"
#include "src/base/mapped_file.h"

namespace ingot {

// A file mapped into memory, whose header is checked: byte ranges lie inside the file, do not overlap, are aligned to
// their elements and agree with the shapes. Throws UserError naming the file.
class SafetensorsFile {
  public:
    explicit SafetensorsFile(const std::string& path);
    // Does the same for mapped bytes, whose address must be a multiple of 8; `path` is for messages.
    SafetensorsFile(MappedFile file, const std::string& path);

    const std::map<std::string, std::string>& metadata() const { return metadata_; }
    std::vector<std::string> names() const;
    bool contains(const std::string& name) const { return entries_.count(name) == 1; }
    // Throws UserError if the file became shorter since it was opened.
    void require_intact() const { file_.require_intact(); }
    // Returns a view of the mapped, read-only bytes. Dtypes are F64, F32, BF16, F16, I32, U8. Use data read through it
    // only after require_intact() did not throw.
    Tensor tensor(const std::string& name) const;

  private:
    std::string path_;
    MappedFile file_;
    std::map<std::string, Tensor> entries_;
    std::map<std::string, std::string> metadata_;
};

// A tensor to write: a name and a contiguous tensor.
struct NamedTensor {
    std::string name;
    Tensor tensor;
};

// Returns the bytes of a file before its tensors, which follow in this order without gaps. Reads only names, dtypes
// and shapes.
std::string safetensors_head(const std::vector<NamedTensor>& tensors,
                             const std::map<std::string, std::string>& metadata);

// Writes, syncs and closes `file`, with tensors of larger elements first, so that each is aligned. Throws Error
// (kExitAllocation for a full disk or a failed write) naming the path. `checksums`, if given, sees all bytes of the
// file. Tensors on `device` are copied through its download stream, a piece at a time.
void write_safetensors(OutputFile file, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata, ChunkedSha256* checksums = nullptr,
                       const Device& device = Device::cpu());

}  // namespace ingot
