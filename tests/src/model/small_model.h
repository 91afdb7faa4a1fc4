// Tiny models on the CPU, with memory of their own, for tests.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/rng.h"
#include "src/data/host_batch.h"
#include "src/model/model.h"
#include "tests/support/tensors.h"

namespace ingot::test {

// A packed row: documents start at `starts`; positions count within them.
struct Row {
    std::vector<double> tokens, targets;
    std::vector<int64_t> starts;
    int64_t size() const { return static_cast<int64_t>(tokens.size()); }
};

// Random tokens; every fifth target is ignored.
inline Row random_row(int64_t n, int64_t vocab_size, std::vector<int64_t> starts, uint64_t seed) {
    Row row;
    row.starts = std::move(starts);
    const auto draw = [&](uint64_t stream, int64_t i) {
        return static_cast<double>(random_bits(seed, stream, static_cast<uint64_t>(i)) %
                                   static_cast<uint64_t>(vocab_size));
    };
    for (int64_t i = 0; i < n; ++i) {
        row.tokens.push_back(draw(1, i));
        row.targets.push_back(i % 5 == 2 ? -1 : draw(2, i));
    }
    return row;
}

// Device tensors of a row.
struct RowBuffers {
    explicit RowBuffers(const Row& row, const Device& device = Device::cpu())
        : tokens(device, DType::i32, {row.size()}, row.tokens),
          targets(device, DType::i32, {row.size()}, row.targets),
          positions(device, DType::i32, {row.size()}),
          first_key(device, DType::i32, {row.size()}),
          end_key(device, DType::i32, {row.size()}),
          first_query(device, DType::i32, {row.size()}),
          end_query(device, DType::i32, {row.size()}) {
        std::vector<double> position;
        size_t next = 0;
        for (int64_t i = 0, start = 0; i < row.size(); ++i) {
            while (next < row.starts.size() && row.starts[next] == i) start = row.starts[next++];
            position.push_back(static_cast<double>(i - start));
        }
        positions.set(position);
        HostBatch host;
        host.resize(row.size());
        fill_document_mask(host.mask(), row.starts, true);
        first_key.set({host.first_key.begin(), host.first_key.end()});
        end_key.set({host.end_key.begin(), host.end_key.end()});
        first_query.set({host.first_query.begin(), host.first_query.end()});
        end_query.set({host.end_query.begin(), host.end_query.end()});
    }
    operator MicroBatch() const { return {tokens, targets, positions, {first_key, end_key, first_query, end_query}}; }
    Buffer tokens, targets, positions, first_key, end_key, first_query, end_query;
};

// G = 2, ALiBi, tied, no QK-norm unless changed.
inline ModelConfig tiny_config() {
    ModelConfig config;
    config.n_layers = 2;
    config.d_model = 8;
    config.n_heads = 2;
    config.n_kv_heads = 1;
    config.head_dim = 4;
    config.d_ff = 8;
    config.vocab_size = 11;
    config.context_length = 6;
    config.rope_theta = 100;
    return config;
}

// ModelOptions with what most tests want.
struct SmallOptions {
    DType dtype = DType::f64;
    int64_t max_tokens = 12;
    Recompute recompute = Recompute::none;
    double z_loss = 0;
    bool is_training = true;
    int64_t num_ranks = 1;
    bool uses_fp8 = false;
    operator ModelOptions() const {
        return {.dtype = dtype,
                .max_tokens = max_tokens,
                .max_positions = max_tokens,
                .is_training = is_training,
                .uses_fp8 = uses_fp8,
                .recompute = recompute,
                .z_loss = z_loss,
                .num_ranks = num_ranks};
    }
};

class SmallModel {
  public:
    explicit SmallModel(const ModelConfig& config, const SmallOptions& options = {}, uint64_t seed = 7)
        : model(Device::cpu(), config, options, &plan),
          // Poisoned: an activation that is read before it is written shows as NaN.
          memory(plan.allocate(Device::cpu(), true)) {
        model.initialize_constants();
        initialize_parameters(Device::cpu(), model.table(), seed, model.weights());
        // At the usual 0.02 the second layer would hardly matter, and norm weights of exactly 1 would hide a missing
        // factor.
        for_cpu_scalar(model.dtype(), "test", [&](auto scalar) {
            using T = decltype(scalar);
            for (const Parameter& parameter : model.table().parameters())
                for (const CheckpointPart& part : parameter.parts) {
                    const Tensor tensor = part_view(model.weights(), parameter, part);
                    T* const data = tensor.get<T>();
                    for (int64_t i = 0; i < tensor.numel(); ++i)
                        data[i] = static_cast<T>(parameter.is_matrix
                                                     ? 20 * data[i]
                                                     : static_cast<float>(data[i]) +
                                                           0.3f * random_normal(seed, stream_of(part.name.c_str()),
                                                                                static_cast<uint64_t>(i)));
                }
        });
        if (options.is_training) Device::cpu().zero(model.gradients());
    }

    void train(const Row& row) {
        const RowBuffers batch(row);
        model.train(batch, &step);
    }
    void evaluate(const Row& row) { model.evaluate(RowBuffers(row), &step); }
    std::vector<double> losses(int64_t n) const { return values_of(model.losses().slice(0, 0, n)); }
    std::vector<double> gradients() const { return values_of(model.gradients()); }
    std::vector<double> weights() const { return values_of(model.weights()); }

    static std::vector<double> values_of(const Tensor& tensor) {
        std::vector<double> result(static_cast<size_t>(tensor.numel()));
        for_cpu_scalar(tensor.dtype, "test", [&](auto scalar) {
            const auto* const data = tensor.get<decltype(scalar)>();
            for (size_t i = 0; i < result.size(); ++i) result[i] = static_cast<double>(data[i]);
        });
        return result;
    }

    MemoryPlan plan;
    Model model;
    std::shared_ptr<void> memory;
    StepBlock step;
};

// Every choice of position, group size, tying and QK-norm; and of position and group size with biases.
inline void for_all_configs(const std::function<void(const ModelConfig&, const std::string&)>& visit) {
    for (const auto& [position, name] :
         {std::pair{Position::alibi, "alibi"}, {Position::rope, "rope"}, {Position::none, "none"}})
        for (const int64_t G : {1, 2, 3})
            for (const bool is_tied : {true, false})
                for (const auto& [qk_norm, qkv_bias] : {std::pair{false, false}, {true, false}, {false, true}}) {
                    if (qkv_bias && !is_tied) continue;
                    ModelConfig config = tiny_config();
                    config.position = position;
                    config.n_heads = G == 1 ? 2 : G;
                    config.n_kv_heads = config.n_heads / G;
                    config.tie_embeddings = is_tied;
                    config.qk_norm = qk_norm;
                    config.qkv_bias = qkv_bias;
                    visit(config, join(name, " G ", G, is_tied ? " tied" : " untied", qk_norm ? " QK-norm" : "",
                                       qkv_bias ? " biases" : ""));
                }
}

}  // namespace ingot::test
