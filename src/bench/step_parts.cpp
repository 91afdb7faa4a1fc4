#include "src/bench/step_parts.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string_view>
#include <utility>

namespace ingot {

namespace {

constexpr std::pair<StepPart, const char*> kPartNames[] = {
    {StepPart::embedding_forward, "embedding forward"},
    {StepPart::rmsnorm_forward, "norms forward"},
    {StepPart::rope, "rope"},
    {StepPart::attention_forward, "attention forward"},
    {StepPart::swiglu_forward, "swiglu forward"},
    {StepPart::gemms, "GEMMs"},
    {StepPart::bias_backward, "bias backward"},
    {StepPart::cross_entropy, "cross-entropy"},
    {StepPart::loss_sum, "loss sum"},
    {StepPart::fp8, "fp8 conversion"},
    {StepPart::embedding_backward, "embedding backward"},
    {StepPart::rmsnorm_backward, "norms backward"},
    {StepPart::attention_backward, "attention backward"},
    {StepPart::swiglu_backward, "swiglu backward"},
    {StepPart::gradient_norm, "gradient norm"},
    {StepPart::adamw, "adamw"},
    {StepPart::step_scalars, "step scalars"},
    {StepPart::zero_gradients, "zero gradients"},
    {StepPart::copies, "copies"},
    {StepPart::communication, "communication"},
    {StepPart::other, "other"},
};
static_assert(std::size(kPartNames) == kNumStepParts);

constexpr KernelPart kKernelParts[] = {
    {"adamw.cu", "adamw_kernel", StepPart::adamw},
    {"adamw.cu", "gradient_norm_kernel", StepPart::gradient_norm},
    {"adamw.cu", "add_partials_kernel", StepPart::gradient_norm},
    {"cross_entropy.cu", "resident_kernel", StepPart::cross_entropy},
    {"cross_entropy.cu", "streaming_kernel", StepPart::cross_entropy},
    {"cross_entropy.cu", "loss_sum_kernel", StepPart::loss_sum},
    {"decode.cu", "decode_kernel", StepPart::other},
    {"decode.cu", "append_kernel", StepPart::other},
    {"embedding.cu", "forward_kernel", StepPart::embedding_forward},
    {"embedding.cu", "count_kernel", StepPart::embedding_backward},
    {"embedding.cu", "scatter_kernel", StepPart::embedding_backward},
    {"embedding.cu", "sum_pieces_kernel", StepPart::embedding_backward},
    {"embedding.cu", "add_runs_kernel", StepPart::embedding_backward},
    {"fill.cu", "fill_normal_kernel", StepPart::other},
    {"fill.cu", "fill_value_kernel", StepPart::other},
    {"fill.cu", "round_to_kernel", StepPart::other},
    {"fp8.cu", "quantize_kernel", StepPart::fp8},
    {"fp8.cu", "update_scales_kernel", StepPart::fp8},
    {"left_out.cu", "left_out_forward_kernel", StepPart::attention_forward},
    {"left_out.cu", "left_out_backward_kernel", StepPart::attention_backward},
    {"bias.cu", "bias_kernel", StepPart::bias_backward},
    {"bias.cu", "sum_partials_kernel", StepPart::bias_backward},
    {"materialized.cu", "softmax_kernel", StepPart::other},
    {"materialized.cu", "softmax_backward_kernel", StepPart::other},
    {"materialized.cu", "round_kernel", StepPart::other},
    {"simt.cu", "forward_kernel", StepPart::attention_forward},
    {"simt.cu", "delta_kernel", StepPart::attention_backward},
    {"simt.cu", "dq_kernel", StepPart::attention_backward},
    {"simt.cu", "dkv_kernel", StepPart::attention_backward},
    {"rmsnorm.cu", "forward_kernel", StepPart::rmsnorm_forward},
    {"rmsnorm.cu", "scalar_forward_kernel", StepPart::rmsnorm_forward},
    {"rmsnorm_fp8.cu", "rmsnorm_forward_fp8_kernel", StepPart::rmsnorm_forward},
    {"rmsnorm.cu", "backward_kernel", StepPart::rmsnorm_backward},
    {"rmsnorm.cu", "scalar_backward_kernel", StepPart::rmsnorm_backward},
    {"rmsnorm.cu", "sum_partials_kernel", StepPart::rmsnorm_backward},
    {"nccl.cu", "sum_step_sums_kernel", StepPart::communication},
    {"nccl.cu", "sum_over_ranks_kernel", StepPart::communication},
    {"peer_copies.cu", "sum_in_order_kernel", StepPart::communication},
    {"rope.cu", "rope_kernel", StepPart::rope},
    {"sm80", "forward_kernel", StepPart::attention_forward},
    {"sm80", "prepare_kernel", StepPart::attention_backward},
    {"sm80", "backward_kernel", StepPart::attention_backward},
    {"sm80", "finish_kernel", StepPart::attention_backward},
    {"sm90", "forward_kernel", StepPart::attention_forward},
    {"sm90", "prepare_kernel", StepPart::attention_backward},
    {"sm90", "backward_kernel", StepPart::attention_backward},
    {"sm90", "finish_kernel", StepPart::attention_backward},
    {"step.cu", "step_begin_kernel", StepPart::step_scalars},
    {"step.cu", "step_decide_kernel", StepPart::step_scalars},
    {"swiglu.cu", "forward_kernel", StepPart::swiglu_forward},
    {"swiglu.cu", "backward_kernel", StepPart::swiglu_backward},
    {"swiglu_fp8.cu", "swiglu_forward_fp8_kernel", StepPart::swiglu_forward},
    {"swiglu_fp8.cu", "swiglu_backward_fp8_kernel", StepPart::swiglu_backward},
    {"timing.cu", "copy_kernel", StepPart::other},
};
constexpr const char* kFirstKernel = "step_begin_kernel";  // the first kernel of a step

// nvcc mangles a function in an anonymous namespace with a hash, the length and name of the file (with _ for other
// characters), and a hash before the function:
// _ZN5ingot43_GLOBAL__N__dda19fbf_10_rmsnorm_cu_491c751514forward_kernelI... In a named namespace it is
// _ZN5ingot4sm8014forward_kernelI...
bool is_kernel(const std::string& symbol, const KernelPart& row) {
    const std::string_view place = row.place;
    std::string begin = join("_", place, "_");
    std::replace(begin.begin(), begin.end(), '.', '_');
    if (place.find('.') == std::string_view::npos) begin = join("5ingot", place.size(), place);
    const size_t at = symbol.find(begin);
    return at != std::string::npos &&
           symbol.find(join(std::string_view(row.kernel).size(), row.kernel), at) != std::string::npos;
}

bool is_ours(const std::string& symbol) {
    return symbol.find("5ingot") != std::string::npos;
}

StepPart part_of(const TraceRecord& record) {
    switch (record.kind) {
        case TraceKind::kernel:
            return part_of_kernel(record.name);
        case TraceKind::set:
            return StepPart::zero_gradients;
        case TraceKind::copy:
            return StepPart::copies;
        case TraceKind::api:
            break;
    }
    return StepPart::other;
}

}  // namespace

const char* name_of(StepPart part) {
    for (const auto& [named, name] : kPartNames)
        if (named == part) return name;
    return "?";
}

const char* key_of(StepPart part) {
    return part == StepPart::gemms ? "products" : name_of(part);
}

std::span<const KernelPart> kernel_parts() {
    return kKernelParts;
}

StepPart part_of_kernel(const std::string& symbol) {
    for (const KernelPart& row : kKernelParts)
        if (is_kernel(symbol, row)) return row.part;
    if (symbol.find("nccl") != std::string::npos) return StepPart::communication;
    return is_ours(symbol) ? StepPart::other : StepPart::gemms;
}

StepTimes step_times(const std::vector<TraceRecord>& records, int64_t num_skipped) {
    std::vector<uint64_t> begins;
    for (const TraceRecord& record : records)
        if (record.kind == TraceKind::kernel && record.name.find(kFirstKernel) != std::string::npos)
            begins.push_back(record.begin_ns);
    std::sort(begins.begin(), begins.end());
    const int64_t num_steps = static_cast<int64_t>(begins.size()) - 1 - num_skipped;
    CHECK(num_skipped >= 0 && num_steps >= 1, "a trace with the beginnings of ", begins.size(), " steps, of which ",
          num_skipped, " are skipped: trace more steps");
    const uint64_t begin = begins[static_cast<size_t>(num_skipped)], end = begins.back();
    const double per_step = 1e-9 / static_cast<double>(num_steps);

    StepTimes times;
    times.num_steps = num_steps;
    times.seconds = static_cast<double>(end - begin) * per_step;
    std::map<std::string, StepPart> part_of_symbol;  // there are few symbols, and many records
    std::vector<std::pair<uint64_t, uint64_t>> busy;
    for (const TraceRecord& record : records) {
        if (record.kind == TraceKind::api || record.end_ns <= begin || record.begin_ns >= end) continue;
        busy.emplace_back(std::max(begin, record.begin_ns), std::min(end, record.end_ns));
        if (record.begin_ns < begin) continue;  // belongs to the step before
        const auto [place, is_new] = part_of_symbol.try_emplace(record.name, StepPart::other);
        if (is_new) place->second = part_of(record);
        const auto add = [&](StepTimes::Entry& entry) {
            entry.calls += 1 / static_cast<double>(num_steps);
            entry.seconds += static_cast<double>(record.end_ns - record.begin_ns) * per_step;
        };
        add(times.parts[static_cast<size_t>(place->second)]);
        if (record.kind == TraceKind::kernel) add(times.kernels[record.name]);
    }
    std::sort(busy.begin(), busy.end());
    uint64_t reached = begin, gaps = 0;
    for (const auto& [from, to] : busy) {
        if (from > reached) gaps += from - reached;
        reached = std::max(reached, to);
    }
    gaps += end - reached;
    times.gap_seconds = static_cast<double>(gaps) * per_step;
    return times;
}

std::array<StepWork, kNumStepParts> step_work(const StepShape& shape, const ParameterTable& table) {
    const ModelConfig& m = shape.model;
    const auto real = [](int64_t value) { return static_cast<double>(value); };
    const double N = real(shape.tokens), C = real(m.d_model), F = real(m.d_ff), L = real(m.n_layers);
    const double V = real(m.vocab_size), VP = real(m.padded_vocab_size());
    const double query = real(m.n_heads * m.head_dim), group = real(m.n_kv_heads * m.head_dim);
    const double num_heads = real(m.n_heads + m.n_kv_heads);  // heads of queries and keys
    const double e = real(size_of(shape.dtype)), stats = 4;   // bytes of an element, and of statistics and masters
    const bool has_attention = !shape.is_attention_left_out;
    const bool is_block = shape.recompute == Recompute::block, is_light = shape.recompute == Recompute::light;
    const double forwards = is_block ? 2 : 1;  // how often forward runs for what only "block" recomputes
    const double norms = is_block || is_light ? 2 : 1;
    // The rows of the embedding table that N random tokens touch.
    const double rows = V * -std::expm1(N * std::log1p(-1 / V));

    std::array<StepWork, kNumStepParts> work{};
    const auto at = [&](StepPart part) -> StepWork& { return work[static_cast<size_t>(part)]; };
    at(StepPart::embedding_forward).bytes = N * C * e + rows * C * e + 4 * N;
    at(StepPart::embedding_backward).bytes = N * C * e + rows * C * 2 * stats + 4 * N;
    const double norm_weights = C * e + C * 2 * stats;
    at(StepPart::rmsnorm_forward).bytes = (2 * L * norms + 1) * (2 * N * C * e + N * stats + C * e);
    at(StepPart::rmsnorm_backward).bytes =
        2 * L * (4 * N * C * e + N * stats + norm_weights) + (3 * N * C * e + N * stats + norm_weights);
    if (m.qk_norm && has_attention) {
        at(StepPart::rmsnorm_forward).bytes += L * forwards * N * (2 * (query + group) * e + num_heads * stats);
        at(StepPart::rmsnorm_backward).bytes += L * N * (3 * (query + group) * e + num_heads * stats);
    }
    if (m.position == Position::rope && has_attention)
        at(StepPart::rope).bytes = (forwards + 1) * L * N * 2 * (query + group) * e;
    if (!has_attention) {
        at(StepPart::attention_forward).bytes = forwards * L * N * (group + query) * e;
        at(StepPart::attention_backward).bytes = L * N * (2 * query + 2 * group) * e;
    }
    if (m.qkv_bias) at(StepPart::bias_backward).bytes = L * (N * e + 2 * stats) * (query + 2 * group);
    at(StepPart::swiglu_forward).bytes = L * 3 * N * F * e;
    // Backward writes `out` again where it was not kept.
    at(StepPart::swiglu_backward).bytes = L * (shape.recompute == Recompute::none ? 5 : 6) * N * F * e;
    at(StepPart::cross_entropy).bytes = N * (V + VP) * e + 8 * N;
    at(StepPart::loss_sum).bytes = 8 * N;
    at(StepPart::gemms).flops = 6 * real(table.num_matmul_parameters()) * N;
    // Backward repeats all GEMMs of a layer's forward but the last (Model::layer_forward).
    if (is_block) at(StepPart::gemms).flops += 2 * N * L * (C * (query + 2 * group) + query * C + 2 * F * C);
    for (StepWork& each : work) {
        each.bytes *= real(shape.num_micro_steps);
        each.flops *= real(shape.num_micro_steps);
    }

    const double flat = real(table.flat_size());
    const bool has_copy = shape.dtype != accumulation_dtype(shape.dtype);
    at(StepPart::gradient_norm).bytes = flat * stats;
    // Only the embedding's gradient is set to zero, since its backward adds. If it is tied, the head's gradient comes
    // first.
    at(StepPart::zero_gradients).bytes = m.tie_embeddings ? 0 : VP * C * stats;
    // AdamW reads and writes the weights and both moments, reads the gradient, and writes the rounded copy.
    at(StepPart::adamw).bytes = real(table.num_parameters()) * (7 * stats + (has_copy ? e : 0));
    return work;
}

}  // namespace ingot
