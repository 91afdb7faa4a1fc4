// Divides a training step into parts: which kernel belongs to which part, how long each took in a trace, and its
// floor, the time that it would take if only the bytes that it must move, or the GEMM rate, limited it.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/trace.h"
#include "src/model/parameters.h"

namespace ingot {

enum class StepPart : uint8_t {
    embedding_forward,
    rmsnorm_forward,  // including QK-norm, which is the same kernel
    rope,
    attention_forward,
    swiglu_forward,
    gemms,  // kernels that are not ours, which are cuBLASLt's
    cross_entropy,
    loss_sum,
    fp8,  // conversion that no op does on its way, and the scales
    embedding_backward,
    rmsnorm_backward,
    bias_backward,
    attention_backward,
    swiglu_backward,
    gradient_norm,
    adamw,
    step_scalars,
    zero_gradients,  // and any other memset
    copies,
    communication,  // with other GPUs, but for the copies
    other           // ours, but no part of a step
};
constexpr size_t kNumStepParts = static_cast<size_t>(StepPart::other) + 1;
const char* name_of(StepPart part);
const char* key_of(StepPart part);  // the name in --json, which does not change

struct KernelPart {
    const char* place;   // the source file, "rmsnorm.cu", or a namespace, "sm80": several have a forward_kernel
    const char* kernel;  // name of the function
    StepPart part;
};
// Lists every __global__ function of kernels/.
std::span<const KernelPart> kernel_parts();
// Takes the mangled symbol. Our kernels are in anonymous namespaces, which nvcc mangles with the file's name, or in
// named namespaces.
StepPart part_of_kernel(const std::string& symbol);

// ---- What a trace says ----

struct StepTimes {
    struct Entry {
        double calls = 0, seconds = 0;  // of one step
    };
    int64_t num_steps = 0;
    double seconds = 0;      // of one step, from its start to the next one's
    double gap_seconds = 0;  // of `seconds`, when neither a kernel nor a copy ran
    std::array<Entry, kNumStepParts> parts{};
    std::map<std::string, Entry> kernels;  // by symbol
};
// Returns means over the whole steps of a trace without the first `num_skipped`. Throws Error if no step is left.
StepTimes step_times(const std::vector<TraceRecord>& records, int64_t num_skipped);

// ---- What a step must do ----

struct StepShape {
    ModelConfig model;
    DType dtype = DType::bf16;
    Recompute recompute = Recompute::none;
    int64_t tokens = 0;  // of a micro-step
    int64_t num_micro_steps = 1;
    bool is_attention_left_out = false;
};
struct StepWork {
    double bytes = 0;  // each input read once, each output written once; 0: no such bound
    double flops = 0;  // of GEMMs
};
// Returns the work of one step. Attention has an entry only if it is left out: its own benchmark has its floor.
std::array<StepWork, kNumStepParts> step_work(const StepShape& shape, const ParameterTable& table);

}  // namespace ingot
