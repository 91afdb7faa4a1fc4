// Every stride of every tensor of every op behind the C ABI is honoured, or refused with the argument's name and
// nothing written; on the CPU and, where there is one, on a GPU.
//
// Each argument in turn is laid out anew: an axis with twice its stride, with a stride of 0, with rows that overlap,
// and backwards. Where the call is taken, its results must be those of contiguous tensors with the same elements.
//
// Seen to catch: check_tensor() without its contiguity (rmsnorm's weight and dweight, rope's positions, losses,
// targets), a workspace counted by its extents alone, an output that overlaps itself, attention's rows
// handed to the BLAS as they lie.
#include "tests/kernels/c_api_call.h"

namespace ingot::test {

namespace {

// ---- The ops ----

constexpr int64_t N = 6, NH = 4, NKV = 2, HS = 64, C = 16, V = 10;  // heads that every kernel takes
const std::vector<double> kIndices = {3, 0, 5, 5, 1, 2};

// Adds the tensors that both passes of attention read.
template <typename Arguments>
void add_inputs_of_attention(Call& call, Arguments& a) {
    call.reads("q", a.q, call.dtype, {N, NH, HS});
    call.reads("k", a.k, call.dtype, {N, NKV, HS});
    call.reads("v", a.v, call.dtype, {N, NKV, HS});
    call.reads("slopes", a.slopes, call.stats, {NH});
    call.reads("mask.first_key", a.mask.first_key, DType::i32, {N}, {0, 0, 0, 3, 3, 3});
    call.reads("mask.end_key", a.mask.end_key, DType::i32, {N}, {1, 2, 3, 4, 5, 6});
    call.reads("mask.first_query", a.mask.first_query, DType::i32, {N}, {0, 1, 2, 3, 4, 5});
    call.reads("mask.end_query", a.mask.end_query, DType::i32, {N}, {3, 3, 3, 6, 6, 6});
    a.scale = 0.25;
}

using Prepare = std::function<void(Call&)>;
struct Op {
    const char* name;
    Prepare prepare;
};

// Prepares rmsnorm_forward of rows of `width` elements; `rows` is the shape of rstd.
Prepare rmsnorm_forward_of(const std::vector<int64_t>& rows, int64_t width) {
    return [=](Call& call) {
        std::vector<int64_t> shape = rows;
        shape.push_back(width);
        auto& a = call.arguments(ingot_rmsnorm_forward);
        call.writes("out", a.out, call.dtype, shape);
        call.writes("rstd", a.rstd, call.stats, rows);
        call.reads("x", a.x, call.dtype, shape);
        call.reads("weight", a.weight, call.dtype, {width});
        a.eps = 0.1;
    };
}

Prepare rope(int (*function)(const ingot_device*, const ingot_rope_arguments*)) {
    return [=](Call& call) {
        auto& a = call.arguments(function);
        call.writes("x", a.x, call.dtype, {N, NH, HS});
        call.reads("positions", a.positions, DType::i32, {N}, kIndices);
        call.reads("table", a.table, call.stats, {N, HS});
    };
}

const Op kOps[] = {
    {"attention_forward",
     [](Call& call) {
         auto& a = call.arguments(ingot_attention_forward);
         call.writes("out", a.out, call.dtype, {N, NH, HS});
         call.writes("lse", a.lse, call.stats, {NH, N});
         add_inputs_of_attention(call, a);
     }},
    {"attention_backward",
     [](Call& call) {
         auto& a = call.arguments(ingot_attention_backward);
         call.writes("dq", a.dq, call.dtype, {N, NH, HS});
         call.writes("dk", a.dk, call.dtype, {N, NKV, HS});
         call.writes("dv", a.dv, call.dtype, {N, NKV, HS});
         call.reads("dout", a.dout, call.dtype, {N, NH, HS});
         call.reads("out", a.out, call.dtype, {N, NH, HS});
         call.reads("lse", a.lse, call.stats, {NH, N}, std::vector<double>(NH * N, 4));
         add_inputs_of_attention(call, a);
         uint64_t bytes = 0;
         EXPECT_EQ(ingot_attention_backward_workspace(&call.c_device, &a.q, &a.options, &bytes), INGOT_DONE);
         call.reads("workspace", a.workspace, DType::u8, {static_cast<int64_t>(bytes + 16)});
     }},
    {"rmsnorm_forward", rmsnorm_forward_of({N}, C)},
    {"rmsnorm_forward of heads", rmsnorm_forward_of({N, NH}, HS)},
    {"rmsnorm_backward",
     [](Call& call) {
         auto& a = call.arguments(ingot_rmsnorm_backward);
         call.writes("dx", a.dx, call.dtype, {N, C});
         call.writes("dweight", a.dweight, call.stats, {C});
         call.reads("dout", a.dout, call.dtype, {N, C});
         call.reads("x", a.x, call.dtype, {N, C});
         call.reads("rstd", a.rstd, call.stats, {N});
         call.reads("weight", a.weight, call.dtype, {C});
         call.reads("dresidual", a.dresidual, call.dtype, {N, C});
         uint64_t bytes = 0;
         EXPECT_EQ(ingot_rmsnorm_backward_workspace(&call.c_device, &a.x, &bytes), INGOT_DONE);
         call.reads("workspace", a.workspace, DType::u8, {static_cast<int64_t>(bytes)});
     }},
    {"swiglu_forward",
     [](Call& call) {
         auto& a = call.arguments(ingot_swiglu_forward);
         call.writes("out", a.out, call.dtype, {N, C});
         call.reads("gate_up", a.gate_up, call.dtype, {N, 2 * C});
     }},
    {"swiglu_backward",
     [](Call& call) {
         auto& a = call.arguments(ingot_swiglu_backward);
         call.writes("dgate_up", a.dgate_up, call.dtype, {N, 2 * C});
         call.reads("dout", a.dout, call.dtype, {N, C});
         call.reads("gate_up", a.gate_up, call.dtype, {N, 2 * C});
         call.writes("out", a.out, call.dtype, {N, C});
     }},
    {"rope_forward", rope(ingot_rope_forward)},
    {"rope_backward", rope(ingot_rope_backward)},
    {"cross_entropy",
     [](Call& call) {
         auto& a = call.arguments(ingot_cross_entropy);
         call.writes("logits", a.logits, call.dtype, {N, V});
         call.writes("losses", a.losses, call.stats, {N});
         call.reads("targets", a.targets, DType::i32, {N}, kIndices);
         a.vocab_size = V, a.write_gradient = 1, a.loss_scale = call.loss_scale();
     }},
};

// ---- The layouts ----

struct Layout {
    std::string name;
    Strides strides;
};

std::vector<Layout> layouts_of(const std::vector<int64_t>& shape) {
    const Strides contiguous = contiguous_strides(shape);
    std::vector<Layout> layouts;
    for (size_t axis = 0; axis < shape.size(); ++axis) {
        if (shape[axis] == 1) continue;
        const auto with = [&](const char* name, int64_t stride) {
            Strides strides = contiguous;
            strides[axis] = stride;
            layouts.push_back({join("axis ", axis, " ", name), strides});
        };
        with("with a stride of 0", 0);
        with("backwards", -contiguous[axis]);
        // Twice as far apart, and all outside of it too, so that nothing overlaps.
        Strides twice = contiguous;
        for (size_t outer = 0; outer <= axis; ++outer) twice[outer] *= 2;
        layouts.push_back({join("axis ", axis, " twice as far"), twice});
        if (contiguous[axis] >= 16) with("with rows that overlap", contiguous[axis] - 8);
    }
    return layouts;
}

bool overlaps(const std::vector<int64_t>& shape, const Strides& strides) {
    std::vector<int64_t> offsets;
    for_elements(shape, strides, [&](int64_t, int64_t offset) { offsets.push_back(offset); });
    std::sort(offsets.begin(), offsets.end());
    return std::adjacent_find(offsets.begin(), offsets.end()) != offsets.end();
}

// Returns all that a call wrote, by name, without its scratch memory.
std::vector<std::pair<std::string, std::vector<double>>> written(Call& call) {
    std::vector<std::pair<std::string, std::vector<double>>> results;
    for (Argument& argument : call.all_arguments)
        if (argument.is_written) results.emplace_back(argument.name, argument.values());
    return results;
}

void check(const Device& device, DType dtype, const Op& op, const std::string& name, const Layout& layout) {
    SCOPED_TRACE(join(op.name, ", ", name, ": ", layout.name));
    Call call(device, dtype);
    op.prepare(call);
    Argument& changed = call.argument(name);
    changed.lay(device, layout.strides, changed.elements());
    const std::vector<uint8_t> elements = changed.elements();
    const std::vector<uint8_t> before = call.all_memory();
    const int status = call.run();
    if (status != INGOT_DONE) {
        EXPECT_EQ(status, INGOT_BAD_ARGUMENT);
        const std::string error = ingot_last_error();
        EXPECT_NE(error.find(" " + name + " "), std::string::npos) << error;
        EXPECT_EQ(call.all_memory(), before) << "refused, and something was written: " << error;
        return;
    }
    EXPECT_FALSE(changed.is_written && overlaps(changed.shape, layout.strides)) << "an output that overlaps is taken";
    Call plain(device, dtype);
    op.prepare(plain);
    Argument& same_elements = plain.argument(name);
    same_elements.lay(device, contiguous_strides(same_elements.shape), elements);
    ASSERT_EQ(plain.run(), INGOT_DONE) << ingot_last_error();
    const auto actual = written(call), expected = written(plain);
    const double bound = dtype == DType::f64 ? 1e-13 : dtype == DType::f32 ? 1e-5 : 2e-2;
    for (size_t i = 0; i < actual.size(); ++i)
        EXPECT_TRUE(close(actual[i].second, expected[i].second, bound)) << actual[i].first;
}

void check_all(const Device& device, DType dtype) {
    SCOPED_TRACE(join(device.name(), " ", name_of(dtype)));
    for (const Op& op : kOps) {
        Call call(device, dtype);
        op.prepare(call);
        ASSERT_EQ(call.run(), INGOT_DONE) << op.name << ": " << ingot_last_error();
        for (const Argument& argument : call.all_arguments)
            for (const Layout& layout : layouts_of(argument.shape)) check(device, dtype, op, argument.name, layout);
    }
}

}  // namespace

TEST(CApiStrides, AreHonouredOrRefusedOnTheCpu) {
    for (const DType dtype : {DType::f32, DType::f64}) check_all(Device::cpu(), dtype);
}

TEST(CApiStrides, AreHonouredOrRefusedOnAGpu) {
    INGOT_CUDA_OR_SKIP(gpu);
    for (const DType dtype : {DType::f32, DType::bf16}) check_all(gpu, dtype);
}

// The stride of an axis of one element says nothing.
TEST(CApiStrides, OfOneElementSayNothing) {
    const Device cpu = Device::cpu();
    for (const int64_t stride : {0, 1, 3, 1000}) {
        std::vector<std::vector<double>> results;
        for (const bool is_odd : {false, true}) {
            Call call(cpu, DType::f64);
            auto& a = call.arguments(ingot_attention_forward);
            call.writes("out", a.out, DType::f64, {1, 1, 8});
            call.writes("lse", a.lse, DType::f64, {1, 1});
            for (const auto& [name, place] : {std::pair{"q", &a.q}, {"k", &a.k}, {"v", &a.v}})
                call.reads(name, *place, DType::f64, {1, 1, 8});
            for (ingot_tensor* place : {&a.mask.first_key, &a.mask.first_query})
                call.reads("mask", *place, DType::i32, {1}, {0});
            for (ingot_tensor* place : {&a.mask.end_key, &a.mask.end_query})
                call.reads("mask", *place, DType::i32, {1}, {1});
            a.scale = 1;
            if (is_odd)
                for (Argument& each : call.all_arguments)
                    for (size_t axis = 0; axis < each.shape.size(); ++axis)
                        if (each.shape[axis] == 1) each.place->strides[axis] = stride;
            ASSERT_EQ(call.run(), INGOT_DONE) << ingot_last_error();
            results.push_back(call.argument("out").values());
        }
        EXPECT_TRUE(same(results[1], results[0]));
    }
}

TEST(CApiStrides, BeyondAnyMemoryAreRefused) {
    for (const int64_t stride : {int64_t{1} << 40, int64_t{1} << 60, INT64_MAX}) {
        Call call(Device::cpu(), DType::f32);
        auto& a = call.arguments(ingot_rmsnorm_forward);
        call.writes("out", a.out, DType::f32, {2, 4});
        call.writes("rstd", a.rstd, DType::f32, {2});
        call.reads("x", a.x, DType::f32, {2, 4});
        call.reads("weight", a.weight, DType::f32, {4});
        a.x.shape[0] = a.out.shape[0] = a.rstd.shape[0] = int64_t{1} << 40;
        a.x.strides[0] = stride;
        EXPECT_EQ(call.run(), INGOT_BAD_ARGUMENT);
        EXPECT_NE(std::string(ingot_last_error()).find("reach beyond any memory"), std::string::npos)
            << ingot_last_error();
    }
}

}  // namespace ingot::test
