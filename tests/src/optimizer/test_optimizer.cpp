// The optimizer over the whole flat space of a model: what decays, and what stays zero.
//
// Seen to catch: norm weights that decay; a parameter's last block left out of the map.
#include <algorithm>
#include <vector>

#include "tests/src/model/model_on.h"

namespace ingot::test {

TEST(Optimizer, MatricesDecayAndNormsDoNot) {
    ModelConfig config = tiny_config();
    config.d_model = 12;  // so that matrices end within a block
    config.qk_norm = true;
    config.tie_embeddings = false;
    ModelOn on(Device::cpu(), config, {.dtype = DType::f32});
    // All parameters 1, the gaps between them 0; no gradient, so that decay alone moves them.
    std::vector<double> weights(static_cast<size_t>(on.model.table().flat_size()), 0), expected = weights;
    for (const Parameter& parameter : on.model.table().parameters()) {
        const auto at = [&](std::vector<double>& values) { return values.begin() + parameter.offset; };
        std::fill_n(at(weights), parameter.numel(), 1);
        std::fill_n(at(expected), parameter.numel(), parameter.is_matrix ? 1 - 0.5 * 0.25 : 1);
    }
    on.set_weights(weights);
    StepSettings settings;
    settings.lr = 0.5;
    settings.weight_decay = 0.25;
    on.begin(settings);
    StepBlock step = on.step.read();
    step.sums.targets = 1;
    on.step.write(step);
    EXPECT_EQ(on.update().decision.apply, 1);
    EXPECT_TRUE(same(on.values_of(on.weights()), expected));
}

}  // namespace ingot::test
