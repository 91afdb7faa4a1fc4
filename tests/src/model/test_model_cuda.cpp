// The model on CUDA against the model on the CPU: loss, every gradient, an update, in every kind of configuration.
#include <gtest/gtest.h>

#include "tests/src/model/model_on.h"

namespace ingot::test {
namespace {

// A configuration that CUDA's attention takes.
ModelConfig cuda_config() {
    ModelConfig config = tiny_config();
    config.d_model = 48;
    config.n_heads = 6;
    config.n_kv_heads = 2;
    config.head_dim = 32;
    config.d_ff = 56;
    config.vocab_size = 150;
    config.context_length = 40;
    return config;
}

constexpr int64_t kTokens = 80;
const std::vector<int64_t> kStarts = {0, 1, 17, 40, 40, 73};

// Relative error of the gradient of each outer tensor, largest first.
double worst_gradient_error(const ModelOn& one, const SmallModel& other) {
    double worst = 0;
    for (const Parameter& parameter : other.model.table().parameters())
        for (const CheckpointPart& part : parameter.parts)
            worst = std::max(
                worst, relative_error(one.values_of(part_view(one.model.gradients(), parameter, part)),
                                      SmallModel::values_of(part_view(other.model.gradients(), parameter, part))));
    return worst;
}

// By the whole-model rule for fp32: loss 1e-5, tensors 1e-4. What 16 bits cost: test_torch_fixture.cpp.
void compare(const Device& cuda, const ModelConfig& config, double z_loss) {
    const Row row = random_row(kTokens, config.vocab_size, kStarts, 5);
    SmallModel exact(config, {.dtype = DType::f64, .max_tokens = kTokens, .z_loss = z_loss});
    ModelOn model(cuda, config, {.dtype = DType::f32, .max_tokens = kTokens, .z_loss = z_loss});
    model.set_weights(exact.weights());
    exact.train(row);
    model.begin();
    model.train(row);
    const StepSums sums = model.step.read().sums;
    EXPECT_EQ(sums.targets, exact.step.sums.targets);
    EXPECT_NEAR(sums.loss / exact.step.sums.loss, 1, 1e-5);
    EXPECT_LE(worst_gradient_error(model, exact), 1e-4);

    // And where gradients are overwritten, whatever they were.
    for (const Parameter& parameter : model.model.table().parameters())
        cuda.fill_bytes(parameter_view(model.model.gradients(), parameter), 0xff);
    const RowBuffers batch(row, cuda);
    model.model.train(batch, model.step.get(), false);
    cuda.synchronize();
    EXPECT_LE(worst_gradient_error(model, exact), 1e-4);
}

TEST(ModelCuda, Gradients) {
    INGOT_CUDA_OR_SKIP(cuda);
    for (const Position position : {Position::alibi, Position::rope, Position::none})
        for (const bool is_other : {false, true}) {
            ModelConfig config = cuda_config();
            config.position = position;
            config.tie_embeddings = !is_other;
            config.qk_norm = is_other;
            SCOPED_TRACE(join("position ", static_cast<int>(position), ", other ", is_other));
            compare(cuda, config, is_other ? 1e-2 : 0);
        }
}

TEST(ModelCuda, GradientsAddUpOverMicroSteps) {
    INGOT_CUDA_OR_SKIP(cuda);
    const ModelConfig config = cuda_config();
    const Row first = random_row(kTokens, config.vocab_size, kStarts, 5),
              second = random_row(33, config.vocab_size, {0}, 6);
    SmallModel exact(config, {.dtype = DType::f64, .max_tokens = kTokens});
    ModelOn model(cuda, config, {.dtype = DType::f32, .max_tokens = kTokens});
    model.set_weights(exact.weights());
    model.begin();
    for (const Row& row : {first, second}) {
        exact.train(row);
        model.train(row);
    }
    EXPECT_LE(worst_gradient_error(model, exact), 1e-4);
}

// Recomputation and a recorded graph must not change a bit.
TEST(ModelCuda, SameBitsHoweverItRuns) {
    INGOT_CUDA_OR_SKIP(cuda);
    ModelConfig config = cuda_config();
    config.qk_norm = true;
    config.position = Position::rope;
    const Row row = random_row(kTokens, config.vocab_size, kStarts, 5);
    const SmallModel weights(config, {.dtype = DType::f32, .max_tokens = kTokens});
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        std::vector<std::vector<double>> gradients;
        for (const Recompute recompute : {Recompute::none, Recompute::light, Recompute::block}) {
            ModelOn model(cuda, config, {.dtype = dtype, .max_tokens = kTokens, .recompute = recompute});
            model.set_weights(weights.weights());
            model.begin();
            model.train(row);
            gradients.push_back(model.values_of(model.model.gradients()));
            const RowBuffers batch(row, cuda);
            DeviceGraph graph(cuda);
            for (int run = 0; run < 3; ++run) {
                model.begin();
                graph.run([&] { model.model.train(batch, model.step.get()); });
                gradients.push_back(model.values_of(model.model.gradients()));
            }
        }
        for (const std::vector<double>& other : gradients) EXPECT_TRUE(same(other, gradients[0]));
    }
}

// Weights are drawn on the device: the bits of the CPU's.
TEST(ModelCuda, InitialWeightsAreThoseOfTheCpu) {
    INGOT_CUDA_OR_SKIP(cuda);
    const ModelConfig config = cuda_config();
    MemoryPlan plan;
    Model model(Device::cpu(), config, {.max_tokens = kTokens, .max_positions = kTokens}, &plan);
    const std::shared_ptr<void> memory = plan.allocate(Device::cpu());
    initialize_parameters(Device::cpu(), model.table(), 99, model.weights());
    ModelOn on_gpu(cuda, config, {.dtype = DType::bf16, .max_tokens = kTokens});
    on_gpu.optimizer.initialize_weights(99);
    EXPECT_TRUE(same(on_gpu.values_of(on_gpu.weights()), SmallModel::values_of(model.weights())));
}

}  // namespace
}  // namespace ingot::test
