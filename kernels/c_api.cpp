#include "kernels/c_api.h"

#include <exception>
#include <string>

#include "kernels/attention/attention.h"
#include "kernels/core/device.h"
#include "kernels/cross_entropy.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"

namespace ingot {

namespace {

// ---- C's constants are C++'s ----

static_assert(INGOT_DONE == int{kExitDone} && INGOT_FAULT == int{kExitFault} && INGOT_BAD_ARGUMENT == int{kExitUsage});
static_assert(INGOT_FP64 == int(DType::f64) && INGOT_FP32 == int(DType::f32) && INGOT_BF16 == int(DType::bf16) &&
              INGOT_FP16 == int(DType::f16) && INGOT_INT32 == int(DType::i32) && INGOT_UINT8 == int(DType::u8));
static_assert(INGOT_ATTENTION_AUTOMATIC == int(AttentionRequest::automatic) &&
              INGOT_ATTENTION_SIMT == int(AttentionRequest::simt) &&
              INGOT_ATTENTION_SM80 == int(AttentionRequest::sm80) &&
              INGOT_ATTENTION_SM90 == int(AttentionRequest::sm90));
static_assert(sizeof(ingot_tensor::shape) == sizeof(Tensor::shape));

// ---- Arguments and errors ----

thread_local std::string last_error;

int failed(ingot_status status, const std::string& text) {
    try {
        last_error = text;
        for (char& c : last_error)
            if (c == '\n') c = ' ';
    } catch (...) {  // no memory for the message: only the status is left
        last_error.clear();
    }
    return status;
}

// Runs `function`; what it throws becomes a status and a line. The checks of an op are about its arguments, so a
// CHECK that fails here is the caller's error; only errors of CUDA and unexpected exceptions are faults.
template <typename Function>
int guarded(Function&& function) {
    try {
        function();
        return INGOT_DONE;
    } catch (const CudaError& error) {
        return failed(INGOT_FAULT, error.what());
    } catch (const Error& error) {
        return failed(INGOT_BAD_ARGUMENT, error.what());
    } catch (const std::exception& error) {
        return failed(INGOT_FAULT, error.what());
    } catch (...) {
        return failed(INGOT_FAULT, "an exception of an unknown type");
    }
}

template <typename Struct>
void require_struct(const char* op, const char* name, const Struct* given) {
    REQUIRE(given != nullptr, op, ": ", name, " is a null pointer");
    REQUIRE(given->struct_size == sizeof(Struct), op, ": ", name, " has a struct_size of ", given->struct_size,
            ", not ", sizeof(Struct),
            ": set it to the struct's size, and compile the caller with the c_api.h of this library "
            "(ABI version ",
            INGOT_ABI_VERSION, ")");
}

Device open(const char* op, const ingot_device* device) {
    require_struct(op, "device", device);
    if (device->kind == INGOT_CPU) return Device::cpu();
    REQUIRE(device->kind == INGOT_CUDA, op, ": device kind ", device->kind, ": use 0 (CPU) or 1 (CUDA)");
    return Device::on_cuda_stream(device->index, device->stream);
}

// Turns the caller's tensors into those of an op that runs on `device`.
struct Reader {
    const char* op;
    const Device& device;

    Tensor operator()(const char* name, const ingot_tensor& given) const {
        Tensor tensor;
        if (given.data == nullptr && given.ndim == 0) return tensor;
        REQUIRE(given.ndim >= 1 && given.ndim <= Tensor::kMaxRank, op, ": ", name, " has ", given.ndim,
                " axes: use 1 to ", Tensor::kMaxRank);
        REQUIRE(given.dtype >= INGOT_FP64 && given.dtype <= INGOT_UINT8, op, ": ", name, " has the unknown dtype ",
                given.dtype, ": use an ingot_dtype");
        tensor.data = given.data;
        tensor.dtype = static_cast<DType>(given.dtype);
        tensor.device = device.kind();
        tensor.rank = given.ndim;
        for (int axis = 0; axis < given.ndim; ++axis) {
            REQUIRE(given.shape[axis] >= 0 && given.strides[axis] >= 0, op, ": axis ", axis, " of ", name,
                    " has an extent of ", given.shape[axis], " and a stride of ", given.strides[axis],
                    ": neither may be negative");
            tensor.shape[axis] = given.shape[axis];
            tensor.stride[axis] = given.strides[axis];
        }
        settle_strides(name, tensor);
        REQUIRE(given.data != nullptr || tensor.numel() == 0, op, ": ", name, " has no data");
        REQUIRE(reinterpret_cast<uintptr_t>(given.data) % static_cast<uintptr_t>(size_of(tensor.dtype)) == 0, op, ": ",
                name, " is not aligned to its elements");
        return tensor;
    }

    // The stride of an axis of one element has no meaning, and callers leave anything there: kernels get that of a
    // contiguous tensor. All others must fit an address space, so that no op's arithmetic overflows.
    void settle_strides(const char* name, Tensor& tensor) const {
        int64_t bytes = size_of(tensor.dtype), count = 1;
        bool fits = true;
        for (int axis = tensor.rank - 1; axis >= 0; --axis) {
            const bool is_last = axis + 1 == tensor.rank;
            int64_t reach = 0;
            if (tensor.shape[axis] == 1)
                fits &= !__builtin_mul_overflow(is_last ? 1 : tensor.stride[axis + 1],
                                                is_last ? 1 : tensor.shape[axis + 1], &tensor.stride[axis]);
            fits &= !__builtin_mul_overflow(tensor.shape[axis], tensor.stride[axis], &reach) &&
                    !__builtin_mul_overflow(reach, size_of(tensor.dtype), &reach) &&
                    !__builtin_add_overflow(bytes, reach, &bytes) &&
                    !__builtin_mul_overflow(count, tensor.shape[axis], &count) && count < kMostBytes;
        }
        REQUIRE(fits && bytes < kMostBytes, op, ": ", name,
                " has extents and strides that reach beyond any memory: set them in elements");
    }
    static constexpr int64_t kMostBytes = int64_t{1} << 57;  // of an address space
};
// Reads a field under its own name.
#define INGOT_READ(field) read(#field, a->field)

AttentionMask mask_of(const Reader& read, const ingot_attention_mask& mask) {
    return {.first_key = read("mask.first_key", mask.first_key),
            .end_key = read("mask.end_key", mask.end_key),
            .first_query = read("mask.first_query", mask.first_query),
            .end_query = read("mask.end_query", mask.end_query)};
}

// Refuses any value but 0 and 1, which is unset memory, or comes from a caller of another version.
bool flag(const Reader& read, const char* name, int32_t value) {
    REQUIRE(value == 0 || value == 1, read.op, ": ", name, " is ", value, ": use 0 or 1");
    return value == 1;
}
// Reserved fields must be 0, so that a later version can give them a meaning.
void require_zero(const Reader& read, const char* name, int32_t value) {
    REQUIRE(value == 0, read.op, ": ", name, " is ", value, ": set it to 0");
}

AttentionOptions options_of(const Reader& read, const ingot_attention_options& options) {
    REQUIRE(options.kernel >= INGOT_ATTENTION_AUTOMATIC && options.kernel <= INGOT_ATTENTION_SM90, read.op,
            ": options.kernel ", options.kernel, " is unknown: use an ingot_attention_kernel");
    return {.request = static_cast<AttentionRequest>(options.kernel),
            .is_deterministic = !flag(read, "options.any_order", options.any_order)};
}

// Every op runs through this: its structs are checked, its device is opened and its errors are caught.
template <typename Arguments, typename Function>
int run(const char* op, const ingot_device* device, const Arguments* arguments, Function&& function) {
    return guarded([&] {
        require_struct(op, "arguments", arguments);
        const Device opened = open(op, device);
        function(Reader{op, opened});
    });
}

// Runs a function that returns the size of scratch memory, in the same way.
template <typename Function>
int answer(const char* op, const ingot_device* device, uint64_t* bytes, Function&& function) {
    return guarded([&] {
        REQUIRE(bytes != nullptr, op, ": bytes is a null pointer");
        const Device opened = open(op, device);
        *bytes = function(Reader{op, opened});
    });
}

}  // namespace

}  // namespace ingot

using namespace ingot;

int32_t ingot_abi_version(void) {
    return INGOT_ABI_VERSION;
}
const char* ingot_version(void) {
    return INGOT_VERSION;
}
int32_t ingot_has_cuda(void) {
    return Device::has_cuda() ? 1 : 0;
}
const char* ingot_last_error(void) {
    return last_error.c_str();
}

// ---- Attention ----

int ingot_attention_forward(const ingot_device* device, const ingot_attention_forward_arguments* a) {
    return run("attention_forward", device, a, [&](const Reader& read) {
        attention_forward(read.device, {.out = INGOT_READ(out),
                                        .lse = INGOT_READ(lse),
                                        .q = INGOT_READ(q),
                                        .k = INGOT_READ(k),
                                        .v = INGOT_READ(v),
                                        .slopes = INGOT_READ(slopes),
                                        .mask = mask_of(read, a->mask),
                                        .scale = a->scale,
                                        .options = options_of(read, a->options)});
    });
}

int ingot_attention_backward(const ingot_device* device, const ingot_attention_backward_arguments* a) {
    return run("attention_backward", device, a, [&](const Reader& read) {
        attention_backward(read.device, {.dq = INGOT_READ(dq),
                                         .dk = INGOT_READ(dk),
                                         .dv = INGOT_READ(dv),
                                         .dout = INGOT_READ(dout),
                                         .out = INGOT_READ(out),
                                         .lse = INGOT_READ(lse),
                                         .q = INGOT_READ(q),
                                         .k = INGOT_READ(k),
                                         .v = INGOT_READ(v),
                                         .slopes = INGOT_READ(slopes),
                                         .mask = mask_of(read, a->mask),
                                         .scale = a->scale,
                                         .workspace = INGOT_READ(workspace),
                                         .options = options_of(read, a->options)});
    });
}

int ingot_attention_backward_workspace(const ingot_device* device, const ingot_tensor* q,
                                       const ingot_attention_options* options, uint64_t* bytes) {
    return answer("attention_backward_workspace", device, bytes, [&](const Reader& read) {
        REQUIRE(q != nullptr && options != nullptr, read.op, ": q or options is a null pointer");
        return attention_backward_workspace(read.device, read("q", *q), options_of(read, *options));
    });
}

// ---- RMSNorm, SwiGLU, RoPE, cross-entropy ----

int ingot_rmsnorm_forward(const ingot_device* device, const ingot_rmsnorm_forward_arguments* a) {
    return run("rmsnorm_forward", device, a, [&](const Reader& read) {
        rmsnorm_forward(read.device, {.out = INGOT_READ(out),
                                      .rstd = INGOT_READ(rstd),
                                      .x = INGOT_READ(x),
                                      .weight = INGOT_READ(weight),
                                      .eps = a->eps});
    });
}

int ingot_rmsnorm_backward(const ingot_device* device, const ingot_rmsnorm_backward_arguments* a) {
    return run("rmsnorm_backward", device, a, [&](const Reader& read) {
        require_zero(read, "reserved", a->reserved);
        rmsnorm_backward(read.device, {.dx = INGOT_READ(dx),
                                       .dweight = INGOT_READ(dweight),
                                       .dout = INGOT_READ(dout),
                                       .x = INGOT_READ(x),
                                       .rstd = INGOT_READ(rstd),
                                       .weight = INGOT_READ(weight),
                                       .dresidual = INGOT_READ(dresidual),
                                       .workspace = INGOT_READ(workspace),
                                       .accumulate = !flag(read, "overwrite", a->overwrite)});
    });
}

int ingot_rmsnorm_backward_workspace(const ingot_device* device, const ingot_tensor* x, uint64_t* bytes) {
    return answer("rmsnorm_backward_workspace", device, bytes, [&](const Reader& read) {
        REQUIRE(x != nullptr && x->ndim >= 1, read.op, ": x must be (N, C) or (N, H, HS)");
        return rmsnorm_backward_workspace(read.device, read("x", *x));
    });
}

int ingot_swiglu_forward(const ingot_device* device, const ingot_swiglu_forward_arguments* a) {
    return run("swiglu_forward", device, a, [&](const Reader& read) {
        swiglu_forward(read.device, {.out = INGOT_READ(out), .gate_up = INGOT_READ(gate_up)});
    });
}

int ingot_swiglu_backward(const ingot_device* device, const ingot_swiglu_backward_arguments* a) {
    return run("swiglu_backward", device, a, [&](const Reader& read) {
        swiglu_backward(read.device, {.dgate_up = INGOT_READ(dgate_up),
                                      .dout = INGOT_READ(dout),
                                      .gate_up = INGOT_READ(gate_up),
                                      .out = INGOT_READ(out)});
    });
}

int ingot_rope_forward(const ingot_device* device, const ingot_rope_arguments* a) {
    return run("rope_forward", device, a, [&](const Reader& read) {
        rope_forward(read.device, {.x = INGOT_READ(x), .positions = INGOT_READ(positions), .table = INGOT_READ(table)});
    });
}

int ingot_rope_backward(const ingot_device* device, const ingot_rope_arguments* a) {
    return run("rope_backward", device, a, [&](const Reader& read) {
        rope_backward(read.device,
                      {.x = INGOT_READ(x), .positions = INGOT_READ(positions), .table = INGOT_READ(table)});
    });
}

int ingot_cross_entropy(const ingot_device* device, const ingot_cross_entropy_arguments* a) {
    return run("cross_entropy", device, a, [&](const Reader& read) {
        require_zero(read, "reserved", a->reserved);
        cross_entropy(read.device, {.logits = INGOT_READ(logits),
                                    .losses = INGOT_READ(losses),
                                    .targets = INGOT_READ(targets),
                                    .vocab_size = a->vocab_size,
                                    .z_loss = a->z_loss,
                                    .loss_scale = a->loss_scale,
                                    .write_gradient = flag(read, "write_gradient", a->write_gradient)});
    });
}
