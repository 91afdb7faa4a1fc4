// Method: inputs are random data, since clocks and power depend on it. All kernels first run in turns for
// load_seconds, so that the clocks are those of long work. Then batches of launches are timed between two events, and
// the median over the batches counts. Inputs are the same in every launch, and may be in the L2 cache, as in a
// training step.
//
// FLOPs are those that the visible pairs need: 4 HS for each pair and query head forward, 10 HS backward. What a kernel
// computes twice, or in tiles that are half visible, does not count. Memory is what attention needs beyond q, k, v, out
// and their gradients: lse, and the backward pass's scratch memory; for materialized attention its matrices.
#include "src/bench/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>

#include "kernels/attention/attention.h"
#include "kernels/attention/materialized.h"
#include "kernels/attention/simt.h"
#include "kernels/core/measure.h"
#include "kernels/cuda/timing.h"
#include "kernels/fill.h"
#include "src/base/text.h"
#include "src/bench/memory.h"
#include "src/data/host_batch.h"
#include "src/model/device_choice.h"

namespace ingot {

namespace {

struct AttentionShape {
    int64_t N, NH, NKV, HS;
    std::vector<int64_t> starts;  // of documents
    bool is_causal;
    std::string name;

    double visible_pairs() const {
        double pairs = 0;
        for (size_t d = 0; d < starts.size(); ++d) {
            const auto length = static_cast<double>((d + 1 < starts.size() ? starts[d + 1] : N) - starts[d]);
            pairs += is_causal ? length * (length + 1) / 2 : length * length;
        }
        return pairs;
    }
};

AttentionRequest request_of(const std::string& option, const std::string& name) {
    if (name == "auto") return AttentionRequest::automatic;
    if (name == "simt") return AttentionRequest::simt;
    if (name == "sm80") return AttentionRequest::sm80;
    REQUIRE(name == "sm90", option, " is ", name, ": use auto, simt, sm80 or sm90");
    return AttentionRequest::sm90;
}

std::vector<AttentionShape> shapes_of(const BenchAttentionOptions& o) {
    REQUIRE(o.mask == "causal" || o.mask == "full", "--mask is causal or full, not ", o.mask);
    const int64_t kv_heads = o.kv_heads > 0 ? o.kv_heads : o.heads;
    REQUIRE(o.heads >= 1 && kv_heads >= 1 && o.heads % kv_heads == 0, "--heads ", o.heads,
            " is not a multiple of --kv-heads ", kv_heads, ": use a divisor");
    REQUIRE(!o.head_dim.empty(), "--head-dim is empty: name 32, 64, 96 or 128");
    constexpr int64_t kMostTokens = int64_t{1} << 24;
    std::vector<AttentionShape> shapes;
    for (const int64_t HS : o.head_dim) {
        REQUIRE(std::find(std::begin(kSimtHeadSizes), std::end(kSimtHeadSizes), HS) != std::end(kSimtHeadSizes),
                "--head-dim is ", HS, ": use 32, 64, 96 or 128");
        if (!o.docs.empty()) {
            AttentionShape shape = {0, o.heads, kv_heads, HS, {}, o.mask == "causal", ""};
            for (const int64_t length : o.docs) {
                REQUIRE(length >= 1 && length <= kMostTokens, "--docs: a length of ", length, ", it must be 1 to ",
                        kMostTokens);
                shape.starts.push_back(shape.N);
                shape.N += length;
            }
            REQUIRE(shape.N <= kMostTokens, "--docs: ", shape.N, " tokens, they must be at most ", kMostTokens);
            shape.name = join(shape.N, " in ", counted(static_cast<int64_t>(o.docs.size()), "document"));
            shapes.push_back(shape);
            continue;
        }
        for (const int64_t T : o.seq) {
            REQUIRE(T >= 1 && T <= kMostTokens, "--seq is ", T, ", it must be 1 to ", kMostTokens);
            REQUIRE(o.tokens % T == 0, "--tokens ", o.tokens, " is not a multiple of --seq ", T, ": use one that is");
            const int64_t B = o.tokens > 0 ? o.tokens / T : o.batch;
            REQUIRE(B >= 1 && B <= kMostTokens / T, "a batch of ", B, " x ", T, " tokens: use 1 to ", kMostTokens);
            AttentionShape shape = {B * T, o.heads, kv_heads, HS, {}, o.mask == "causal", join(B, " x ", T)};
            for (int64_t b = 0; b < B; ++b) shape.starts.push_back(b * T);
            shapes.push_back(shape);
        }
    }
    return shapes;
}

// Holds all tensors of one shape and dtype, on the device.
class Operands {
  public:
    Operands(const Device& device, const AttentionShape& s, DType dtype, bool alibi, const AttentionOptions& options)
        : device_(device), memory_(device) {
        const auto tensor = [&](DType type, std::initializer_list<int64_t> shape) {
            return memory_.tensor(type, shape);
        };
        const auto heads = [&](int64_t count) { return tensor(dtype, {s.N, count, s.HS}); };
        forward = {.out = heads(s.NH),
                   .lse = tensor(DType::f32, {s.NH, s.N}),
                   .q = heads(s.NH),
                   .k = heads(s.NKV),
                   .v = heads(s.NKV),
                   .slopes = alibi ? tensor(DType::f32, {s.NH}) : Tensor{},
                   .mask = {tensor(DType::i32, {s.N}), tensor(DType::i32, {s.N}), tensor(DType::i32, {s.N}),
                            tensor(DType::i32, {s.N})},
                   .scale = 1 / std::sqrt(static_cast<double>(s.HS)),
                   .options = options};
        const auto workspace = static_cast<int64_t>(attention_backward_workspace(device, forward.q, options));
        backward = {.dq = heads(s.NH),
                    .dk = heads(s.NKV),
                    .dv = heads(s.NKV),
                    .dout = heads(s.NH),
                    .out = forward.out,
                    .lse = forward.lse,
                    .q = forward.q,
                    .k = forward.k,
                    .v = forward.v,
                    .slopes = forward.slopes,
                    .mask = forward.mask,
                    .scale = forward.scale,
                    .workspace = tensor(DType::u8, {workspace}),
                    .options = options};
        if (alibi) {
            std::vector<float> slopes;
            for (const double slope : alibi_slopes(s.NH)) slopes.push_back(static_cast<float>(slope));
            device.copy(forward.slopes, Tensor::contiguous(slopes.data(), DType::f32, {s.NH}));
        }
        HostBatch batch;
        batch.resize(s.N);
        const AttentionMask mask = batch.mask();
        fill_document_mask(mask, s.starts, s.is_causal);
        device.copy(forward.mask.first_key, mask.first_key);
        device.copy(forward.mask.end_key, mask.end_key);
        device.copy(forward.mask.first_query, mask.first_query);
        device.copy(forward.mask.end_query, mask.end_query);
    }
    void run_forward() const { attention_forward(device_, forward); }
    void run_backward() const { attention_backward(device_, backward); }
    size_t extra_bytes() const {
        return static_cast<size_t>(forward.lse.bytes()) + static_cast<size_t>(backward.workspace.bytes());
    }
    std::vector<const Tensor*> inputs() const { return {&forward.q, &forward.k, &forward.v, &backward.dout}; }
    std::vector<const Tensor*> outputs() const { return {&forward.out, &backward.dq, &backward.dk, &backward.dv}; }

    AttentionForward forward;
    AttentionBackward backward;

  private:
    Device device_;
    BenchMemory memory_;
};

// The opponent of Ingot's kernel: its operands, and the code that computes with them.
struct Against {
    Operands operands;
    std::unique_ptr<MaterializedAttention> materialized;  // none: the kernel of the operands' options

    void run_forward() const { materialized ? materialized->forward(operands.forward) : operands.run_forward(); }
    void run_backward() const { materialized ? materialized->backward(operands.backward) : operands.run_backward(); }
    size_t extra_bytes() const { return materialized ? materialized->bytes() : operands.extra_bytes(); }
};

std::vector<float> host_values(const Device& device, const Tensor& tensor) {
    const auto count = static_cast<size_t>(tensor.numel());
    std::vector<float> result(count);
    std::vector<unsigned char> raw(static_cast<size_t>(tensor.bytes()));
    Tensor host = tensor;
    host.data = raw.data();
    host.device = DeviceKind::cpu;
    device.copy(host, tensor);
    for (size_t i = 0; i < count; ++i)
        result[i] = tensor.dtype == DType::f32    ? host.get<float>()[i]
                    : tensor.dtype == DType::bf16 ? to_float(host.get<bf16>()[i])
                                                  : to_float(host.get<f16>()[i]);
    return result;
}

// Returns ||a - b|| / ||b||.
double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
        norm += static_cast<double>(b[i]) * b[i];
    }
    return std::sqrt(difference / norm);
}

class Bench {
  public:
    Bench(const BenchAttentionOptions& options, const Device& device) : options_(options), device_(device) {
        dtype_ = dtype_of(options.dtype);
        attention_ = {request_of("--kernel", options.kernel), !options.any_order};
    }

    void run(const std::vector<AttentionShape>& shapes) {
        const AttentionChoice choice = choose_attention(device_, dtype_, shapes[0].HS, attention_);
        std::printf("%s\nkernel %s, since %s; %s, %s%s, %s\n\n", describe_cuda(device_).c_str(), name_of(choice.kernel),
                    choice.reason.c_str(), name_of(dtype_), options_.mask.c_str(), options_.alibi ? ", ALiBi" : "",
                    options_.any_order ? "dq's sums in any order" : "deterministic");
        std::printf("%-24s %3s %3s %3s %10s %8s %10s %8s %10s", "tokens", "NH", "NKV", "HS", "fwd us", "TFLOP/s",
                    "bwd us", "TFLOP/s", "memory");
        const auto error_columns = [] { std::printf(" %8s %8s %8s %8s", "out", "dq", "dk", "dv"); };
        if (options_.check) error_columns();
        if (!options_.against.empty()) {
            std::printf(" | %s: %9s %9s %10s", options_.against.c_str(), "fwd x", "bwd x", "memory");
            if (options_.check) error_columns();
        }
        std::printf("\n");
        for (const AttentionShape& shape : shapes) measure(shape);
        if (options_.json.empty()) return;
        std::ofstream file(options_.json);
        file << report_.dump(2) << "\n";
        REQUIRE(file.good(), "--json ", options_.json, ": cannot be written: check the path");
    }

  private:
    void measure(const AttentionShape& s) {
        const Operands operands(device_, s, dtype_, options_.alibi, attention_);
        uint64_t seed = 1;
        for (const Tensor* input : operands.inputs())
            fill_normal(device_, {.out = *input, .seed = seed++, .stream = 0, .std = 1});
        load(operands);
        const double forward = median_seconds({[&] { operands.run_forward(); }})[0];
        const double backward = median_seconds({[&] { operands.run_backward(); }})[0];
        const double flops = 4 * s.visible_pairs() * static_cast<double>(s.NH * s.HS);
        std::printf("%-24s %3ld %3ld %3ld %10.1f %8.1f %10.1f %8.1f %10s", s.name.c_str(), static_cast<long>(s.NH),
                    static_cast<long>(s.NKV), static_cast<long>(s.HS), forward * 1e6, flops / forward * 1e-12,
                    backward * 1e6, 2.5 * flops / backward * 1e-12, format_bytes(operands.extra_bytes()).c_str());
        nlohmann::ordered_json row = {{"tokens", s.N},
                                      {"documents", s.starts.size()},
                                      {"heads", s.NH},
                                      {"kv_heads", s.NKV},
                                      {"head_dim", s.HS},
                                      {"forward_seconds", forward},
                                      {"backward_seconds", backward},
                                      {"forward_tflops", flops / forward * 1e-12},
                                      {"backward_tflops", 2.5 * flops / backward * 1e-12},
                                      {"extra_bytes", operands.extra_bytes()}};
        if (options_.check) check(s, operands, &row["errors"]);
        if (!options_.against.empty()) compare(s, operands, &row["against"]);
        std::printf("\n");
        std::fflush(stdout);
        report_["rows"].push_back(row);
    }

    // Measures both in turns, so that a card that slows down does so for both.
    void compare(const AttentionShape& s, const Operands& operands, nlohmann::ordered_json* row) {
        std::printf(" | %*s ", static_cast<int>(options_.against.size()), "");
        const bool is_without_alibi = options_.against == "no-alibi";
        Against other = {{device_, s, dtype_, options_.alibi && !is_without_alibi,
                          is_without_alibi ? attention_ : AttentionOptions{.request = AttentionRequest::simt}},
                         nullptr};
        copy_inputs(other.operands, operands);
        if (options_.against == "materialized") {
            const size_t num_documents = s.starts.size();
            const int64_t T = options_.docs.empty() ? s.N / static_cast<int64_t>(num_documents) : s.N;
            try {
                other.materialized = std::make_unique<MaterializedAttention>(device_, other.operands.forward.q, T);
            } catch (const Error& error) {
                if (error.exit_code != kExitAllocation) throw;
                std::printf("its matrices of %ld x %ld for %ld heads do not fit", static_cast<long>(T),
                            static_cast<long>(T), static_cast<long>(s.NH * (s.N / T)));
                return;
            }
        }
        other.run_forward();
        const auto forward = median_seconds({[&] { operands.run_forward(); }, [&] { other.run_forward(); }});
        const auto backward = median_seconds({[&] { operands.run_backward(); }, [&] { other.run_backward(); }});
        const double forward_ratio = forward[1] / forward[0], backward_ratio = backward[1] / backward[0];
        const int decimals = is_without_alibi ? 3 : 2;
        std::printf("%9.*f %9.*f %10s", decimals, forward_ratio, decimals, backward_ratio,
                    format_bytes(other.extra_bytes()).c_str());
        *row = {{"forward_ratio", forward_ratio},
                {"backward_ratio", backward_ratio},
                {"forward_seconds", forward[1]},
                {"backward_seconds", backward[1]},
                {"extra_bytes", other.extra_bytes()}};
        if (options_.check) check(s, other.operands, &(*row)["errors"]);
    }

    // Copies inputs to operands of any dtype, with the same numbers.
    void copy_inputs(const Operands& to, const Operands& from) const {
        for (size_t i = 0; i < 4; ++i) {
            if (to.inputs()[i]->dtype == from.inputs()[i]->dtype) {
                device_.copy(*to.inputs()[i], *from.inputs()[i]);
                continue;
            }
            std::vector<float> values = host_values(device_, *from.inputs()[i]);
            Tensor host = *to.inputs()[i];
            host.data = values.data();
            host.device = DeviceKind::cpu;
            device_.copy(*to.inputs()[i], host);
        }
    }

    // Computes errors against the SIMT kernel in fp32 on the same, rounded numbers.
    void check(const AttentionShape& s, const Operands& operands, nlohmann::ordered_json* errors) {
        const bool has_alibi = operands.forward.slopes.data != nullptr;
        const Operands exact(device_, s, DType::f32, has_alibi, AttentionOptions{.request = AttentionRequest::simt});
        copy_inputs(exact, operands);
        exact.run_forward();
        exact.run_backward();
        const char* const names[] = {"out", "dq", "dk", "dv"};
        for (size_t i = 0; i < 4; ++i) {
            const double error =
                relative_error(host_values(device_, *operands.outputs()[i]), host_values(device_, *exact.outputs()[i]));
            std::printf(" %8.1e", error);
            (*errors)[names[i]] = error;
        }
    }

    void load(const Operands& operands) const {
        const double begin = seconds_now();
        do {
            for (int i = 0; i < 10; ++i) {
                operands.run_forward();
                operands.run_backward();
            }
            device_.synchronize();
        } while (seconds_now() - begin < options_.load_seconds);
    }

    // Returns the median time of one launch of each, from batches in turns.
    std::vector<double> median_seconds(const std::vector<std::function<void()>>& launches) const {
        constexpr double kBatchSeconds = 5e-3;
        DeviceTimer timer(device_);
        const auto batch = [&](const std::function<void()>& launch, int count) {
            timer.start();
            for (int i = 0; i < count; ++i) launch();
            return timer.stop() / count;
        };
        std::vector<int> counts;
        int num_samples = 5;
        for (const auto& launch : launches) {
            batch(launch, 1);
            const double estimate = std::max(batch(launch, 3), 1e-7);
            counts.push_back(std::max(1, static_cast<int>(std::ceil(kBatchSeconds / estimate))));
            num_samples = std::max(num_samples, static_cast<int>(options_.seconds / (estimate * counts.back())));
        }
        num_samples = std::min(num_samples, 501);
        std::vector<std::vector<double>> samples(launches.size());
        for (int sample = 0; sample < num_samples; ++sample)
            for (size_t i = 0; i < launches.size(); ++i) samples[i].push_back(batch(launches[i], counts[i]));
        std::vector<double> medians;
        for (std::vector<double>& of_one : samples) medians.push_back(median(std::move(of_one)));
        return medians;
    }

    BenchAttentionOptions options_;
    Device device_;
    DType dtype_ = DType::bf16;
    AttentionOptions attention_;
    nlohmann::ordered_json report_ = {{"rows", nlohmann::ordered_json::array()}};
};

}  // namespace

void bench_attention(const BenchAttentionOptions& options) {
    REQUIRE(options.seconds > 0 && options.load_seconds >= 0, "a time must be above 0: set --seconds, --load-seconds");
    const std::vector<AttentionShape> shapes = shapes_of(options);
    (void)request_of("--kernel", options.kernel);
    (void)dtype_of(options.dtype);
    const std::string& against = options.against;
    REQUIRE(against.empty() || against == "materialized" || against == "simt" || against == "no-alibi", "--against is ",
            against,
            ": use materialized, attention with a matrix of all pairs, simt, the kernel without tensor cores, ",
            "or no-alibi, the same kernel without ALiBi");
    REQUIRE(against != "no-alibi" || options.alibi, "--against no-alibi needs --alibi");
    const Device device = gpu_to_measure("./bench attention");
    Bench(options, device).run(shapes);
}

}  // namespace ingot
