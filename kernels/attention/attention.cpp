// Checks, the choice of the kernel, and functions that all kernels share.
#include "kernels/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <utility>

#include "kernels/attention/attention_cpu.h"
#include "kernels/attention/simt.h"
#include "kernels/attention/sm80.h"
#include "kernels/attention/sm90.h"

namespace ingot {

namespace {

constexpr int64_t kMaxHeadSize = 256;

void check_input(const Device& device, const char* name, const Tensor& tensor, int64_t heads, const Tensor& q) {
    check_view("attention", name, tensor, {q.shape[0], heads, q.shape[2]}, q.dtype, device.kind());
}
void check_output(const Device& device, const char* name, const Tensor& tensor, int64_t heads, const Tensor& q) {
    check_output_view("attention", name, tensor, {q.shape[0], heads, q.shape[2]}, q.dtype, device.kind());
}

void check(const Device& device, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& lse,
           const Tensor& slopes, const AttentionMask& mask) {
    CHECK(q.rank == 3 && k.rank == 3, "attention: q is ", q.describe(), ", k is ", k.describe(),
          ", they must be (N, heads, HS)");
    const int64_t N = q.shape[0], NH = q.shape[1], NKV = k.shape[1];
    CHECK(NKV >= 1 && NH % NKV == 0, "attention: ", NH, " query heads are not a multiple of ", NKV, " key/value heads");
    check_input(device, "q", q, NH, q);
    check_input(device, "k", k, NKV, q);
    check_input(device, "v", v, NKV, q);
    const DType stats = accumulation_dtype(q.dtype);
    check_tensor("attention", "lse", lse, {NH, N}, stats, device.kind());
    if (slopes) check_tensor("attention", "slopes", slopes, {NH}, stats, device.kind());
    for (const auto& [name, tensor] : {std::pair{"mask.first_key", &mask.first_key},
                                       {"mask.end_key", &mask.end_key},
                                       {"mask.first_query", &mask.first_query},
                                       {"mask.end_query", &mask.end_query}})
        check_tensor("attention", name, *tensor, {N}, DType::i32, device.kind());
}

// Returns whether heads or tokens share their memory.
bool repeats(const Tensor& tensor) {
    return (tensor.shape[0] > 1 && tensor.stride[0] == 0) || (tensor.shape[1] > 1 && tensor.stride[1] == 0);
}

// Checks the requirements of tensor-core kernels beyond attention.h; the other kernels have none.
void check_for_tensor_cores(AttentionKernel kernel, double scale,
                            std::initializer_list<std::pair<const char*, const Tensor*>> tensors) {
    if (kernel != AttentionKernel::sm80 && kernel != AttentionKernel::sm90) return;
    CHECK(scale > 0 && std::isfinite(scale), "attention: a scale of ", scale, ", the kernel ", name_of(kernel),
          " takes those above 0: ask for the kernel simt");
    for (const auto& [name, tensor] : tensors)
        CHECK(reinterpret_cast<uintptr_t>(tensor->data) % 16 == 0 && tensor->stride[0] % 8 == 0 &&
                  tensor->stride[1] % 8 == 0,
              "attention: ", name, " is ", tensor->describe(), " with strides of ", tensor->stride[0], " and ",
              tensor->stride[1], " elements, the kernel ", name_of(kernel),
              " takes multiples of 8, and data aligned to 16 bytes: ask for the kernel simt, or copy the tensor");
}

template <size_t kCount>
bool is_among(const int64_t (&values)[kCount], int64_t value) {
    return std::find(std::begin(values), std::end(values), value) != std::end(values);
}

}  // namespace

AttentionChoice choose_attention(const Device& device, DType dtype, int64_t head_size,
                                 const AttentionOptions& options) {
    if (device.is_cpu()) {
        CHECK(dtype == DType::f32 || dtype == DType::f64, "attention on the CPU runs in fp32 or fp64, not in ",
              name_of(dtype), ": convert the tensors first");
        REQUIRE(options.request == AttentionRequest::automatic,
                "a kernel of the GPU is asked for, but the device is the CPU: ask for the automatic choice");
        REQUIRE(head_size >= 2 && head_size % 2 == 0 && head_size <= kMaxHeadSize, "head size ", head_size,
                " has no attention kernel on the CPU: use an even one up to ", kMaxHeadSize);
        return {AttentionKernel::cpu, "the device is the CPU"};
    }
    const std::optional<bool> is_hopper = device.is_planned() ? std::nullopt : std::optional(ingot::is_hopper(device));
    return choose_attention_cuda(device.name(), is_hopper, dtype, head_size, options);
}

AttentionChoice choose_attention_cuda(const std::string& gpu, std::optional<bool> is_hopper, DType dtype,
                                      int64_t head_size, const AttentionOptions& options) {
    CHECK(dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16,
          "attention on CUDA runs in fp32, bf16 or fp16, not in ", name_of(dtype));
    REQUIRE(is_among(kSimtHeadSizes, head_size), "head size ", head_size,
            " has no attention kernel on CUDA: use 32, 64, 96 or 128, or the CPU");
    if (options.request == AttentionRequest::simt) return {AttentionKernel::simt, "it is asked for"};
    const bool is_16_bit = dtype != DType::f32, fits_sm90 = is_among(kSm90HeadSizes, head_size);
    if (options.request != AttentionRequest::automatic) {
        const bool asks_sm90 = options.request == AttentionRequest::sm90;
        REQUIRE(is_16_bit, "the attention kernel ", asks_sm90 ? "sm90" : "sm80",
                " multiplies in bf16 or fp16, not in fp32: ask for the automatic choice or for simt, or use bf16");
        if (!asks_sm90) return {AttentionKernel::sm80, "it is asked for"};
        REQUIRE(fits_sm90, "the attention kernel sm90 takes heads of 64 or 128 elements, not of ", head_size,
                ": ask for the automatic choice, or use such heads");
        REQUIRE(is_hopper.value_or(true), "the attention kernel sm90 runs on Hopper GPUs alone (sm_90), not on ", gpu,
                ": ask for the automatic choice");
        return {AttentionKernel::sm90, "it is asked for"};
    }
    if (!is_16_bit) return {AttentionKernel::simt, "tensor cores do not multiply in fp32"};
    const char* const kAnyGpu = "the type is a 16-bit one, and every GPU that is built for has tensor cores";
    if (!is_hopper.value_or(true)) return {AttentionKernel::sm80, kAnyGpu};
    if (!fits_sm90) return {AttentionKernel::sm80, join(kAnyGpu, "; sm90 takes heads of 64 or 128")};
    if (!is_hopper) return {AttentionKernel::sm80, join(kAnyGpu, "; on a Hopper one sm90 runs")};
    return {AttentionKernel::sm90, "the type is a 16-bit one, and the GPU a Hopper one"};
}

const char* name_of(AttentionKernel kernel) {
    switch (kernel) {
        case AttentionKernel::cpu:
            return "cpu";
        case AttentionKernel::simt:
            return "simt";
        case AttentionKernel::sm80:
            return "sm80";
        case AttentionKernel::sm90:
            return "sm90";
    }
    return "?";
}

AttentionWorkspaceSm80::AttentionWorkspaceSm80(int64_t N, int64_t NH, int64_t HS)
    : padded_tokens((N + kPaddedRows - 1) / kPaddedRows * kPaddedRows), num_query_tiles(padded_tokens / kRows) {
    dq = 0;
    stats = dq + static_cast<size_t>(NH * padded_tokens * HS) * sizeof(float);
    adders = stats + static_cast<size_t>(2 * NH * padded_tokens) * sizeof(float);
    turns = adders + static_cast<size_t>(4 * num_query_tiles) * sizeof(int32_t);
    order = turns + static_cast<size_t>(NH * num_query_tiles) * sizeof(int32_t);
    ranks = order + static_cast<size_t>(num_query_tiles) * sizeof(int32_t);
    counter = ranks + static_cast<size_t>(num_query_tiles) * sizeof(int32_t);
    bytes = counter + sizeof(int32_t);
}

size_t attention_backward_workspace(const Device& device, const Tensor& q, const AttentionOptions& options) {
    CHECK(q.rank == 3, "attention_backward: q is ", q.describe(), ", it must be (N, NH, HS)");
    if (device.is_cpu()) return 0;
    const int64_t N = q.shape[0], NH = q.shape[1], HS = q.shape[2];
    switch (choose_attention(device, q.dtype, HS, options).kernel) {
        case AttentionKernel::cpu:
            return 0;
        case AttentionKernel::simt:
            return static_cast<size_t>(N * NH) * sizeof(float);
        case AttentionKernel::sm80:
        case AttentionKernel::sm90:
            return AttentionWorkspaceSm80(N, NH, HS).bytes;
    }
    return 0;
}

namespace {

// The first of `reads` is q.
AttentionKernel kernel_for(const Device& device, const AttentionOptions& options,
                           std::initializer_list<const Tensor*> reads) {
    const Tensor& q = **reads.begin();
    const AttentionKernel kernel = choose_attention(device, q.dtype, q.shape[2], options).kernel;
    const bool is_free = options.request == AttentionRequest::automatic;
    // TMA takes no stride of 0.
    const bool repeats_any = std::any_of(reads.begin(), reads.end(), [](const Tensor* read) { return repeats(*read); });
    return kernel == AttentionKernel::sm90 && is_free && repeats_any ? AttentionKernel::sm80 : kernel;
}

}  // namespace

void attention_forward(const Device& device, const AttentionForward& a) {
    check(device, a.q, a.k, a.v, a.lse, a.slopes, a.mask);
    check_output(device, "out", a.out, a.q.shape[1], a.q);
    const AttentionKernel kernel = kernel_for(device, a.options, {&a.q, &a.k, &a.v});
    check_for_tensor_cores(kernel, a.scale, {{"out", &a.out}, {"q", &a.q}, {"k", &a.k}, {"v", &a.v}});
    if (kernel == AttentionKernel::sm90) return attention_forward_sm90_cuda(device, a);
    if (kernel == AttentionKernel::sm80) return attention_forward_sm80_cuda(device, a);
    if (kernel == AttentionKernel::simt) return attention_forward_simt_cuda(device, a);
    attention_forward_cpu(a);
}

void attention_backward(const Device& device, const AttentionBackward& a) {
    check(device, a.q, a.k, a.v, a.lse, a.slopes, a.mask);
    const int64_t NH = a.q.shape[1], NKV = a.k.shape[1];
    check_input(device, "out", a.out, NH, a.q);
    check_input(device, "dout", a.dout, NH, a.q);
    check_output(device, "dq", a.dq, NH, a.q);
    check_output(device, "dk", a.dk, NKV, a.q);
    check_output(device, "dv", a.dv, NKV, a.q);
    const AttentionKernel kernel = kernel_for(device, a.options, {&a.q, &a.k, &a.v, &a.out, &a.dout});
    check_workspace("attention_backward", a.workspace, attention_backward_workspace(device, a.q, a.options),
                    device.kind());
    check_for_tensor_cores(kernel, a.scale,
                           {{"out", &a.out},
                            {"dout", &a.dout},
                            {"q", &a.q},
                            {"k", &a.k},
                            {"v", &a.v},
                            {"dq", &a.dq},
                            {"dk", &a.dk},
                            {"dv", &a.dv}});
    if (kernel == AttentionKernel::sm90) return attention_backward_sm90_cuda(device, a);
    if (kernel == AttentionKernel::sm80) return attention_backward_sm80_cuda(device, a);
    if (kernel == AttentionKernel::simt) return attention_backward_simt_cuda(device, a);
    attention_backward_cpu(a);
}

std::vector<double> alibi_slopes(int64_t num_heads) {
    CHECK(num_heads >= 1, "alibi_slopes of ", num_heads, " heads");
    int64_t n2 = 1;
    while (2 * n2 <= num_heads) n2 *= 2;
    std::vector<double> slopes(static_cast<size_t>(num_heads));
    for (int64_t h = 0; h < num_heads; ++h) {
        const double exponent = h < n2 ? -8.0 * static_cast<double>(h + 1) / static_cast<double>(n2)
                                       : -4.0 * static_cast<double>(2 * (h - n2) + 1) / static_cast<double>(n2);
        slopes[static_cast<size_t>(h)] = std::exp2(exponent);
    }
    return slopes;
}

void fill_document_mask(const AttentionMask& mask, const std::vector<int64_t>& document_starts, bool is_causal) {
    const int64_t N = mask.first_key.numel();
    CHECK(!document_starts.empty() && document_starts[0] == 0, "the first document starts at 0");
    int32_t *const first_key = mask.first_key.get<int32_t>(), *const end_key = mask.end_key.get<int32_t>();
    int32_t *const first_query = mask.first_query.get<int32_t>(), *const end_query = mask.end_query.get<int32_t>();
    for (size_t document = 0; document < document_starts.size(); ++document) {
        const int64_t begin = document_starts[document];
        const int64_t end = document + 1 < document_starts.size() ? document_starts[document + 1] : N;
        CHECK(begin <= end && end <= N, "document ", document, " spans [", begin, ", ", end, ") of ", N, " tokens");
        for (int64_t i = begin; i < end; ++i) {
            first_key[i] = static_cast<int32_t>(begin);
            end_key[i] = static_cast<int32_t>(is_causal ? i + 1 : end);
            first_query[i] = static_cast<int32_t>(is_causal ? i : begin);
            end_query[i] = static_cast<int32_t>(end);
        }
    }
}

}  // namespace ingot
