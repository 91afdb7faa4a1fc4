// The tensors of a Hugging Face model: model.safetensors, or the shards that model.safetensors.index.json lists.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "src/checkpoint/safetensors.h"
#include "src/model/parameters.h"

namespace ingot {

// The index of shards: tensor -> name of the file in the same folder. `path` names the text in errors. Throws UserError
// for what is no such index, and for a file that is not one of the folder's own.
std::map<std::string, std::string> parse_import_index(const std::string& text, const std::string& path);

class ImportedTensors {
  public:
    // Maps the files; nothing of the data is read. Throws UserError if there are none, if one is damaged, if two hold
    // the same tensor, or if the index and its shards disagree.
    explicit ImportedTensors(const std::string& folder);

    // Throws UserError naming the tensors that are missing, that the model does not have, or that have another shape or
    // a type that is not bf16, fp16 or fp32. A head beside tied embeddings must have their bits.
    void require_fit(const ParameterTable& table, bool tie_embeddings) const;

    Tensor tensor(const std::string& name) const;
    // Throws UserError if the file of the tensor became shorter since it was opened.
    void require_intact(const std::string& name) const;
    size_t num_files() const { return files_.size(); }

  private:
    void open(const std::string& path);

    std::string folder_;
    std::vector<std::unique_ptr<SafetensorsFile>> files_;
    std::vector<std::string> paths_;
    std::map<std::string, size_t> file_of_;  // by tensor
};

}  // namespace ingot
