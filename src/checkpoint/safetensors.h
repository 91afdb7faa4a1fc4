// The safetensors file format: an 8-byte little-endian header length, a JSON header (name -> dtype, shape, byte range),
// raw little-endian data. https://github.com/huggingface/safetensors, "Format".
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

// A file mapped into memory, all of its header checked: byte ranges inside the file, not overlapping, aligned to their
// elements, sizes that agree with shapes. Throws UserError naming the file.
class SafetensorsFile {
  public:
    explicit SafetensorsFile(const std::string& path);
    // The same of bytes that are mapped already; `path` is for messages. Their address is a multiple of 8.
    SafetensorsFile(MappedFile file, const std::string& path);

    const std::map<std::string, std::string>& metadata() const { return metadata_; }
    std::vector<std::string> names() const;
    bool contains(const std::string& name) const { return entries_.count(name) == 1; }
    // Throws UserError if the file became shorter since it was opened.
    void require_intact() const { file_.require_intact(); }
    // A view of the mapped bytes (read-only memory: do not write). Dtypes F64, F32, BF16, F16, I32, U8. What was read
    // through it counts once require_intact() did not throw.
    Tensor tensor(const std::string& name) const;

  private:
    std::string path_;
    MappedFile file_;
    std::map<std::string, Tensor> entries_;
    std::map<std::string, std::string> metadata_;
};

// One tensor to write: name, and a contiguous tensor.
struct NamedTensor {
    std::string name;
    Tensor tensor;
};

// The bytes of a file before those of its tensors, which follow in this order without gaps. Looks at names, dtypes and
// shapes alone.
std::string safetensors_head(const std::vector<NamedTensor>& tensors,
                             const std::map<std::string, std::string>& metadata);

// Writes, syncs and closes `file`, tensors of larger elements first, so that each is aligned; throws Error
// (kExitAllocation for a full disk or a failed write) naming the path. `checksums`, if given, sees all bytes of the
// file. Tensors that lie on `device` are fetched through its download queue, a piece at a time.
void write_safetensors(OutputFile file, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata, ChunkedSha256* checksums = nullptr,
                       const Device& device = Device::cpu());

}  // namespace ingot
