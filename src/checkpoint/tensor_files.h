// The tensors of a checkpoint, in the files of all ranks that wrote it.
//
// A tensor that one rank had whole stands in that rank's file under its own name and with its shape. Of one that was
// split over ranks each file has fragments: NAME[begin:end] is a 1-D tensor, the elements [begin, end) of NAME.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "src/checkpoint/safetensors.h"
#include "src/model/parameters.h"

namespace ingot {

// "model.norm.weight[64:128]".
std::string fragment_name(const std::string& name, int64_t begin, int64_t end);

class TensorFiles {
  public:
    // Opens files that together hold the tensors of a model of this table, once for each prefix, in fp32, every element
    // in one place. Takes no memory for the elements. Throws DamagedCheckpoint naming the file if they hold anything
    // else, and as SafetensorsFile does.
    TensorFiles(const std::vector<std::string>& paths, const ParameterTable& table,
                const std::vector<std::string>& prefixes);

    std::vector<std::string> names() const;
    // Returns a tensor's type and shape, without data.
    Tensor describe(const std::string& name) const;
    // Returns a view of the mapped, read-only bytes where one file has the whole tensor; else the tensor is put
    // together in `memory`, which outlives it. Use what was read only after require_intact() did not throw.
    Tensor tensor(const std::string& name, std::vector<float>* memory) const;
    // Calls `visit` for the elements [begin, end) of a tensor, in order: with the index in the tensor of the first
    // element of a view (n) of mapped, read-only bytes, and that view.
    void read(const std::string& name, int64_t begin, int64_t end,
              const std::function<void(int64_t, const Tensor&)>& visit) const;
    // Throws UserError if a file became shorter since it was opened.
    void require_intact() const;

  private:
    struct Fragment {
        int64_t begin, end;
        Tensor tensor;  // (end - begin)
        size_t file;
    };
    struct Entry {
        Tensor shape;                     // without data
        std::vector<Fragment> fragments;  // ascending; they cover the tensor
    };
    void add(size_t file, const std::string& name);
    void require_covered(const std::string& name, Entry* entry) const;
    const Entry& find(const std::string& name) const;

    std::vector<std::string> paths_;
    std::vector<SafetensorsFile> files_;
    std::map<std::string, Entry> entries_;
};

}  // namespace ingot
