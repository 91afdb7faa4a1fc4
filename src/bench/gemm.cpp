// Method: kernels/matmul/study.h. Every GEMM runs on random data in its own memory.
#include "src/bench/gemm.h"

#include <cstdio>
#include <string>

#include "kernels/cuda/timing.h"
#include "kernels/matmul/matmul.h"
#include "kernels/matmul/study.h"
#include "src/base/text.h"
#include "src/bench/memory.h"
#include "src/config/config.h"
#include "src/model/device_choice.h"
#include "src/model/model.h"

namespace ingot {

namespace {

struct Shape {
    ModelConfig model;
    int64_t tokens = 0, chunk = 0;
    DType dtype = DType::bf16;
};

Shape shape_of(const BenchGemmOptions& options) {
    Shape shape;
    if (!options.config.empty()) {
        const Config config = read_config(options.config, {});
        shape.model = config.model;
        shape.tokens = config.training.micro_batch_size * config.model.context_length;
        shape.dtype = compute_type(config.training.precision, Device::planned_cuda());
    } else {
        for (const int64_t size : {options.tokens, options.layers, options.width, options.heads, options.kv_heads,
                                   options.head_dim, options.hidden, options.vocab})
            REQUIRE(size >= 1 && size < int64_t{1} << 31, "a size of ", size, ": sizes are 1 to 2147483647");
        shape.model.n_layers = options.layers;
        shape.model.d_model = options.width;
        shape.model.n_heads = options.heads;
        shape.model.n_kv_heads = options.kv_heads;
        shape.model.head_dim = options.head_dim;
        shape.model.d_ff = options.hidden;
        shape.model.vocab_size = options.vocab;
        shape.tokens = options.tokens;
    }
    if (!options.dtype.empty()) shape.dtype = dtype_of(options.dtype);
    REQUIRE(options.chunk >= 0 && options.chunk <= shape.tokens, "--chunk is at most the number of tokens, ",
            shape.tokens, ", not ", options.chunk);
    shape.chunk = options.chunk > 0 ? options.chunk
                                    : logits_chunk(Device::planned_cuda(), shape.model, shape.dtype, shape.tokens);
    return shape;
}

class Bench {
  public:
    Bench(const BenchGemmOptions& options, const Shape& shape, const Device& device)
        : options_(options), shape_(shape), device_(device) {}

    void run() {
        const ModelConfig& m = shape_.model;
        const int64_t C = m.d_model, F = m.d_ff, VP = m.padded_vocab_size();
        const int64_t attention = m.n_heads * m.head_dim;
        std::printf("%s\n", describe_cuda(device_).c_str());
        std::printf(
            "%ld tokens, %s, width %ld, %ld + 2 x %ld heads of %ld, hidden %ld, vocabulary %ld, "
            "logits of %ld tokens at a time, %s\n\n",
            shape_.tokens, counted(m.n_layers, "layer").c_str(), C, m.n_heads, m.n_kv_heads, m.head_dim, F, VP,
            shape_.chunk, name_of(shape_.dtype));
        std::printf("%-29s %-20s %9s %8s %9s %8s %6s", "GEMM", "M x N x K", "first us", "TFLOP/s", "tuned us",
                    "TFLOP/s", "gain");
        if (options_.full) std::printf(" %9s %8s %10s %8s", "best us", "TFLOP/s", "tuned/best", "searched");
        std::printf("\n");
        const double layers = static_cast<double>(m.n_layers);
        linear("qkv", shape_.tokens, attention + 2 * m.n_kv_heads * m.head_dim, C, false, layers, layers);
        linear("attention_out", shape_.tokens, C, attention, true, layers, layers);
        linear("gate_up", shape_.tokens, 2 * F, C, false, layers, layers);
        linear("down", shape_.tokens, C, F, true, layers, layers);
        // The logits are computed in chunks, of which only the first overwrites the gradient.
        linear("head", shape_.chunk, VP, C, false,
               static_cast<double>(shape_.tokens) / static_cast<double>(shape_.chunk), 1);
        std::printf("\n");
        print("a step's first micro-step, which overwrites the gradients", first_micro_step_);
        print("a micro-step that adds to them", later_micro_step_);
        std::printf("tuning took %.2f s\n", tuning_seconds_);
        if (is_cut_off_) std::printf("* the search was cut off after %g s\n", options_.search_seconds);
        std::printf("\n%s", algorithms_.c_str());
    }

  private:
    // Returns a matrix that is freed after its GEMM. The study fills it.
    Tensor matrix(DType dtype, int64_t rows, int64_t columns) { return memory_.tensor(dtype, {rows, columns}); }

    // How often a GEMM runs in a step's first micro-step, and in each later one.
    struct Times {
        double first, later;
    };
    struct Total {
        double first = 0, tuned = 0, best = 0, flops = 0;  // seconds, by choice of the algorithm

        void add(double times, const MatmulStudy& study, double gemm_flops) {
            first += times * study.first.seconds;
            tuned += times * study.tuned.seconds;
            best += times * study.best.seconds;
            flops += times * gemm_flops;
        }
    };

    void print(const char* what, const Total& total) {
        std::printf("GEMMs of %s: first %.2f ms (%.0f TFLOP/s), tuned %.2f ms (%.0f), gain %.3f", what,
                    total.first * 1e3, total.flops / total.first * 1e-12, total.tuned * 1e3,
                    total.flops / total.tuned * 1e-12, total.first / total.tuned);
        if (options_.full)
            std::printf(", best %.2f ms (%.0f), tuned/best %.3f", total.best * 1e3, total.flops / total.best * 1e-12,
                        total.tuned / total.best);
        std::printf("\n");
    }

    // Measures the GEMMs of a layer with O outputs and I inputs, as model.cpp has them, each `times` a micro-step.
    // `overwrites` counts a step's first gradients of the weight: they are not added to anything, which is another
    // GEMM to the library.
    void linear(const std::string& name, int64_t N, int64_t O, int64_t I, bool has_residual, double times,
                double overwrites) {
        const DType dtype = shape_.dtype;
        study(name + " forward", {times, times},
              gemm_of(MatmulForward{.out = matrix(dtype, N, O),
                                    .x = matrix(dtype, N, I),
                                    .weight = matrix(dtype, O, I),
                                    .residual = has_residual ? matrix(dtype, N, O) : Tensor{}}));
        study(name + " dx", {times, times},
              gemm_of(MatmulBackwardInput{
                  .dx = matrix(dtype, N, I), .dout = matrix(dtype, N, O), .weight = matrix(dtype, O, I)}));
        for (const bool accumulate : {true, false})
            study(name + (accumulate ? " dweight" : " dweight, first"),
                  accumulate ? Times{times - overwrites, times} : Times{overwrites, 0},
                  gemm_of(MatmulBackwardWeight{.dweight = matrix(DType::f32, O, I),
                                               .dout = matrix(dtype, N, O),
                                               .x = matrix(dtype, N, I),
                                               .accumulate = accumulate}));
    }

    void study(const std::string& name, const Times& times, const Gemm& gemm) {
        const MatmulStudy study =
            study_matmul(device_, gemm, options_.seconds, options_.full ? options_.search_seconds : 0);
        memory_.clear();
        const int64_t M = gemm.out.shape[0], N = gemm.out.shape[1], K = gemm.a.shape[gemm.a_transposed ? 0 : 1];
        const double flops = 2.0 * static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K);
        const auto rate = [&](const MatmulStudy::Entry& entry) { return flops / entry.seconds * 1e-12; };
        std::printf("%-29s %-20s %9.1f %8.0f %9.1f %8.0f %6.3f", name.c_str(), join(M, " x ", N, " x ", K).c_str(),
                    study.first.seconds * 1e6, rate(study.first), study.tuned.seconds * 1e6, rate(study.tuned),
                    study.first.seconds / study.tuned.seconds);
        if (options_.full)
            std::printf(" %9.1f %8.0f %10.3f %7ld%s", study.best.seconds * 1e6, rate(study.best),
                        study.tuned.seconds / study.best.seconds, study.num_searched,
                        study.is_search_complete ? "" : "*");
        std::printf("\n");
        std::fflush(stdout);
        is_cut_off_ = is_cut_off_ || !study.is_search_complete;
        algorithms_ += join(name, "\n  first: ", study.first.algorithm, "\n  tuned: ", study.tuned.algorithm, "\n");
        if (options_.full) algorithms_ += join("  best:  ", study.best.algorithm, "\n");
        first_micro_step_.add(times.first, study, flops);
        later_micro_step_.add(times.later, study, flops);
        tuning_seconds_ += study.tuning_seconds;
    }

    BenchGemmOptions options_;
    Shape shape_;
    Device device_;
    BenchMemory memory_{device_};
    Total first_micro_step_, later_micro_step_;
    double tuning_seconds_ = 0;
    bool is_cut_off_ = false;
    std::string algorithms_;
};

}  // namespace

void bench_gemm(const BenchGemmOptions& options) {
    REQUIRE(options.seconds > 0 && options.search_seconds > 0, "a time must be above 0");
    const Shape shape = shape_of(options);
    const Device device = gpu_to_measure("./bench gemm");
    Bench(options, shape, device).run();
}

}  // namespace ingot
