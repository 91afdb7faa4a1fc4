// What a training step asks of CUDA: it allocates nothing, waits for nothing but the step before, copies each batch
// once and the scalars once, and launches one graph for each micro-step and one for the update.
#include <algorithm>
#include <map>

#include "src/bench/step_parts.h"
#include "src/bench/synthetic_run.h"
#include "tests/support/tensors.h"

namespace ingot::test {
namespace {

constexpr int64_t kLayers = 2, kMicroSteps = 4;

Config small_config(const std::vector<std::string>& overrides = {}) {
    return parse_config(R"({
        "model": {"n_layers": 2, "d_model": 128, "n_heads": 4, "n_kv_heads": 2, "head_dim": 32, "d_ff": 256,
                  "context_length": 64, "vocab_size": 1000, "position": "rope"},
        "data": {"train": ["not-there.bin"]},
        "training": {"steps": 1000, "batch_tokens": 512, "micro_batch_size": 2, "tune": false}
    })",
                        "test", overrides);
}

// Each changes the memory or waits for the device, by the runtime or by the driver. Waiting for an event is how the
// report of the step before is awaited.
constexpr const char* kForbidden[] = {
    "cudaMalloc",
    "cudaFree",
    "cudaHostAlloc",
    "cudaHostRegister",
    "cudaMemPool",
    "cuMemAlloc",
    "cuMemFree",
    "cuMemHostAlloc",
    "cuMemHostRegister",
    "cuMemCreate",
    "cuMemMap",
    "cuMemPool",
    "cudaDeviceSynchronize",
    "cudaStreamSynchronize",
    "cuCtxSynchronize",
    "cuStreamSynchronize",
    "cudaGraphInstantiate",
    "cuGraphInstantiate",
};

void check_steps(const Device& device, bool leaves_out_attention) {
    constexpr int64_t kFirst = 3, kLast = 10, kSteps = kLast - kFirst + 1;
    // Traced from the first step on, so that CUPTI knows the graphs.
    SyntheticRun run(small_config(), device, {.leaves_out_attention = leaves_out_attention});
    ASSERT_EQ(run.plan().num_micro_steps(), kMicroSteps);
    start_trace(true);
    run.run_to(kFirst - 1, true);
    (void)stop_trace();
    start_trace(true);
    run.run_to(kLast, true);  // has waited for all work: its last event stands behind it
    const std::vector<TraceRecord> records = stop_trace();

    int64_t num_kernels = 0, graph_launches = 0;
    std::map<std::string, int64_t> copies;
    for (const TraceRecord& record : records) {
        num_kernels += record.kind == TraceKind::kernel;
        if (record.kind == TraceKind::copy) ++copies[record.name];
        if (record.kind != TraceKind::api) continue;
        graph_launches += record.name == "cudaGraphLaunch";
        for (const char* const forbidden : kForbidden)
            EXPECT_FALSE(record.name.starts_with(forbidden)) << record.name << " in a step";
    }
    EXPECT_GT(num_kernels, kSteps * kMicroSteps * kLayers * 10) << "kernels of graphs are not recorded one by one";
    EXPECT_EQ(copies[kDeviceToHost], kSteps);
    EXPECT_EQ(copies[kHostToDevice], kSteps * kMicroSteps);
    EXPECT_EQ(graph_launches, kSteps * (kMicroSteps + 1));
    EXPECT_EQ(run.num_skipped(), 0);
}

#define INGOT_CUPTI_OR_SKIP() \
    if (std::string why; !can_trace(&why)) GTEST_SKIP() << why

TEST(StepCuda, AllocatesAndWaitsForNothing) {
    INGOT_CUDA_OR_SKIP(device);
    INGOT_CUPTI_OR_SKIP();
    check_steps(device, false);
}

TEST(StepCuda, TheSameWithAttentionLeftOut) {
    INGOT_CUDA_OR_SKIP(device);
    INGOT_CUPTI_OR_SKIP();
    check_steps(device, true);
}

// The table of kernels holds for the symbols that a GPU reports.
TEST(StepCuda, EachPartHasItsKernels) {
    INGOT_CUDA_OR_SKIP(device);
    INGOT_CUPTI_OR_SKIP();
    for (const bool is_left_out : {false, true}) {
        SCOPED_TRACE(is_left_out ? "attention left out" : "with attention");
        SyntheticRun run(small_config({"model.qk_norm=true"}), device, {.leaves_out_attention = is_left_out});
        start_trace(false);
        run.run_to(6, true);
        const StepTimes times = step_times(stop_trace(), 2);
        const auto calls = [&](StepPart part) { return times.parts[static_cast<size_t>(part)].calls; };
        constexpr double kPerStep = kMicroSteps, kPerLayer = kMicroSteps * kLayers;
        const double with_attention = is_left_out ? 0 : 1;
        EXPECT_EQ(times.num_steps, 3);
        EXPECT_NEAR(calls(StepPart::embedding_forward), kPerStep, 1e-9);
        EXPECT_NEAR(calls(StepPart::rmsnorm_forward), kPerStep + 2 * kPerLayer * (1 + with_attention), 1e-9);
        EXPECT_NEAR(calls(StepPart::rope), 4 * kPerLayer * with_attention, 1e-9);
        EXPECT_NEAR(calls(StepPart::attention_forward), kPerLayer, 1e-9);
        EXPECT_GE(calls(StepPart::attention_backward), kPerLayer - 1e-9);
        EXPECT_NEAR(calls(StepPart::swiglu_forward), kPerLayer, 1e-9);
        EXPECT_NEAR(calls(StepPart::swiglu_backward), kPerLayer, 1e-9);
        EXPECT_GE(calls(StepPart::gemms), 12 * kPerLayer + 3 * kPerStep - 1e-9);
        EXPECT_NEAR(calls(StepPart::cross_entropy), kPerStep, 1e-9);
        EXPECT_NEAR(calls(StepPart::loss_sum), kPerStep, 1e-9);
        EXPECT_GE(calls(StepPart::embedding_backward), kPerStep);
        EXPECT_GE(calls(StepPart::rmsnorm_backward), kPerStep + 2 * kPerLayer);
        EXPECT_NEAR(calls(StepPart::step_scalars), 2, 1e-9);
        EXPECT_GE(calls(StepPart::gradient_norm), 1);
        EXPECT_GE(calls(StepPart::adamw), 1);
        EXPECT_EQ(calls(StepPart::other), 0);
        EXPECT_GT(times.gap_seconds, 0);
        EXPECT_LT(times.gap_seconds, times.seconds);
    }
}

}  // namespace
}  // namespace ingot::test
