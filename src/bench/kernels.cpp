// Method: inputs are random data, in turn from as many sets as make kFootprint bytes, so that no run finds its inputs
// in a cache. After a warm-up, batches of launches are timed between two events, and the median over the batches
// counts. Bytes are those that the op must move: each input read once, each output written once.
#include "src/bench/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>

#include "kernels/adamw.h"
#include "kernels/core/measure.h"
#include "kernels/core/rng.h"
#include "kernels/cross_entropy.h"
#include "kernels/cuda/timing.h"
#include "kernels/embedding.h"
#include "kernels/fill.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "src/bench/memory.h"
#include "src/model/device_choice.h"

namespace ingot {

namespace {

constexpr double kFootprint = 512e6;    // several times the largest L2 (60 MB on Hopper, 126 MB on Blackwell)
constexpr double kBatchSeconds = 2e-3;  // starting and ending a batch costs microseconds
constexpr int64_t kCopyBytes = int64_t{1} << 30;

// Returns the seconds of one launch. launch(set) runs the op on that set of tensors.
double median_seconds(const Device& device, double seconds, int num_sets, const std::function<void(int)>& launch) {
    DeviceTimer timer(device);
    const auto batch = [&](int launches) {
        timer.start();
        for (int i = 0; i < launches; ++i) launch(i % num_sets);
        return timer.stop() / launches;
    };
    batch(num_sets);
    const double estimate = std::max(batch(num_sets), 1e-7);
    const int passes = static_cast<int>(std::ceil(kBatchSeconds / (estimate * num_sets)));
    const int launches = std::max(passes, 1) * num_sets;
    const int least = device.is_cpu() ? 3 : 20;
    const int num_samples = std::clamp(static_cast<int>(seconds / (estimate * launches)), least, 1001);
    for (int i = 0; i < num_samples / 10; ++i) batch(launches);
    std::vector<double> samples;
    for (int i = 0; i < num_samples; ++i) samples.push_back(batch(launches));
    return median(std::move(samples));
}

class Bench {
  public:
    explicit Bench(const BenchKernelsOptions& options) : options_(options), device_(open(options.device)) {
        REQUIRE(options.rows >= 2, "--rows must be at least 2, not ", options.rows);
        const std::string dtype = !options.dtype.empty() ? options.dtype : device_.is_cpu() ? "fp32" : "bf16";
        dtype_ = dtype_of(dtype);
        REQUIRE(!device_.is_cpu() || dtype_ == DType::f32, "the CPU device computes in fp32, not in ", dtype);
    }

    void run() {
        print_machine();
        measure_copy();
        std::printf("%-28s %-26s %-5s %10s %10s %9s %8s %7s %8s\n", "op", "shape", "dtype", "us", "us again", "MB",
                    "GB/s", "% copy", "TFLOP/s");
        for (const int64_t C : options_.widths) norms(options_.rows, C);
        for (const int64_t C : options_.widths) swiglu(options_.rows, hidden(C));
        for (const int64_t C : options_.widths) embedding(options_.rows, C);
        for (const int64_t C : options_.widths) rope(options_.rows, C / 64, 64);
        for (const int64_t V : {50304, 151936}) cross_entropies(options_.rows / 8, V);
        optimizer(124'000'000);
        for (const int64_t C : options_.widths) linear_layers(C > 1024 ? options_.rows / 2 : options_.rows, C);
    }

  private:
    static Device open(const std::string& name) {
        REQUIRE(name == "cpu" || name == "cuda", "--device is cuda or cpu, not ", name);
        return choose_device(name).device;
    }

    // Returns random normals times `scale`, or zeros if they are bytes. They are freed after the op.
    Tensor tensor(DType dtype, std::initializer_list<int64_t> shape, float scale = 1) {
        const Tensor result = memory_.tensor(dtype, shape);
        if (dtype == DType::u8)
            device_.zero(result);
        else
            fill_normal(device_, {.out = result, .seed = memory_.num_tensors(), .stream = 0, .std = scale});
        return result;
    }

    void print_machine() {
        const std::string text = device_.is_cpu() ? device_.name() : describe_cuda(device_);
        std::printf("%s\n", text.c_str());
    }

    void measure_copy() {
        const Tensor source = tensor(DType::f32, {kCopyBytes / 4}), destination = tensor(DType::f32, {kCopyBytes / 4});
        const double bytes = 2.0 * static_cast<double>(kCopyBytes);
        const char* names[] = {"cudaMemcpyAsync", "16-byte copy kernel"};
        std::function<void(int)> copies[] = {[&](int) { device_.copy(destination, source); }, nullptr};
        if (device_.is_cpu()) {
            names[0] = "memcpy, one thread";
            names[1] = "memcpy, all threads";
            copies[1] = [&](int) {
                constexpr int64_t kChunk = 1 << 20;
#pragma omp parallel for schedule(static)
                for (int64_t begin = 0; begin < kCopyBytes; begin += kChunk)
                    std::memcpy(static_cast<char*>(destination.data) + begin,
                                static_cast<const char*>(source.data) + begin, kChunk);
            };
        } else {
            copies[1] = [&](int) { copy_kernel_cuda(device_, destination, source); };
        }
        for (int i = 0; i < 2; ++i) {
            const double rate = bytes / median_seconds(device_, options_.seconds, 1, copies[i]);
            std::printf("copy of 1 GiB by %-20s %8.1f GB/s\n", names[i], rate * 1e-9);
            copy_rate_ = std::max(copy_rate_, rate);
        }
        std::printf("copy rate: %.1f GB/s, read + written\n\n", copy_rate_ * 1e-9);
        memory_.clear();
    }

    // Measures an op. make() builds the arguments of one launch, with tensors of their own.
    template <typename Arguments>
    void report(const char* name, const std::string& shape, double bytes, double flops,
                void (*op)(const Device&, const Arguments&),
                const std::type_identity_t<std::function<Arguments()>>& make) {
        const int num_sets = std::clamp(static_cast<int>(std::ceil(kFootprint / bytes)), 2, 512);
        std::vector<Arguments> sets;
        for (int i = 0; i < num_sets; ++i) sets.push_back(make());
        double seconds[2];
        for (double& each : seconds)
            each = median_seconds(device_, options_.seconds, num_sets,
                                  [&](int set) { op(device_, sets[static_cast<size_t>(set)]); });
        device_.synchronize();
        print(name, shape, bytes, flops, seconds);
        memory_.clear();
    }

    // Measures an op that overwrites its inputs: prepare() restores them before each launch, outside the timing.
    // Launches must be long compared with the microseconds of two events. The caller keeps the tensors.
    void report_fresh(const char* op, const std::string& shape, double bytes, const std::function<void()>& prepare,
                      const std::function<void()>& launch) {
        DeviceTimer timer(device_);
        double seconds[2];
        for (double& each : seconds) {
            std::vector<double> samples;
            double total = 0;
            while (samples.size() < (device_.is_cpu() ? 3u : 21u) ||
                   (total < options_.seconds && samples.size() < 201)) {
                prepare();
                timer.start();
                launch();
                samples.push_back(timer.stop());
                total += samples.back();
            }
            each = median(std::move(samples));
        }
        print(op, shape, bytes, 0, seconds);
    }

    void print(const char* op, const std::string& shape, double bytes, double flops, const double (&seconds)[2]) {
        const double rate = bytes / seconds[0];
        std::printf("%-28s %-26s %-5s %10.2f %10.2f %9.1f %8.1f", op, shape.c_str(), name_of(dtype_), seconds[0] * 1e6,
                    seconds[1] * 1e6, bytes * 1e-6, rate * 1e-9);
        if (flops > 0)
            std::printf(" %7s %8.1f\n", "", flops / seconds[0] * 1e-12);
        else
            std::printf(" %7.1f\n", 100 * rate / copy_rate_);
        std::fflush(stdout);
    }

    void norms(int64_t N, int64_t C) {
        const double element = static_cast<double>(size_of(dtype_));
        const double row_bytes = static_cast<double>(N * C) * element, rstd_bytes = 4.0 * static_cast<double>(N);
        const double weight_bytes = static_cast<double>(C) * element;
        const std::string shape = join("N ", N, ", C ", C);
        const double eps = 1e-5;
        report("rmsnorm_forward", shape, 2 * row_bytes + rstd_bytes + weight_bytes, 0, rmsnorm_forward, [&] {
            return RmsNormForward{.out = tensor(dtype_, {N, C}),
                                  .rstd = tensor(DType::f32, {N}),
                                  .x = tensor(dtype_, {N, C}),
                                  .weight = tensor(dtype_, {C}),
                                  .eps = eps};
        });
        for (const bool has_residual : {false, true}) {
            const double bytes =
                (has_residual ? 4 : 3) * row_bytes + rstd_bytes + weight_bytes + 8.0 * static_cast<double>(C);
            report(has_residual ? "rmsnorm_backward + dresidual" : "rmsnorm_backward", shape, bytes, 0,
                   rmsnorm_backward, [&] {
                       const Tensor x = tensor(dtype_, {N, C});
                       const auto workspace = static_cast<int64_t>(rmsnorm_backward_workspace(device_, x));
                       return RmsNormBackward{.dx = tensor(dtype_, {N, C}),
                                              .dweight = tensor(DType::f32, {C}),
                                              .dout = tensor(dtype_, {N, C}),
                                              .x = x,
                                              .rstd = tensor(DType::f32, {N}),
                                              .weight = tensor(dtype_, {C}),
                                              .dresidual = has_residual ? tensor(dtype_, {N, C}) : Tensor{},
                                              .workspace = tensor(DType::u8, {workspace})};
                   });
        }
    }

    // Returns the MLP width of a model of width C.
    static int64_t hidden(int64_t C) {
        return (8 * C / 3 + 127) / 128 * 128;
    }

    void swiglu(int64_t N, int64_t F) {
        const double row_bytes = static_cast<double>(N * F * size_of(dtype_));
        const std::string shape = join("N ", N, ", F ", F);
        report("swiglu_forward", shape, 3 * row_bytes, 0, swiglu_forward, [&] {
            return SwigluForward{.out = tensor(dtype_, {N, F}), .gate_up = tensor(dtype_, {N, 2 * F})};
        });
        report("swiglu_backward", shape, 5 * row_bytes, 0, swiglu_backward, [&] {
            return SwigluBackward{.dgate_up = tensor(dtype_, {N, 2 * F}),
                                  .dout = tensor(dtype_, {N, F}),
                                  .gate_up = tensor(dtype_, {N, 2 * F})};
        });
    }

    // Returns int32 values on the device.
    Tensor integers(const std::vector<int32_t>& values) {
        const auto count = static_cast<int64_t>(values.size());
        const Tensor result = memory_.tensor(DType::i32, {count});
        device_.copy(result, Tensor::contiguous(const_cast<int32_t*>(values.data()), DType::i32, {count}));
        return result;
    }

    // Draws tokens distributed nearly as in text: the k-th most frequent has a probability near 1 / k, so that one in
    // eleven is the first. A share of `frequent` of all are one further token.
    std::vector<int32_t> tokens(int64_t N, int64_t V, double frequent) {
        std::vector<int32_t> result;
        for (int64_t n = 0; n < N; ++n) {
            const auto at = static_cast<uint64_t>(n);
            const double u = random_bits(1, 1, at) * 0x1p-32, rank = std::pow(static_cast<double>(V), u);
            const bool is_frequent = random_bits(1, 2, at) * 0x1p-32 < frequent;
            result.push_back(is_frequent ? 0 : static_cast<int32_t>(std::min<int64_t>(V - 1, std::lround(rank) - 1)));
        }
        return result;
    }

    void embedding(int64_t N, int64_t C) {
        constexpr int64_t V = 50304;
        const double element = static_cast<double>(size_of(dtype_));
        const auto bytes_of = [&](const std::vector<int32_t>& ids, double per_row, double per_token) {
            std::vector<bool> occurs(V);
            for (const int32_t id : ids) occurs[static_cast<size_t>(id)] = true;
            const auto rows = static_cast<double>(std::count(occurs.begin(), occurs.end(), true));
            return rows * static_cast<double>(C) * per_row +
                   static_cast<double>(N) * (static_cast<double>(C) * per_token + 4);
        };
        const std::vector<int32_t> ids = tokens(N, V, 0);
        report("embedding_forward", join("N ", N, ", C ", C, ", V ", V), bytes_of(ids, element, element), 0,
               embedding_forward, [&] {
                   return EmbeddingForward{
                       .out = tensor(dtype_, {N, C}), .weight = tensor(dtype_, {V, C}), .tokens = integers(ids)};
               });
        for (const double frequent : {0.0, 0.2}) {
            const std::vector<int32_t> batch = tokens(N, V, frequent);
            report(frequent > 0 ? "embedding_backward, one 20%" : "embedding_backward",
                   join("N ", N, ", C ", C, ", V ", V), bytes_of(batch, 8, element), 0, embedding_backward, [&] {
                       const Tensor dout = tensor(dtype_, {N, C}, 1e-3f);
                       const auto workspace = static_cast<int64_t>(embedding_backward_workspace(device_, dout));
                       return EmbeddingBackward{.dweight = tensor(DType::f32, {V, C}),
                                                .dout = dout,
                                                .tokens = integers(batch),
                                                .workspace = tensor(DType::u8, {std::max<int64_t>(workspace, 1)})};
                   });
        }
    }

    void rope(int64_t N, int64_t H, int64_t HS) {
        constexpr int64_t T = 1024;
        std::vector<int32_t> positions;
        for (int64_t n = 0; n < N; ++n) positions.push_back(static_cast<int32_t>(n % T));
        const std::shared_ptr<void> memory = Device::cpu().allocate(T * static_cast<size_t>(HS) * 4);
        const Tensor table_on_host = Tensor::contiguous(memory.get(), DType::f32, {T, HS});
        fill_rope_table(table_on_host, 10000);
        const double bytes = 2.0 * static_cast<double>(N * H * HS * size_of(dtype_)) + 4.0 * static_cast<double>(N);
        report("rope_forward", join("N ", N, ", H ", H, ", HS ", HS), bytes, 0, rope_forward, [&] {
            const Tensor table = tensor(DType::f32, {T, HS});
            device_.copy(table, table_on_host);
            return Rope{.x = tensor(dtype_, {N, H, HS}), .positions = integers(positions), .table = table};
        });
    }

    StepBlock* step_block() {
        StepBlock step;
        step.settings.lr = 1e-6;
        step.decision = {.apply = 1, .gradient_factor = 1, .bias_correction1 = 0.5, .bias_correction2 = 0.5};
        const Tensor bytes = tensor(DType::u8, {sizeof step});
        device_.copy(bytes, Tensor::contiguous(&step, DType::u8, {sizeof step}));
        return static_cast<StepBlock*>(bytes.data);
    }

    // The op works in place, and a gradient is no row of logits, so the logits are restored before each launch.
    // Reading other memory after that clears them from the caches.
    void cross_entropies(int64_t n, int64_t V) {
        std::vector<int32_t> targets;
        for (int64_t i = 0; i < n; ++i)
            targets.push_back(
                static_cast<int32_t>(random_bits(1, 3, static_cast<uint64_t>(i)) % static_cast<uint64_t>(V)));
        const Tensor fresh = tensor(dtype_, {n, V}, 2);
        const CrossEntropy args{.logits = tensor(dtype_, {n, V}),
                                .losses = tensor(DType::f32, {n}),
                                .targets = integers(targets),
                                .vocab_size = V};
        CrossEntropy loss_alone = args;
        loss_alone.logits = fresh;
        loss_alone.write_gradient = false;
        const double row_bytes = static_cast<double>(n * V * size_of(dtype_)), rest = 8.0 * static_cast<double>(n);
        report_fresh(
            "cross_entropy", join("n ", n, ", V ", V), 2 * row_bytes + rest,
            [&] {
                device_.copy(args.logits, fresh);
                cross_entropy(device_, loss_alone);
            },
            [&] { cross_entropy(device_, args); });
        report("cross_entropy, loss alone", join("n ", n, ", V ", V), row_bytes + rest, 0, cross_entropy,
               [&] { return loss_alone; });
    }

    void optimizer(int64_t n) {
        const std::string shape = join("n ", n);
        const bool has_copy = dtype_ != DType::f32;
        report("adamw", shape, static_cast<double>(n) * (has_copy ? 30 : 28), 0, adamw, [&] {
            return AdamW{.weights = tensor(DType::f32, {n}),
                         .m = tensor(DType::f32, {n}, 1e-3f),
                         .v = tensor(DType::f32, {n}, 1e-3f),
                         .gradient = tensor(DType::f32, {n}, 1e-3f),
                         .compute = has_copy ? tensor(dtype_, {n}) : Tensor{},
                         .step = step_block()};
        });
        report("gradient_norm", shape, static_cast<double>(n) * 4, 0, gradient_norm, [&] {
            const auto workspace = static_cast<int64_t>(gradient_norm_workspace(device_, 1));
            return GradientNorm{.step = step_block(),
                                .gradients = {tensor(DType::f32, {n}, 1e-3f)},
                                .workspace = tensor(DType::u8, {std::max<int64_t>(workspace, 1)})};
        });
    }

    // Measures the GEMMs of a linear layer with O outputs and I inputs.
    void linear(const std::string& name, int64_t N, int64_t O, int64_t I) {
        const std::string shape = join(N, " x ", O, " x ", I);
        const double element = static_cast<double>(size_of(dtype_)), weights = static_cast<double>(O * I);
        const double flops = 2.0 * static_cast<double>(N) * weights;
        const double x_bytes = static_cast<double>(N * I) * element, out_bytes = static_cast<double>(N * O) * element;
        const float scale = 1 / std::sqrt(static_cast<float>(I));
        report((name + " forward").c_str(), shape, x_bytes + out_bytes + weights * element, flops, matmul_forward, [&] {
            return MatmulForward{.out = tensor(dtype_, {N, O}),
                                 .x = tensor(dtype_, {N, I}),
                                 .weight = tensor(dtype_, {O, I}, scale),
                                 .residual = {}};
        });
        report((name + " backward, input").c_str(), shape, x_bytes + out_bytes + weights * element, flops,
               matmul_backward_input, [&] {
                   return MatmulBackwardInput{.dx = tensor(dtype_, {N, I}),
                                              .dout = tensor(dtype_, {N, O}),
                                              .weight = tensor(dtype_, {O, I}, scale)};
               });
        report((name + " backward, weight").c_str(), shape, x_bytes + out_bytes + 8 * weights, flops,
               matmul_backward_weight, [&] {
                   return MatmulBackwardWeight{.dweight = tensor(DType::f32, {O, I}),
                                               .dout = tensor(dtype_, {N, O}),
                                               .x = tensor(dtype_, {N, I})};
               });
    }

    void linear_layers(int64_t N, int64_t C) {
        const int64_t F = hidden(C);
        linear("qkv", N, 3 * C, C);
        linear("o", N, C, C);
        linear("gate_up", N, 2 * F, C);
        linear("down", N, C, F);
        const double bytes = static_cast<double>(N * 3 * C * size_of(dtype_));
        report("qkv backward, bias", join(N, " x ", 3 * C), bytes, 0, matmul_backward_bias, [&] {
            const auto workspace = static_cast<int64_t>(matmul_backward_bias_workspace(device_, 3 * C));
            return MatmulBackwardBias{.dbias = tensor(DType::f32, {3 * C}),
                                      .dout = tensor(dtype_, {N, 3 * C}),
                                      .workspace = tensor(DType::u8, {workspace})};
        });
    }

    BenchKernelsOptions options_;
    Device device_;
    DType dtype_ = DType::f32;
    double copy_rate_ = 0;
    BenchMemory memory_{device_};
};

}  // namespace

void bench_kernels(const BenchKernelsOptions& options) {
    Bench(options).run();
}

}  // namespace ingot
