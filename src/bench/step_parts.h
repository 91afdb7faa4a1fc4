// A training step by its parts: which kernel belongs to which part, how long each took in a trace, and how long each
// would take if it were bound by nothing but the bytes that it must move, or the products' rate.
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
    rmsnorm_forward,  // QK-norm too: it is the same kernel
    rope,
    attention_forward,
    swiglu_forward,
    products,  // whatever is not ours: cuBLASLt's kernels
    cross_entropy,
    loss_sum,
    embedding_backward,
    rmsnorm_backward,
    bias_backward,
    attention_backward,
    swiglu_backward,
    gradient_norm,
    adamw,
    step_scalars,
    zero_gradients,  // and any other memory that is set
    copies,
    other  // ours, but no part of a step
};
constexpr size_t kNumStepParts = static_cast<size_t>(StepPart::other) + 1;
const char* name_of(StepPart part);

struct KernelPart {
    const char* place;   // the file that is compiled, "rmsnorm.cu", or a namespace, "sm80": some have a forward_kernel
    const char* kernel;  // the function's name
    StepPart part;
};
// Every __global__ function of kernels/.
std::span<const KernelPart> kernel_parts();
// By the mangled symbol. Ours are in anonymous namespaces, which nvcc mangles with the file's name, or in one of
// their own.
StepPart part_of_kernel(const std::string& symbol);

// ---- What a trace says ----

struct StepTimes {
    struct Entry {
        double calls = 0, seconds = 0;  // of one step
    };
    int64_t num_steps = 0;
    double seconds = 0;      // of one step, from its beginning to the next one's
    double gap_seconds = 0;  // of it: nothing ran, neither kernel nor copy
    std::array<Entry, kNumStepParts> parts{};
    std::map<std::string, Entry> kernels;  // by symbol
};
// Means over the whole steps of a trace but the first `num_skipped`. Throws Error if there is none.
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
    double flops = 0;  // products
};
// Of one step. Attention has no entry, unless it is left out: its floor is its own benchmark's matter.
std::array<StepWork, kNumStepParts> step_work(const StepShape& shape, const ParameterTable& table);

}  // namespace ingot
