// The parts of a step: every kernel has one, times and gaps of made-up traces, bytes counted by hand, and the synthetic
// run on the CPU.
//
// Seen to catch: a kernel that is missing from the table, also one whose name another file has too; two files'
// forward_kernel taken for one.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "src/bench/step_parts.h"
#include "src/bench/synthetic_run.h"
#include "src/train/peak_rate.h"

namespace ingot::test {
namespace {

std::string symbol(const std::string& file, const std::string& kernel) {
    return join("_ZN5ingot43_GLOBAL__N__dda19fbf_", file.size(), "_", file, "_491c7515", kernel.size(), kernel,
                "IfLb0EEEvNS0_11ForwardArgsIT_EE");
}

// "adamw.cu: adamw_kernel" of every __global__ function in kernels/. In a header: "sm80: backward_kernel", by its
// namespace, since the symbol does not have the header's name.
std::set<std::string> kernels_in_sources() {
    std::set<std::string> kernels;
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(std::filesystem::path(INGOT_SOURCE_DIR) / "kernels")) {
        const std::string extension = entry.path().extension();
        if (extension != ".cu" && extension != ".cuh") continue;
        std::ifstream file(entry.path());
        std::stringstream buffer;
        buffer << file.rdbuf();
        const std::string text = std::regex_replace(buffer.str(), std::regex("//[^\n]*"), "");
        const std::regex function("__global__[^;{]*?\\b(\\w+_kernel)\\s*\\(");
        int64_t count = 0;
        for (size_t at = text.find("__global__"); at != std::string::npos; at = text.find("__global__", at + 1))
            ++count;
        std::string place = entry.path().filename();
        if (std::smatch found; extension == ".cuh" && count > 0) {
            EXPECT_TRUE(std::regex_search(text, found, std::regex("namespace ingot::(\\w+)")))
                << entry.path() << " has a kernel, but no namespace of its own";
            place = found[1].str();
        }
        for (std::sregex_iterator match(text.begin(), text.end(), function), end; match != end; ++match, --count)
            kernels.insert(join(place, ": ", (*match)[1].str()));
        EXPECT_EQ(count, 0) << entry.path() << " has a __global__ function whose name does not end in _kernel";
    }
    return kernels;
}

TEST(StepParts, EveryKernelHasOne) {
    std::set<std::string> table;
    for (const KernelPart& row : kernel_parts()) table.insert(join(row.place, ": ", row.kernel));
    EXPECT_EQ(table.size(), kernel_parts().size()) << "a row stands twice";
    const std::set<std::string> sources = kernels_in_sources();
    EXPECT_GE(sources.size(), 30u);
    for (const std::string& kernel : sources)
        EXPECT_TRUE(table.contains(kernel)) << kernel << " has no row in src/bench/step_parts.cpp";
    for (const KernelPart& row : kernel_parts())
        EXPECT_TRUE(sources.contains(join(row.place, ": ", row.kernel)))
            << row.place << ": " << row.kernel << " is no longer there";
}

TEST(StepParts, KernelsOfOneNameAreToldApartByFile) {
    EXPECT_EQ(part_of_kernel(symbol("rmsnorm_cu", "forward_kernel")), StepPart::rmsnorm_forward);
    EXPECT_EQ(part_of_kernel(symbol("rmsnorm_cu", "scalar_forward_kernel")), StepPart::rmsnorm_forward);
    EXPECT_EQ(part_of_kernel(symbol("rmsnorm_cu", "scalar_backward_kernel")), StepPart::rmsnorm_backward);
    EXPECT_EQ(part_of_kernel(symbol("swiglu_cu", "forward_kernel")), StepPart::swiglu_forward);
    EXPECT_EQ(part_of_kernel(symbol("embedding_cu", "forward_kernel")), StepPart::embedding_forward);
    EXPECT_EQ(part_of_kernel(symbol("simt_cu", "forward_kernel")), StepPart::attention_forward);
    EXPECT_EQ(part_of_kernel("_ZN5ingot4sm8014forward_kernelILNS_5DTypeE2ELi64ELb1EEEvNS0_11ForwardArgsE"),
              StepPart::attention_forward);
    EXPECT_EQ(part_of_kernel("_ZN5ingot4sm8015backward_kernelILNS_5DTypeE2ELi64ELb1EEEvNS0_12BackwardArgsE"),
              StepPart::attention_backward);
    EXPECT_EQ(part_of_kernel("_ZN5ingot4sm9014forward_kernelILNS_5DTypeE2ELi64ELb1EEEvNS0_11ForwardArgsE"),
              StepPart::attention_forward);
    EXPECT_EQ(part_of_kernel(symbol("rmsnorm_cu", "unheard_of_kernel")), StepPart::other);
    EXPECT_EQ(part_of_kernel("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTN"), StepPart::gemms);
    EXPECT_EQ(part_of_kernel("_ZN7cutlass7Kernel2I66cutlass_80_tensorop_bf16_s16816gemm_bf16EEvNT_6ParamsE"),
              StepPart::gemms);
}

// Scripts read the key of a part from --json, so that it stays when the name changes.
TEST(StepParts, EveryPartHasANameAndAKey) {
    std::set<std::string> names;
    for (size_t i = 0; i < kNumStepParts; ++i) names.insert(name_of(static_cast<StepPart>(i)));
    EXPECT_EQ(names.size(), kNumStepParts);
    EXPECT_EQ(names.count("?"), 0u);
    EXPECT_STREQ(name_of(StepPart::gemms), "GEMMs");
    EXPECT_STREQ(key_of(StepPart::gemms), "products");
    EXPECT_STREQ(key_of(StepPart::adamw), "adamw");
}

TEST(StepParts, TimesAndGapsOfWholeSteps) {
    const std::string begin = symbol("step_cu", "step_begin_kernel"), adamw = symbol("adamw_cu", "adamw_kernel");
    std::vector<TraceRecord> records;
    for (uint64_t step = 0; step < 4; ++step) {
        const uint64_t at = 1000 + 100 * step;
        const auto add = [&](TraceKind kind, const std::string& name, uint64_t from, uint64_t to) {
            records.push_back({kind, name, at + from, at + to, 1, 0, 0});
        };
        add(TraceKind::api, "cudaGraphLaunch", 0, 90);  // no work
        add(TraceKind::kernel, begin, 0, 10);
        add(TraceKind::set, "set", 10, 15);
        add(TraceKind::kernel, "gemm", 20, 60);
        add(TraceKind::copy, kHostToDevice, 50, 70);  // half beside the GEMM
        add(TraceKind::kernel, adamw, 70, 95 + step);
    }
    const StepTimes times = step_times(records, 1);
    const auto part = [&](StepPart which) { return times.parts[static_cast<size_t>(which)]; };
    EXPECT_EQ(times.num_steps, 2);
    EXPECT_NEAR(times.seconds, 100e-9, 1e-15);
    EXPECT_NEAR(part(StepPart::gemms).seconds, 40e-9, 1e-15);
    EXPECT_NEAR(part(StepPart::gemms).calls, 1, 1e-12);
    EXPECT_NEAR(part(StepPart::copies).seconds, 20e-9, 1e-15);
    EXPECT_NEAR(part(StepPart::zero_gradients).seconds, 5e-9, 1e-15);
    EXPECT_NEAR(part(StepPart::adamw).seconds, 26.5e-9, 1e-15);
    EXPECT_NEAR(times.gap_seconds, 5e-9 + 3.5e-9, 1e-15);
    EXPECT_EQ(part(StepPart::other).calls, 0);
    EXPECT_EQ(times.kernels.size(), 3u);
    EXPECT_THROW(step_times(records, 3), Error);
    EXPECT_THROW(step_times({}, 0), Error);
}

Config small_config() {
    return parse_config(R"({
        "model": {"n_layers": 2, "d_model": 64, "n_heads": 2, "n_kv_heads": 1, "head_dim": 32, "d_ff": 128,
                  "context_length": 16, "vocab_size": 100, "position": "rope"},
        "data": {"train": ["not-there.bin"]},
        "training": {"steps": 10, "batch_tokens": 64, "micro_batch_size": 2},
        "schedule": {"warmup_steps": 0}
    })",
                        "test", {});
}

TEST(StepParts, BytesByHand) {
    const Config config = small_config();
    const ParameterTable table(config.model);
    StepShape shape{.model = config.model, .tokens = 32, .num_micro_steps = 2};
    const auto bytes = [&](StepPart part) { return step_work(shape, table)[static_cast<size_t>(part)].bytes; };
    // bf16, N 32, C 64, F 128, L 2; two micro-steps.
    EXPECT_EQ(bytes(StepPart::rmsnorm_forward), 2 * 5 * (2 * 32 * 64 * 2 + 32 * 4 + 64 * 2));
    EXPECT_EQ(bytes(StepPart::swiglu_forward), 2 * 2 * 3 * 32 * 128 * 2);
    EXPECT_EQ(bytes(StepPart::swiglu_backward), 2 * 2 * 5 * 32 * 128 * 2);
    EXPECT_EQ(bytes(StepPart::rope), 2 * 2 * 2 * 2 * 32 * (64 + 32) * 2);
    EXPECT_EQ(bytes(StepPart::cross_entropy), 2 * (32 * (100 + 128) * 2 + 8 * 32));
    EXPECT_EQ(bytes(StepPart::zero_gradients), 0);  // the embedding is tied
    EXPECT_EQ(bytes(StepPart::adamw), 30.0 * static_cast<double>(table.num_parameters()));
    EXPECT_EQ(bytes(StepPart::attention_forward), 0);
    const double gemms = step_work(shape, table)[static_cast<size_t>(StepPart::gemms)].flops;
    EXPECT_EQ(gemms, 6.0 * static_cast<double>(table.num_matmul_parameters()) * 64);
    shape.is_attention_left_out = true;
    EXPECT_EQ(bytes(StepPart::rope), 0);
    EXPECT_EQ(bytes(StepPart::attention_forward), 2 * 2 * 32 * (64 + 32) * 2);
    shape.recompute = Recompute::light;
    EXPECT_EQ(bytes(StepPart::swiglu_forward), 2 * 2 * 3 * 32 * 128 * 2);
    EXPECT_EQ(bytes(StepPart::swiglu_backward), 2 * 2 * 6 * 32 * 128 * 2);
}

TEST(SyntheticRun, TrainsOnTheCpu) {
    const Config config = small_config();
    SyntheticRun run(config, Device::cpu(), {.document_tokens = 4});
    EXPECT_EQ(run.visible_pairs_per_token(), 2);  // 4^2 / 2 for 4 tokens
    run.run_to(1);
    // Random targets: nothing can be known of them at the start.
    EXPECT_NEAR(run.decision().loss, std::log(100.0), 0.1);
    run.run_to(3, true);
    EXPECT_EQ(run.step(), 3);
    EXPECT_EQ(run.num_skipped(), 0);
    EXPECT_TRUE(std::isfinite(run.decision().loss));
    EXPECT_GT(run.decision().grad_norm, 0);
}

TEST(PeakRate, LongerNamesWin) {
    const auto flops = [](const char* name) { return peak_rate(name, DType::bf16).value().flops; };
    EXPECT_EQ(flops("NVIDIA H100 80GB HBM3 (sm_90)"), 989.4e12);
    EXPECT_EQ(flops("NVIDIA H100 PCIe (sm_90)"), 756e12);
    EXPECT_EQ(flops("NVIDIA H200 (sm_90)"), 989.4e12);
    EXPECT_EQ(flops("NVIDIA A100-SXM4-80GB (sm_80)"), 312e12);
    EXPECT_EQ(flops("NVIDIA A10 (sm_86)"), 125e12);
    EXPECT_EQ(flops("NVIDIA L40S (sm_89)"), 362e12);
    EXPECT_EQ(flops("NVIDIA L4 (sm_89)"), 121e12);
    EXPECT_EQ(flops("NVIDIA GeForce RTX 4090 (sm_89)"), 165.2e12);
    EXPECT_FALSE(peak_rate("NVIDIA T4 (sm_75)", DType::f16).has_value());
    EXPECT_FALSE(peak_rate("NVIDIA H100 80GB HBM3 (sm_90)", DType::f32).has_value());
}

}  // namespace
}  // namespace ingot::test
