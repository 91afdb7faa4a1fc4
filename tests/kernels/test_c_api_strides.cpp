// Every stride of every tensor of every op behind the C ABI is honoured, or refused with the argument's name and
// nothing written; on the CPU and, where there is one, on a GPU.
//
// Each argument in turn is laid out anew: an axis with twice its stride, with a stride of 0, with rows that overlap,
// and backwards. Where the call is taken, its results must be those of contiguous tensors with the same elements.
//
// Seen to catch: check_tensor() without its contiguity (rmsnorm's weight and dweight, rope's positions, losses,
// targets, AdamW's tensors), a workspace counted by its extents alone, an output that overlaps itself, attention's rows
// handed to the BLAS as they lie.
#include <cstring>
#include <functional>
#include <memory>

#include "kernels/adamw.h"
#include "kernels/attention/attention.h"
#include "kernels/c_api.h"
#include "kernels/core/device.h"
#include "tests/support/tensors.h"
#if INGOT_HAS_CUDA
#include "kernels/cuda/context.h"
#endif

namespace ingot::test {

namespace {

// Bytes where a device can use them; on the CPU exactly as many, so that AddressSanitizer sees each one beyond.
class Memory {
  public:
    Memory(const Device& device, const std::vector<uint8_t>& bytes) : device_(device), host_(bytes) {
        if (device.is_cpu() || bytes.empty()) return;
        memory_ = device.allocate(bytes.size());
        device.copy(view(memory_.get(), device.kind()), view(host_.data(), DeviceKind::cpu));
    }
    uint8_t* data() { return memory_ ? static_cast<uint8_t*>(memory_.get()) : host_.data(); }
    const std::vector<uint8_t>& read() {
        if (memory_) device_.copy(view(host_.data(), DeviceKind::cpu), view(memory_.get(), device_.kind()));
        return host_;
    }

  private:
    Tensor view(void* data, DeviceKind kind) const {
        return Tensor::contiguous(data, DType::u8, {static_cast<int64_t>(host_.size())}, kind);
    }
    Device device_;
    std::vector<uint8_t> host_;
    std::shared_ptr<void> memory_;
};

using Strides = std::vector<int64_t>;

// Visits all index tuples of a shape in order: visit(number, offset in elements by these strides).
template <typename Visit>
void for_elements(const std::vector<int64_t>& shape, const Strides& strides, const Visit& visit) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    for (int64_t number = 0; number < count; ++number) {
        int64_t rest = number, offset = 0;
        for (size_t axis = shape.size(); axis-- > 0; rest /= shape[axis]) offset += rest % shape[axis] * strides[axis];
        visit(number, offset);
    }
}

Strides contiguous_strides(const std::vector<int64_t>& shape) {
    Strides strides(shape.size(), 1);
    for (size_t axis = shape.size() - 1; axis-- > 0;) strides[axis] = strides[axis + 1] * shape[axis + 1];
    return strides;
}

// One tensor of a call.
struct Argument {
    std::string name;
    ingot_tensor* place;  // within the call's struct
    DType dtype;
    std::vector<int64_t> shape;
    bool is_written;
    std::shared_ptr<Memory> memory;
    int64_t origin = 0;  // where element 0 lies, in elements
    Strides strides;

    size_t size() const { return static_cast<size_t>(size_of(dtype)); }
    // Its elements, one after the other.
    std::vector<uint8_t> elements() {
        const std::vector<uint8_t>& bytes = memory->read();
        std::vector<uint8_t> result;
        for_elements(shape, strides, [&](int64_t, int64_t offset) {
            const auto at = bytes.begin() + static_cast<int64_t>(size()) * (origin + offset);
            result.insert(result.end(), at, at + static_cast<int64_t>(size()));
        });
        return result;
    }
    // Gives it memory of its own with these strides, and the elements; of elements that share memory the last one
    // counts.
    void lay(const Device& device, const Strides& new_strides, const std::vector<uint8_t>& elements) {
        int64_t first = 0, last = 0;
        for_elements(shape, new_strides,
                     [&](int64_t, int64_t offset) { first = std::min(first, offset), last = std::max(last, offset); });
        std::vector<uint8_t> bytes(size() * static_cast<size_t>(last - first + 1), 0xff);
        for_elements(shape, new_strides, [&](int64_t number, int64_t offset) {
            std::memcpy(bytes.data() + size() * static_cast<size_t>(offset - first),
                        elements.data() + size() * static_cast<size_t>(number), size());
        });
        strides = new_strides, origin = -first;
        memory = std::make_shared<Memory>(device, bytes);
        place->data = memory->data() + size() * static_cast<size_t>(origin);
        place->dtype = static_cast<int32_t>(dtype), place->ndim = static_cast<int32_t>(shape.size());
        for (size_t axis = 0; axis < shape.size(); ++axis)
            place->shape[axis] = shape[axis], place->strides[axis] = strides[axis];
    }
    std::vector<double> values() {
        const std::vector<uint8_t> bytes = elements();
        const Device cpu = Device::cpu();
        std::vector<double> result;
        for (size_t at = 0; at < bytes.size(); at += size()) {
            const auto as = [&](auto value) {
                std::memcpy(&value, bytes.data() + at, sizeof value);
                return value;
            };
            switch (dtype) {
                case DType::f64:
                    result.push_back(as(0.0));
                    break;
                case DType::f32:
                    result.push_back(static_cast<double>(as(0.0f)));
                    break;
                case DType::bf16:
                    result.push_back(static_cast<double>(to_float(as(bf16{}))));
                    break;
                case DType::f16:
                    result.push_back(static_cast<double>(to_float(as(f16{}))));
                    break;
                case DType::i32:
                    result.push_back(as(int32_t{0}));
                    break;
                case DType::u8:
                    result.push_back(as(uint8_t{0}));
                    break;
            }
        }
        return result;
    }
};

// A call of one op with memory of its own; always the same numbers.
class Call {
  public:
    Call(const Device& device, DType dtype)
        : dtype(dtype), stats(accumulation_dtype(dtype)), device_(device), block_(device, bytes_of_block()) {
        c_device = {.struct_size = sizeof c_device, .kind = INGOT_CPU, .index = 0, .stream = nullptr};
#if INGOT_HAS_CUDA
        if (!device.is_cpu()) {
            c_device.kind = INGOT_CUDA;
            c_device.index = device.context().index;
            c_device.stream = device.context().stream;
        }
#endif
    }
    template <typename Arguments>
    Arguments& arguments(int (*function)(const ingot_device*, const Arguments*)) {
        const auto given = std::make_shared<Arguments>();
        std::memset(given.get(), 0, sizeof *given);
        given->struct_size = sizeof *given;
        run = [this, given, function] { return function(&c_device, given.get()); };
        return *given;
    }
    void reads(const std::string& name, ingot_tensor& place, DType type, const std::vector<int64_t>& shape,
               const std::vector<double>& values = {}) {
        add(name, place, type, shape, values, false);
    }
    void writes(const std::string& name, ingot_tensor& place, DType type, const std::vector<int64_t>& shape,
                const std::vector<double>& values = {}) {
        add(name, place, type, shape, values, true);
    }
    ingot_step_block* block() {
        return reinterpret_cast<ingot_step_block*>(block_.data());
    }
    std::vector<double> block_values() {
        ingot_step_block read;
        std::memcpy(&read, block_.read().data(), sizeof read);
        return {read.sums.loss, static_cast<double>(read.sums.targets), read.sums.squared_norm};
    }
    // All that the call may have written to, as bytes.
    std::vector<uint8_t> all_memory() {
        std::vector<uint8_t> all = block_.read();
        for (Argument& argument : all_arguments) {
            const std::vector<uint8_t>& bytes = argument.memory->read();
            all.insert(all.end(), bytes.begin(), bytes.end());
        }
        return all;
    }
    Argument& argument(const std::string& name) {
        for (Argument& each : all_arguments)
            if (each.name == name) return each;
        throw std::logic_error(name);
    }
    const Device& device() const {
        return device_;
    }

    const DType dtype, stats;
    ingot_device c_device;
    std::function<int()> run;
    std::vector<Argument> all_arguments;

  private:
    static std::vector<uint8_t> bytes_of_block() {
        ingot_step_block block = {};
        block.settings = {.lr = 0.1,
                          .beta1 = 0.9,
                          .beta2 = 0.95,
                          .eps = 1e-8,
                          .weight_decay = 0.1,
                          .grad_clip = 0,
                          .dynamic_loss_scale = 0,
                          .reserved = 0};
        block.state.loss_scale = 2;
        block.decision = {.apply = 1,
                          .nonfinite = 0,
                          .gradient_factor = 0.5,
                          .bias_correction1 = 0.1,
                          .bias_correction2 = 0.05,
                          .loss = 0,
                          .grad_norm = 0};
        std::vector<uint8_t> bytes(sizeof block);
        std::memcpy(bytes.data(), &block, sizeof block);
        return bytes;
    }
    void add(const std::string& name, ingot_tensor& place, DType type, const std::vector<int64_t>& shape,
             std::vector<double> values, bool is_written) {
        Argument argument = {name, &place, type, shape, is_written, nullptr, 0, {}};
        int64_t count = 1;
        for (const int64_t extent : shape) count *= extent;
        if (values.empty() && type != DType::u8) values = rounded(normals(count, 40 + all_arguments.size(), 0.5), type);
        std::vector<uint8_t> elements(argument.size() * static_cast<size_t>(count));
        if (!values.empty()) {
            const Buffer host(Device::cpu(), type, {count}, values);
            std::memcpy(elements.data(), host.tensor().data, elements.size());
        }
        argument.lay(device_, contiguous_strides(shape), elements);
        all_arguments.push_back(argument);
    }
    const Device device_;
    Memory block_;
};

// ---- The ops ----

constexpr int64_t N = 6, NH = 4, NKV = 2, HS = 64, C = 16, V = 10;  // heads that every kernel takes
const std::vector<double> kIndices = {3, 0, 5, 5, 1, 2};

template <typename Mask>
void add_mask(Call& call, Mask& mask) {
    call.reads("mask.first_key", mask.first_key, DType::i32, {N}, {0, 0, 0, 3, 3, 3});
    call.reads("mask.end_key", mask.end_key, DType::i32, {N}, {1, 2, 3, 4, 5, 6});
    call.reads("mask.first_query", mask.first_query, DType::i32, {N}, {0, 1, 2, 3, 4, 5});
    call.reads("mask.end_query", mask.end_query, DType::i32, {N}, {3, 3, 3, 6, 6, 6});
}

struct Op {
    const char* name;
    std::function<void(Call&)> prepare;
    bool is_for_cuda = false;
};

const Op kOps[] = {
    {"attention_forward",
     [](Call& call) {
         auto& a = call.arguments(ingot_attention_forward);
         call.writes("out", a.out, call.dtype, {N, NH, HS});
         call.writes("lse", a.lse, call.stats, {NH, N});
         call.reads("q", a.q, call.dtype, {N, NH, HS});
         call.reads("k", a.k, call.dtype, {N, NKV, HS});
         call.reads("v", a.v, call.dtype, {N, NKV, HS});
         call.reads("slopes", a.slopes, call.stats, {NH});
         add_mask(call, a.mask);
         a.scale = 0.25;
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
         call.reads("q", a.q, call.dtype, {N, NH, HS});
         call.reads("k", a.k, call.dtype, {N, NKV, HS});
         call.reads("v", a.v, call.dtype, {N, NKV, HS});
         call.reads("slopes", a.slopes, call.stats, {NH});
         add_mask(call, a.mask);
         a.scale = 0.25;
         uint64_t bytes = 0;
         EXPECT_EQ(ingot_attention_backward_workspace(&call.c_device, &a.q, &a.options, &bytes), INGOT_DONE);
         call.reads("workspace", a.workspace, DType::u8, {static_cast<int64_t>(bytes + 16)});
     }},
    {"attention_decode",
     [](Call& call) {
         auto& a = call.arguments(ingot_attention_decode);
         call.writes("out", a.out, call.dtype, {NH, HS});
         call.reads("q", a.q, call.dtype, {NH, HS});
         call.reads("k", a.k, call.dtype, {N, NKV, HS});
         call.reads("v", a.v, call.dtype, {N, NKV, HS});
         call.reads("slopes", a.slopes, call.stats, {NH});
         a.scale = 0.25;
     }},
    {"kv_cache_append",
     [](Call& call) {
         auto& a = call.arguments(ingot_kv_cache_append);
         call.writes("cache_k", a.cache_k, call.dtype, {N, NKV, HS});
         call.writes("cache_v", a.cache_v, call.dtype, {N, NKV, HS});
         call.reads("k", a.k, call.dtype, {N, NKV, HS});
         call.reads("v", a.v, call.dtype, {N, NKV, HS});
     }},
    {"rmsnorm_forward",
     [](Call& call) {
         auto& a = call.arguments(ingot_rmsnorm_forward);
         call.writes("out", a.out, call.dtype, {N, C});
         call.writes("rstd", a.rstd, call.stats, {N});
         call.reads("x", a.x, call.dtype, {N, C});
         call.reads("weight", a.weight, call.dtype, {C});
         a.eps = 0.1;
     }},
    {"rmsnorm_forward of heads",
     [](Call& call) {
         auto& a = call.arguments(ingot_rmsnorm_forward);
         call.writes("out", a.out, call.dtype, {N, NH, HS});
         call.writes("rstd", a.rstd, call.stats, {N, NH});
         call.reads("x", a.x, call.dtype, {N, NH, HS});
         call.reads("weight", a.weight, call.dtype, {HS});
         a.eps = 0.1;
     }},
    {"residual_rmsnorm_forward",
     [](Call& call) {
         auto& a = call.arguments(ingot_residual_rmsnorm_forward);
         call.writes("out", a.out, call.dtype, {N, C});
         call.writes("rstd", a.rstd, call.stats, {N});
         call.writes("sum", a.sum, call.dtype, {N, C});
         call.reads("residual", a.residual, call.dtype, {N, C});
         call.reads("branch", a.branch, call.dtype, {N, C});
         call.reads("weight", a.weight, call.dtype, {C});
         a.eps = 0.1;
     }},
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
    {"rope_forward",
     [](Call& call) {
         auto& a = call.arguments(ingot_rope_forward);
         call.writes("x", a.x, call.dtype, {N, NH, HS});
         call.reads("positions", a.positions, DType::i32, {N}, kIndices);
         call.reads("table", a.table, call.stats, {N, HS});
     }},
    {"rope_backward",
     [](Call& call) {
         auto& a = call.arguments(ingot_rope_backward);
         call.writes("x", a.x, call.dtype, {N, NH, HS});
         call.reads("positions", a.positions, DType::i32, {N}, kIndices);
         call.reads("table", a.table, call.stats, {N, HS});
     }},
    {"cross_entropy",
     [](Call& call) {
         auto& a = call.arguments(ingot_cross_entropy);
         call.writes("logits", a.logits, call.dtype, {N, V});
         call.writes("losses", a.losses, call.stats, {N});
         call.reads("targets", a.targets, DType::i32, {N}, kIndices);
         a.vocab_size = V, a.write_gradient = 1, a.step = call.block();
     }},
    {"loss_sum",
     [](Call& call) {
         auto& a = call.arguments(ingot_loss_sum);
         a.step = call.block();
         call.reads("losses", a.losses, call.stats, {N});
         call.reads("targets", a.targets, DType::i32, {N}, kIndices);
     }},
    {"adamw",
     [](Call& call) {
         auto& a = call.arguments(ingot_adamw);
         a.step = call.block();
         call.writes("weights", a.weights, call.stats, {150});
         call.writes("m", a.m, call.stats, {150});
         call.writes("v", a.v, call.stats, {150}, std::vector<double>(150, 0.5));
         call.reads("gradient", a.gradient, call.stats, {150});
         call.writes("compute", a.compute, DType::bf16, {150});
         call.reads("decay_blocks", a.decay_blocks, DType::u8, {3}, {1, 0, 1});
     }},
    {"gradient_norm",
     [](Call& call) {
         auto& a = call.arguments(ingot_gradient_norm);
         a.step = call.block();
         call.reads("gradient", a.gradient, call.stats, {150});
         uint64_t bytes = 0;
         EXPECT_EQ(ingot_gradient_norm_workspace(&call.c_device, &bytes), INGOT_DONE);
         call.reads("workspace", a.workspace, DType::u8, {static_cast<int64_t>(bytes + 16)});
     }},
    {"embedding_forward",
     [](Call& call) {
         auto& a = call.arguments(ingot_embedding_forward);
         call.writes("out", a.out, call.dtype, {N, C});
         call.reads("weight", a.weight, call.dtype, {V, C});
         call.reads("tokens", a.tokens, DType::i32, {N}, kIndices);
     }},
    {"embedding_backward",
     [](Call& call) {
         auto& a = call.arguments(ingot_embedding_backward);
         call.writes("dweight", a.dweight, call.stats, {V, C});
         call.reads("dout", a.dout, call.dtype, {N, C});
         call.reads("tokens", a.tokens, DType::i32, {N}, kIndices);
         uint64_t bytes = 0;
         EXPECT_EQ(ingot_embedding_backward_workspace(&call.c_device, &a.dout, &bytes), INGOT_DONE);
         call.reads("workspace", a.workspace, DType::u8, {static_cast<int64_t>(bytes + 16)});
     }},
    {"fill_normal",
     [](Call& call) {
         auto& a = call.arguments(ingot_fill_normal);
         call.writes("out", a.out, call.dtype, {N, C});
         a.std = 1;
     }},
    {"fill_value",
     [](Call& call) {
         auto& a = call.arguments(ingot_fill_value);
         call.writes("out", a.out, call.dtype, {N, C});
         a.value = 1.5;
     }},
    {"round_to",
     [](Call& call) {
         auto& a = call.arguments(ingot_round_to);
         call.writes("out", a.out, DType::bf16, {N, C});
         call.reads("in", a.in, DType::f32, {N, C});
     },
     true},
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

// All that a call wrote, by name; memory for scratch left out.
std::vector<std::pair<std::string, std::vector<double>>> written(Call& call) {
    std::vector<std::pair<std::string, std::vector<double>>> results = {{"block", call.block_values()}};
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
        if (op.is_for_cuda && device.is_cpu()) continue;
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
