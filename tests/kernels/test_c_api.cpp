// libingot.so: each op through the C ABI gives the bits that it gives through its own header, on the CPU and, where
// there is one, on a GPU; what is wrong comes back as a status and a line.
//
// Seen to catch: dv's tensor read for dk, dresidual or z_loss not handed on, strides taken for contiguous, the size of
// the arguments not compared, one error for all threads, CHECK reported as a fault of ours, training.attention or
// --device in what a caller is told to do, any other number than 0 taken for 1 by one of the flags.
#include "kernels/c_api.h"

#include <functional>
#include <memory>
#include <thread>

#include "kernels/cross_entropy.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "tests/kernels/attention/attention_case.h"
#include "tests/kernels/c_api_call.h"

extern "C" int call_from_c(void);

namespace ingot::test {

namespace {

using Values = std::vector<std::vector<double>>;

ingot_tensor c(const Tensor& tensor) {
    ingot_tensor result = {};
    result.data = tensor.data;
    result.dtype = static_cast<int32_t>(tensor.dtype);
    result.ndim = tensor.rank;
    for (int axis = 0; axis < tensor.rank; ++axis) {
        result.shape[axis] = tensor.shape[axis];
        result.strides[axis] = tensor.stride[axis];
    }
    return result;
}
ingot_tensor c(const Buffer& buffer) {
    return c(buffer.tensor());
}

// A struct of arguments with its size set.
template <typename Arguments>
Arguments sized() {
    Arguments arguments = {};
    arguments.struct_size = sizeof arguments;
    return arguments;
}

void expect_done(int status) {
    EXPECT_EQ(status, INGOT_DONE) << ingot_last_error();
}

// A case runs on memory of its own, through C or not, and returns what it wrote.
using Case = std::function<Values(const Device& device, DType dtype, bool through_c)>;

void expect_the_same_bits(DeviceKind kind, const Case& run) {
    std::vector<std::pair<Device, DType>> places;
    if (kind == DeviceKind::cpu) {
        places = {{Device::cpu(), DType::f32}, {Device::cpu(), DType::f64}};
    } else {
        INGOT_CUDA_OR_SKIP(gpu);
        for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) places.emplace_back(gpu, dtype);
    }
    for (const auto& [device, dtype] : places) {
        SCOPED_TRACE(join(device.name(), " ", name_of(dtype)));
        const Values expected = run(device, dtype, false), actual = run(device, dtype, true);
        ASSERT_EQ(actual.size(), expected.size());
        for (size_t i = 0; i < actual.size(); ++i) EXPECT_TRUE(same(actual[i], expected[i])) << "output " << i;
    }
}

Buffer bytes(const Device& device, size_t count) {
    return Buffer(device, DType::u8, {static_cast<int64_t>(count)});
}

class CApiOn : public testing::TestWithParam<DeviceKind> {};
INSTANTIATE_TEST_SUITE_P(, CApiOn, testing::Values(DeviceKind::cpu, DeviceKind::cuda),
                         [](const auto& info) { return info.param == DeviceKind::cpu ? "Cpu" : "Cuda"; });

}  // namespace

TEST(CApi, CanBeCalledFromC) {
    EXPECT_EQ(call_from_c(), 0) << "the line in tests/kernels/c_api_caller.c";
    EXPECT_EQ(ingot_has_cuda(), Device::has_cuda());
}

TEST_P(CApiOn, Attention) {
    expect_the_same_bits(GetParam(), [](const Device& device, DType dtype, bool through_c) -> Values {
        // The views of a fused buffer have strides, and each gradient another shape or place.
        const AttentionRun run({.N = 150, .NH = 4, .NKV = 2, .HS = 32, .alibi = true, .starts = {0, 33, 140}}, dtype,
                               dtype, device);
        const auto written = [&] { return Values{run.out.values(), run.lse.values(), run.dqkv.values()}; };
        if (!through_c) {
            run.forward();
            run.backward();
            return written();
        }
        const AttentionForward forward = run.forward_arguments();
        const AttentionBackward backward = run.backward_arguments();
        const ingot_device d = c_device(device);
        auto f = sized<ingot_attention_forward_arguments>();
        f.out = c(forward.out), f.lse = c(forward.lse), f.q = c(forward.q), f.k = c(forward.k), f.v = c(forward.v);
        f.slopes = c(forward.slopes), f.scale = forward.scale;
        f.mask = {c(run.first_key), c(run.end_key), c(run.first_query), c(run.end_query)};
        expect_done(ingot_attention_forward(&d, &f));
        auto b = sized<ingot_attention_backward_arguments>();
        b.dq = c(backward.dq), b.dk = c(backward.dk), b.dv = c(backward.dv), b.dout = c(backward.dout);
        b.out = f.out, b.lse = f.lse, b.q = f.q, b.k = f.k, b.v = f.v, b.slopes = f.slopes, b.mask = f.mask;
        b.scale = f.scale, b.workspace = c(backward.workspace);
        uint64_t size = 1;
        expect_done(ingot_attention_backward_workspace(&d, &b.q, &b.options, &size));
        EXPECT_EQ(size, attention_backward_workspace(device, forward.q));
        expect_done(ingot_attention_backward(&d, &b));
        return written();
    });
}

TEST_P(CApiOn, RmsNorm) {
    const int64_t N = 9, C = 40;
    expect_the_same_bits(GetParam(), [&](const Device& device, DType dtype, bool through_c) -> Values {
        const DType stats = accumulation_dtype(dtype);
        const auto random = [&](uint64_t seed) { return rounded(normals(N * C, seed), dtype); };
        const Buffer x(device, dtype, {N, C}, random(1)), weight(device, dtype, {C}, rounded(normals(C, 3), dtype)),
            dout(device, dtype, {N, C}, random(4)), dresidual(device, dtype, {N, C}, random(5));
        const Buffer out(device, dtype, {N, C}), rstd(device, stats, {N}), dx(device, dtype, {N, C}),
            dweight(device, stats, {C}, normals(C, 6)), overwritten(device, stats, {C}, normals(C, 7));
        const Buffer workspace = bytes(device, rmsnorm_backward_workspace(device, x));
        const ingot_device d = c_device(device);
        if (!through_c) {
            rmsnorm_forward(device, {.out = out, .rstd = rstd, .x = x, .weight = weight, .eps = 0.1});
            RmsNormBackward b = {.dx = dx,
                                 .dweight = dweight,
                                 .dout = dout,
                                 .x = x,
                                 .rstd = rstd,
                                 .weight = weight,
                                 .dresidual = dresidual,
                                 .workspace = workspace};
            rmsnorm_backward(device, b);
            b.dweight = overwritten, b.accumulate = false;
            rmsnorm_backward(device, b);
        } else {
            auto f = sized<ingot_rmsnorm_forward_arguments>();
            f.out = c(out), f.rstd = c(rstd), f.x = c(x), f.weight = c(weight), f.eps = 0.1;
            expect_done(ingot_rmsnorm_forward(&d, &f));
            auto b = sized<ingot_rmsnorm_backward_arguments>();
            b.dx = c(dx), b.dweight = c(dweight), b.dout = c(dout), b.x = c(x), b.rstd = c(rstd), b.weight = c(weight);
            b.dresidual = c(dresidual), b.workspace = c(workspace);
            uint64_t size = 0;
            expect_done(ingot_rmsnorm_backward_workspace(&d, &b.x, &size));
            EXPECT_EQ(size, rmsnorm_backward_workspace(device, x));
            expect_done(ingot_rmsnorm_backward(&d, &b));
            b.dweight = c(overwritten), b.overwrite = 1;
            expect_done(ingot_rmsnorm_backward(&d, &b));
        }
        return {out.values(), rstd.values(), dx.values(), dweight.values(), overwritten.values()};
    });
}

TEST_P(CApiOn, SwigluAndRope) {
    const int64_t N = 7, F = 24, H = 3, HS = 8;
    expect_the_same_bits(GetParam(), [&](const Device& device, DType dtype, bool through_c) -> Values {
        const DType stats = accumulation_dtype(dtype);
        const Buffer gate_up(device, dtype, {N, 2 * F}, rounded(normals(N * 2 * F, 1), dtype)),
            dout(device, dtype, {N, F}, rounded(normals(N * F, 2), dtype)), out(device, dtype, {N, F}),
            again(device, dtype, {N, F}), dgate_up(device, dtype, {N, 2 * F});
        const std::vector<double> heads = rounded(normals(N * H * HS, 3), dtype);
        const Buffer x(device, dtype, {N, H, HS}, heads), dx(device, dtype, {N, H, HS}, heads),
            positions(device, DType::i32, {N}, {0, 1, 2, 0, 1, 2, 3});
        const Buffer host(Device::cpu(), stats, {4, HS});
        fill_rope_table(host, 100);
        const Buffer table(device, stats, {4, HS}, host.values());
        if (!through_c) {
            swiglu_forward(device, {.out = out, .gate_up = gate_up});
            swiglu_backward(device, {.dgate_up = dgate_up, .dout = dout, .gate_up = gate_up, .out = again});
            rope_forward(device, {.x = x, .positions = positions, .table = table});
            rope_backward(device, {.x = dx, .positions = positions, .table = table});
        } else {
            const ingot_device d = c_device(device);
            auto f = sized<ingot_swiglu_forward_arguments>();
            f.out = c(out), f.gate_up = c(gate_up);
            expect_done(ingot_swiglu_forward(&d, &f));
            auto b = sized<ingot_swiglu_backward_arguments>();
            b.dgate_up = c(dgate_up), b.dout = c(dout), b.gate_up = c(gate_up), b.out = c(again);
            expect_done(ingot_swiglu_backward(&d, &b));
            auto r = sized<ingot_rope_arguments>();
            r.x = c(x), r.positions = c(positions), r.table = c(table);
            expect_done(ingot_rope_forward(&d, &r));
            r.x = c(dx);
            expect_done(ingot_rope_backward(&d, &r));
        }
        return {out.values(), dgate_up.values(), again.values(), x.values(), dx.values()};
    });
}

TEST_P(CApiOn, CrossEntropy) {
    const int64_t N = 6, V = 30, VP = 32;
    expect_the_same_bits(GetParam(), [&](const Device& device, DType dtype, bool through_c) -> Values {
        const Buffer logits(device, dtype, {N, VP}, rounded(normals(N * VP, 1, 2), dtype)),
            losses(device, accumulation_dtype(dtype), {N}), targets(device, DType::i32, {N}, {3, -1, 29, 0, 7, 7}),
            loss_scale(device, DType::f64, {1}, {4});
        if (!through_c) {
            cross_entropy(device, {.logits = logits,
                                   .losses = losses,
                                   .targets = targets,
                                   .vocab_size = V,
                                   .z_loss = 0.01,
                                   .loss_scale = loss_scale.tensor().get<double>()});
        } else {
            const ingot_device d = c_device(device);
            auto e = sized<ingot_cross_entropy_arguments>();
            e.logits = c(logits), e.losses = c(losses), e.targets = c(targets), e.vocab_size = V, e.z_loss = 0.01;
            e.loss_scale = loss_scale.tensor().get<double>(), e.write_gradient = 1;
            expect_done(ingot_cross_entropy(&d, &e));
        }
        return {logits.values(), losses.values()};
    });
}

// ---- What is refused ----

TEST(CApi, RefusesWithAStatusAndALine) {
    const Device cpu = Device::cpu();
    const Buffer in(cpu, DType::f32, {3, 8}, normals(24, 1)), out(cpu, DType::f32, {3, 4});
    struct Call {
        ingot_device device;
        ingot_swiglu_forward_arguments arguments;
    };
    const auto refused = [&](const char* words, const std::function<void(Call&)>& change) {
        Call call = {c_device(cpu), sized<ingot_swiglu_forward_arguments>()};
        call.arguments.out = c(out), call.arguments.gate_up = c(in);
        expect_done(ingot_swiglu_forward(&call.device, &call.arguments));
        change(call);
        EXPECT_EQ(ingot_swiglu_forward(&call.device, &call.arguments), INGOT_BAD_ARGUMENT) << words;
        const std::string error = ingot_last_error();
        EXPECT_NE(error.find(words), std::string::npos) << error;
        EXPECT_EQ(error.find('\n'), std::string::npos) << error;
    };
    refused("arguments has a struct_size of 8, not", [](Call& call) { call.arguments.struct_size = 8; });
    refused("device has a struct_size of 0, not", [](Call& call) { call.device.struct_size = 0; });
    refused("device kind 7: use 0 (CPU) or 1 (CUDA)", [](Call& call) { call.device.kind = 7; });
    refused(Device::has_cuda() ? "no CUDA device" : "this build has no CUDA device",
            [](Call& call) { call.device.kind = INGOT_CUDA, call.device.index = 99; });
    refused("out has 5 axes: use 1 to 4", [](Call& call) { call.arguments.out.ndim = 5; });
    refused("gate_up has the unknown dtype 6", [](Call& call) { call.arguments.gate_up.dtype = 6; });
    refused("gate_up has the unknown dtype -1", [](Call& call) { call.arguments.gate_up.dtype = -1; });
    refused("neither may be negative", [](Call& call) { call.arguments.gate_up.strides[0] = -8; });
    refused("gate_up has no data", [](Call& call) { call.arguments.gate_up.data = nullptr; });
    refused("out is not aligned to its elements",
            [](Call& call) { call.arguments.out.data = static_cast<uint8_t*>(call.arguments.out.data) + 2; });
    refused("gate_up is fp32 (3, 7)", [](Call& call) { call.arguments.gate_up.shape[1] = 7; });
    refused("must be contiguous", [](Call& call) { call.arguments.gate_up.strides[0] = 9; });
    refused("on the CPU runs in fp32 or fp64, not in bf16",
            [](Call& call) { call.arguments.out.dtype = call.arguments.gate_up.dtype = INGOT_BF16; });
}

TEST(CApi, RefusesNullPointersAndUnknownOptions) {
    const ingot_device d = c_device(Device::cpu());
    const auto expect_refused = [](int status, const char* words) {
        EXPECT_EQ(status, INGOT_BAD_ARGUMENT) << words;
        EXPECT_NE(std::string(ingot_last_error()).find(words), std::string::npos) << ingot_last_error();
    };
    expect_refused(ingot_swiglu_forward(&d, nullptr), "arguments is a null pointer");
    const auto empty = sized<ingot_swiglu_forward_arguments>();
    expect_refused(ingot_swiglu_forward(nullptr, &empty), "device is a null pointer");
    expect_refused(ingot_swiglu_forward(&d, &empty), "swiglu: out is no tensor");
    expect_refused(ingot_attention_backward_workspace(&d, nullptr, nullptr, nullptr), "bytes is a null pointer");
    auto attention = sized<ingot_attention_forward_arguments>();
    attention.options.kernel = 4;
    expect_refused(ingot_attention_forward(&d, &attention), "options.kernel 4 is unknown");
    attention.options = {0, 2};
    expect_refused(ingot_attention_forward(&d, &attention), "options.any_order is 2");
    ingot_tensor q = {};
    const ingot_attention_options options = {};
    uint64_t size = 0;
    expect_refused(ingot_attention_backward_workspace(&d, nullptr, &options, &size), "null pointer");
    expect_refused(ingot_attention_backward_workspace(&d, &q, &options, &size), "must be (N, NH, HS)");
    expect_refused(ingot_rmsnorm_backward_workspace(&d, &q, &size), "x must be (N, C) or (N, H, HS)");
}

// A flag that was never set, or one that a later version took for something else, is not guessed at.
TEST(CApi, FlagsAreZeroOrOneAndReservedFieldsZero) {
    const ingot_device d = c_device(Device::cpu());
    // Returns what the op says if `field` of its arguments has this value and all else is unset.
    const auto error_of = [&](auto function, auto arguments, auto field, int32_t value) -> std::string {
        arguments.*field = value;
        EXPECT_EQ(function(&d, &arguments), INGOT_BAD_ARGUMENT);
        return ingot_last_error();
    };
    const auto expect_flag = [&](const std::string& name, auto function, auto arguments, auto field) {
        for (const int32_t value : {2, -1, 256})
            EXPECT_EQ(error_of(function, arguments, field, value), join(name, " is ", value, ": use 0 or 1"));
        for (const int32_t value : {0, 1})
            EXPECT_EQ(error_of(function, arguments, field, value).find("use 0 or 1"), std::string::npos);
    };
    using RmsNorm = ingot_rmsnorm_backward_arguments;
    using CrossEntropy = ingot_cross_entropy_arguments;
    expect_flag("rmsnorm_backward: overwrite", ingot_rmsnorm_backward, sized<RmsNorm>(), &RmsNorm::overwrite);
    expect_flag("cross_entropy: write_gradient", ingot_cross_entropy, sized<CrossEntropy>(),
                &CrossEntropy::write_gradient);
    EXPECT_EQ(error_of(ingot_rmsnorm_backward, sized<RmsNorm>(), &RmsNorm::reserved, 1),
              "rmsnorm_backward: reserved is 1: set it to 0");
    EXPECT_EQ(error_of(ingot_cross_entropy, sized<CrossEntropy>(), &CrossEntropy::reserved, 2),
              "cross_entropy: reserved is 2: set it to 0");
}

// Who calls the library has no config and no command line: advice must be something that can be done in a call.
void expect_advice_for_a_caller(int status, const std::string& words) {
    EXPECT_EQ(status, INGOT_BAD_ARGUMENT) << words;
    const std::string error = ingot_last_error();
    EXPECT_NE(error.find(words), std::string::npos) << error;
    for (const char* const of_the_trainer : {"--", "training.", "model.", "data."})
        EXPECT_EQ(error.find(of_the_trainer), std::string::npos) << error;
}

int attention_of(const Device& device, DType dtype, int64_t HS, ingot_attention_kernel kernel) {
    const Buffer heads(device, dtype, {3, 2, HS}), lse(device, accumulation_dtype(dtype), {2, 3});
    const Buffer places(device, DType::i32, {3}, {0, 0, 0});
    auto f = sized<ingot_attention_forward_arguments>();
    f.out = f.q = f.k = f.v = c(heads), f.lse = c(lse), f.scale = 1, f.options.kernel = kernel;
    f.mask = {c(places), c(places), c(places), c(places)};
    const ingot_device d = c_device(device);
    return ingot_attention_forward(&d, &f);
}

TEST(CApi, AdviceIsForACallerOfTheLibrary) {
    const Device cpu = Device::cpu();
    expect_advice_for_a_caller(attention_of(cpu, DType::f32, 32, INGOT_ATTENTION_SM80), "ask for the automatic choice");
    expect_advice_for_a_caller(attention_of(cpu, DType::f32, 33, INGOT_ATTENTION_AUTOMATIC),
                               "use an even one up to 256");
    std::string why;
    if (Device::num_cuda_devices(&why) > 0) return;
    ingot_device d = c_device(cpu);
    d.kind = INGOT_CUDA;
    const ingot_tensor q = {};
    const ingot_attention_options options = {};
    uint64_t size = 0;
    expect_advice_for_a_caller(ingot_attention_backward_workspace(&d, &q, &options, &size), "CUDA device");
}

TEST(CApi, AdviceOnAGpuIsForACallerOfTheLibrary) {
    INGOT_CUDA_OR_SKIP(gpu);
    expect_advice_for_a_caller(attention_of(gpu, DType::bf16, 48, INGOT_ATTENTION_AUTOMATIC),
                               "use 32, 64, 96 or 128, or the CPU");
    expect_advice_for_a_caller(attention_of(gpu, DType::f32, 32, INGOT_ATTENTION_SM80), "or use bf16");
}

TEST(CApi, AnErrorBelongsToItsThread) {
    const ingot_device d = c_device(Device::cpu());
    EXPECT_EQ(ingot_swiglu_forward(&d, nullptr), INGOT_BAD_ARGUMENT);
    const std::string here = ingot_last_error();
    std::thread([&] {
        EXPECT_STREQ(ingot_last_error(), "");
        EXPECT_EQ(ingot_rope_forward(&d, nullptr), INGOT_BAD_ARGUMENT);
        EXPECT_NE(ingot_last_error(), here);
    }).join();
    EXPECT_EQ(ingot_last_error(), here);
}

}  // namespace ingot::test
