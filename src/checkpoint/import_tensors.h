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

// Parses the index of shards: tensor -> name of the file in the same folder. Errors call the text `path`. Throws
// UserError for an invalid index, and for a file outside the folder.
std::map<std::string, std::string> parse_import_index(const std::string& text, const std::string& path);

class ImportedTensors {
  public:
    // Maps the files and reads none of the data. Throws UserError if there are none, if one is damaged, if two hold
    // the same tensor, or if the index and its shards disagree.
    explicit ImportedTensors(const std::string& folder);

    // Throws UserError naming the tensors that are missing, unknown to the model, of another shape, or of a type other
    // than bf16, fp16 or fp32. A head beside tied embeddings must have their bits.
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
