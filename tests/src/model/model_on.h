// A model and its optimizer on any device, driven by values of the host.
#pragma once

#include "kernels/step.h"
#include "src/model/device_step.h"
#include "src/optimizer/optimizer.h"
#include "tests/src/model/small_model.h"

namespace ingot::test {

class ModelOn {
  public:
    // One of several ranks gives them, which outlive this, and how their state is shared (Optimizer).
    ModelOn(const Device& device_, const ModelConfig& config, const SmallOptions& options, Ranks* ranks = nullptr,
            int64_t zero = 1)
        : device(device_),
          model(device, config, options, &plan),
          optimizer(model, ranks != nullptr ? ranks : alone.get(), zero, &plan),
          step(device, "step", &plan),
          // Poisoned: what is read before it is written shows as NaN.
          memory(plan.allocate(device, true)) {
        model.initialize_constants();
        optimizer.initialize_constants();
        for (const OptimizerState& state : optimizer.state())
            for (const StatePiece& piece : state.pieces) device.zero(piece.tensor);
        step.write(StepBlock{});
    }
    // Sets the flat space of weights, in the order of SmallModel::weights().
    void set_weights(const std::vector<double>& values) {
        const Tensor masters = weights();
        device.copy(masters, Buffer(device, masters.dtype, {masters.numel()}, values));
        optimizer.refresh_model();
    }
    void begin(const StepSettings& settings = {}) {
        step_begin(device, step.get(), settings);
        device.zero(model.gradients());
    }
    void train(const Row& row) {
        const RowBuffers batch(row, device);
        model.train(batch, step.get());
        device.synchronize();
    }
    StepBlock update() {
        optimizer.update(step.get());
        return step.read();
    }
    // The fp32 masters, flat.
    Tensor weights() const { return optimizer.state()[0].pieces[0].tensor; }
    std::vector<double> values_of(const Tensor& tensor) const {
        const Buffer host(Device::cpu(), tensor.dtype, {tensor.numel()});
        device.copy(host, tensor.view({tensor.numel()}));
        return host.values();
    }

    Device device;
    MemoryPlan plan;
    std::unique_ptr<Ranks> alone = one_rank();
    Model model;
    Optimizer optimizer;
    DeviceStep step;
    std::shared_ptr<void> memory;
};

}  // namespace ingot::test
