// The parameter table: one list of all tensors of the model that drives allocation, initialisation, optimizer groups,
// checkpoint keys and the printed summary.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/device.h"
#include "src/config/config.h"

namespace ingot {

// Rows [begin, begin + rows) of a fused tensor are the tensor `name` of a checkpoint: the names, shapes and order of
// LlamaForCausalLM. Fused rows that no part covers are padding (the vocabulary's) and stay zero.
struct CheckpointPart {
    std::string name;
    int64_t begin, rows;
};

struct Parameter {
    std::string name;       // fused: "layers.3.qkv"
    int64_t rows, columns;  // 1-D tensors: columns = 1 where parts are ranges of it (biases), else rows = 1 (norms)
    bool is_matrix;         // 2-D tensors decay, 1-D ones do not
    double init_std;        // matrices: N(0, init_std)
    double init_value;      // 1-D tensors: weights of norms 1, biases 0
    int layer;              // -1: embedding, final norm, head
    int64_t offset;         // in elements, in the flat space
    std::vector<CheckpointPart> parts;
    int64_t numel() const { return rows * columns; }
};

class ParameterTable {
  public:
    // So many ranks share the flat space: each bucket is padded until they can have equal parts of whole blocks.
    explicit ParameterTable(const ModelConfig& config, int64_t num_ranks = 1);

    const std::vector<Parameter>& parameters() const { return parameters_; }
    // Ranges of the flat space whose weights are needed, and whose gradients are complete, together: the embedding,
    // each layer, and what comes after the layers. A bucket ends where the next begins, the last at flat_size().
    static constexpr int64_t kEmbeddingBucket = 0;
    static int64_t bucket_of_layer(int64_t layer) { return layer + 1; }
    int64_t head_bucket() const { return num_buckets() - 1; }
    int64_t num_buckets() const { return static_cast<int64_t>(bucket_begins_.size()); }
    int64_t bucket_begin(int64_t bucket) const {
        return bucket == num_buckets() ? flat_size_ : bucket_begins_[static_cast<size_t>(bucket)];
    }
    const Parameter& find(const std::string& name) const;
    // Elements of the flat space: every tensor starts at a multiple of kAlignment elements (a whole number of 16-byte
    // vectors and cache lines in any dtype); the gaps stay zero.
    static constexpr int64_t kAlignment = 64;
    int64_t flat_size() const { return flat_size_; }
    // Returns the count without padding, which a user means by "parameters".
    int64_t num_parameters() const;
    // Returns the number of parameters of GEMMs, which 6 FLOPs per parameter and token counts: all matrices, but an
    // untied embedding table.
    int64_t num_matmul_parameters() const;

  private:
    // A matrix of N(0, init_std); one axis of ones or zeros.
    void add_matrix(std::string name, int layer, int64_t rows, int64_t columns, double init_std,
                    std::vector<CheckpointPart> parts);
    void add_norm(std::string name, int layer, int64_t size, std::string checkpoint_name);
    void add_bias(std::string name, int layer, int64_t size, std::vector<CheckpointPart> parts);
    void add(Parameter parameter);
    void begin_bucket(int64_t num_ranks);
    void pad_to(int64_t alignment) { flat_size_ = (flat_size_ + alignment - 1) / alignment * alignment; }
    std::vector<Parameter> parameters_;
    std::vector<int64_t> bucket_begins_;
    int64_t flat_size_ = 0;
    bool tied_;
};

// The tensor of one parameter inside a flat space: (rows, columns), or (columns) for 1-D ones.
Tensor parameter_view(const Tensor& flat, const Parameter& parameter);
// Returns the tensor of one part: a contiguous range of rows.
Tensor part_view(const Tensor& flat, const Parameter& parameter, const CheckpointPart& part);

// The tensors of one layer in a flat space of weights or of gradients.
struct LayerTensors {
    Tensor attention_norm, qkv, qkv_bias, q_norm, k_norm, attention_out, mlp_norm, gate_up, down;
};
LayerTensors layer_tensors(const ParameterTable& table, const Tensor& flat, int64_t layer);

// Draws the initial weights into a flat fp32 (fp64) space on the device, the gaps zero. Every element is a function of
// (seed, checkpoint name, index in that tensor) alone.
void initialize_parameters(const Device& device, const ParameterTable& table, uint64_t seed, const Tensor& flat);

}  // namespace ingot
