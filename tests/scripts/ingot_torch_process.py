"""One op of libingot.so as the first thing that a thread of a fresh process does: run by test_ingot_torch_processes.py.

    python3 -m tests.scripts.ingot_torch_process OP KIND DEVICE

Does the op on DEVICE (cuda:0, cuda:1, cpu) in the way that KIND says, and once more in the main thread, where by then
everything is set up; both must give the same finite numbers. The thread's current GPU must be what it was, and the
library's own calls may have made a context on no GPU but DEVICE. Prints one line if not, and ends with 1; with 0 if all
is well, with 77 if this GPU cannot do it.
"""

import concurrent.futures
import ctypes
import itertools
import os
import sys

import torch

import ingot_library
import ingot_torch
from ingot_library import CAttentionBackward, CAttentionForward, CAttentionOptions, CTensor, On, struct_of, view

CANNOT = 77
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
KERNELS = ("automatic", "plain", "sm80", "sm90")  # as ingot_attention_kernel counts them


def numbers(device, dtype, *shape):
    """The same every time; on the device, made there without a wait."""
    steps = torch.arange(torch.Size(shape).numel(), device=device, dtype=torch.float32)
    return (steps * 0.7310585).sin().reshape(shape).to(dtype)


# ---- The ops of ingot_torch.py, forward and backward ----

def attention(device, dtype, head_size):
    q, k, v = (numbers(device, dtype, 2, 150, heads, head_size).requires_grad_() for heads in (4, 2, 2))
    slopes = torch.full((4,), 0.25, device=device)
    out = ingot_torch.attention(q, k, v, alibi_slopes=slopes)
    return [out, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))]


def documents(device, dtype):
    q = numbers(device, dtype, 150, 4, 64).requires_grad_()
    out = ingot_torch.attention(q, q, q, cu_seqlens=torch.arange(0, 151, 50, device=device, dtype=torch.int32))
    return [out, *torch.autograd.grad(out.sum(), q)]


def rms_norm(device, dtype):
    x, weight = numbers(device, dtype, 30, 64).requires_grad_(), numbers(device, dtype, 64).requires_grad_()
    out = ingot_torch.rms_norm(x, weight)
    return [out, *torch.autograd.grad(out, (x, weight), torch.ones_like(out))]


def swiglu(device, dtype):
    gate_up = numbers(device, dtype, 30, 64).requires_grad_()
    out = ingot_torch.swiglu(gate_up)
    return [out, *torch.autograd.grad(out, gate_up, torch.ones_like(out))]


def cross_entropy(device, dtype):
    logits = numbers(device, dtype, 30, 96).requires_grad_()
    loss = ingot_torch.cross_entropy(logits, torch.arange(30, device=device))
    return [loss, *torch.autograd.grad(loss, logits)]


# ---- The C ABI itself ----

def raw_attention(device, dtype, kernel):
    """Forward and backward by one kernel, without autograd."""
    N, NH, NKV, HS = 150, 4, 2, 64
    q, k, v, dout = (numbers(device, dtype, N, heads, HS) for heads in (NH, NKV, NKV, NH))
    out, dq, dk, dv = (torch.zeros_like(tensor) for tensor in (q, q, k, v))
    lse = torch.zeros(NH, N, device=device)
    mask = dict(zip(ingot_library.MASK.split(), ingot_torch._mask(*ingot_torch._sequences(N, N, device), True)))
    options, on = CAttentionOptions(KERNELS.index(kernel), 0), On(q)
    size = on.bytes_of("attention_backward_workspace", view(q), options)
    workspace = torch.zeros(size, dtype=torch.uint8, device=device)
    on.run("attention_forward", CAttentionForward, dict(out=out, lse=lse, q=q, k=k, v=v, **mask), scale=0.125,
           options=options)
    on.run("attention_backward", CAttentionBackward,
           dict(dq=dq, dk=dk, dv=dv, dout=dout, out=out, lse=lse, q=q, k=k, v=v, **mask, workspace=workspace),
           scale=0.125, options=options)
    return [out, lse, dq, dk, dv]


DOUBLE, INT, LONG, POINTER = ctypes.c_double, ctypes.c_int32, ctypes.c_uint64, ctypes.c_void_p
CDecode = struct_of("CDecode", "out q k v slopes", ("scale", DOUBLE))
CAppend = struct_of("CAppend", "cache_k cache_v k v")
CResidual = struct_of("CResidual", "out rstd sum residual branch weight", ("eps", DOUBLE))
CRope = struct_of("CRope", "x positions table")
CAdamW = struct_of("CAdamW", "weights m v gradient compute", ("step", POINTER), ("decay_blocks", CTensor),
                   ("decays", INT), ("reserved", INT))
CEmbedding = struct_of("CEmbedding", "out weight tokens")
CEmbeddingBackward = struct_of("CEmbeddingBackward", "dweight dout tokens workspace")
CNormal = struct_of("CNormal", "out", ("seed", LONG), ("stream", LONG), ("std", DOUBLE))
CValue = struct_of("CValue", "out", ("value", DOUBLE))
CRoundTo = struct_of("CRoundTo", "out in")


class CLossSum(ctypes.Structure):
    _fields_ = [("struct_size", LONG), ("step", POINTER), ("losses", CTensor), ("targets", CTensor)]


class CGradientNorm(ctypes.Structure):
    _fields_ = [("struct_size", LONG), ("step", POINTER), ("gradient", CTensor), ("workspace", CTensor)]


class CStepSettings(ctypes.Structure):
    _fields_ = [(name, DOUBLE) for name in "lr beta1 beta2 eps weight_decay grad_clip".split()] + [
        ("dynamic_loss_scale", INT), ("reserved", INT)]


def decode(device, dtype):
    k, v, q = (numbers(device, dtype, *shape) for shape in ((70, 2, 64), (70, 2, 64), (4, 64)))
    cache_k, cache_v, out = torch.zeros_like(k), torch.zeros_like(v), torch.zeros_like(q)
    on = On(q)
    on.run("kv_cache_append", CAppend, dict(cache_k=cache_k, cache_v=cache_v, k=k, v=v))
    on.run("attention_decode", CDecode, dict(out=out, q=q, k=cache_k, v=cache_v, slopes=None), scale=0.125)
    return [out, cache_k, cache_v]


def residual_rms_norm(device, dtype):
    residual, branch = numbers(device, dtype, 30, 64), numbers(device, dtype, 30, 64)
    out, total, rstd = torch.zeros_like(residual), torch.zeros_like(residual), torch.zeros(30, device=device)
    On(out).run("residual_rmsnorm_forward", CResidual, dict(out=out, rstd=rstd, sum=total, residual=residual,
                branch=branch, weight=numbers(device, dtype, 64)), eps=1e-5)
    return [out, total, rstd]


def rope(direction, device, dtype):
    x, table = numbers(device, dtype, 30, 4, 64), numbers(device, torch.float32, 30, 64)
    positions = torch.arange(30, device=device, dtype=torch.int32)
    On(x).run(f"rope_{direction}", CRope, dict(x=x, positions=positions, table=table))
    return [x]


def embedding(device, dtype):
    weight, out = numbers(device, dtype, 50, 64), torch.zeros(30, 64, device=device, dtype=dtype)
    tokens = torch.arange(30, device=device, dtype=torch.int32) % 7
    on, dweight = On(out), torch.zeros(50, 64, device=device)
    on.run("embedding_forward", CEmbedding, dict(out=out, weight=weight, tokens=tokens))
    workspace = torch.zeros(on.bytes_of("embedding_backward_workspace", view(out)), dtype=torch.uint8, device=device)
    on.run("embedding_backward", CEmbeddingBackward, dict(dweight=dweight, dout=out, tokens=tokens,
                                                          workspace=workspace))
    return [out, dweight]


def fill(device, dtype):
    normal, value = torch.zeros(30, 64, device=device, dtype=dtype), torch.zeros(30, device=device, dtype=dtype)
    on = On(normal)
    on.run("fill_normal", CNormal, dict(out=normal), seed=3, stream=4, std=0.5)
    on.run("fill_value", CValue, dict(out=value), value=1.5)
    results = [normal, value]
    if normal.device.type == "cuda":
        narrow = torch.zeros(30, 64, device=device, dtype=torch.bfloat16)
        on.run("round_to", CRoundTo, {"out": narrow, "in": numbers(device, torch.float32, 30, 64)})
        results.append(narrow)
    return results


def step(device, dtype):
    """A step of training from its sums to its update."""
    weights, m, gradient = (numbers(device, torch.float32, 200) for _ in range(3))
    v, losses = m.square(), numbers(device, torch.float32, 30)
    targets = torch.arange(30, device=device, dtype=torch.int32)
    block = torch.zeros(ingot_torch.STEP_BLOCK_SIZE, dtype=torch.float64, device=device)
    block[ingot_torch.LOSS_SCALE_AT:ingot_torch.LOSS_SCALE_AT + 1].fill_(1)  # without a copy from the host
    on, pointer = On(weights), POINTER(block.data_ptr())
    settings = CStepSettings(0.1, 0.9, 0.95, 1e-8, 0.1, 1.0, 0, 0)
    ingot_library._call("step_begin", ctypes.byref(on.device), pointer, ctypes.byref(settings))
    on.run("loss_sum", CLossSum, dict(losses=losses, targets=targets), step=pointer)
    workspace = torch.zeros(on.bytes_of("gradient_norm_workspace"), dtype=torch.uint8, device=device)
    on.run("gradient_norm", CGradientNorm, dict(gradient=gradient, workspace=workspace), step=pointer)
    ingot_library._call("step_decide", ctypes.byref(on.device), pointer)
    on.run("adamw", CAdamW, dict(weights=weights, m=m, v=v, gradient=gradient, compute=None, decay_blocks=None),
           step=pointer, decays=1)
    return [weights, m, v]


# name -> function(device), which returns all that was computed.
OPS = {f"{op.__name__} {name}": (lambda device, op=op, dtype=dtype: op(device, dtype))
       for op, (name, dtype) in itertools.product(
           (documents, rms_norm, swiglu, cross_entropy, decode, residual_rms_norm, embedding, fill), TYPES.items())}
OPS.update({f"attention {name} {HS}": (lambda device, dtype=dtype, HS=HS: attention(device, dtype, HS))
            for (name, dtype), HS in itertools.product(TYPES.items(), (32, 64, 96, 128))})
OPS.update({f"raw attention {name} {kernel}":
            (lambda device, dtype=dtype, kernel=kernel: raw_attention(device, dtype, kernel))
            for (name, dtype), kernel in itertools.product(TYPES.items(), KERNELS)
            if name != "fp32" or kernel in ("automatic", "plain")})
OPS.update({f"rope_{direction} {name}":
            (lambda device, dtype=dtype, direction=direction: rope(direction, device, dtype))
            for (name, dtype), direction in itertools.product(TYPES.items(), ("forward", "backward"))})
USES_AUTOGRAD = {"attention", "documents", "rms_norm", "swiglu", "cross_entropy"}
OPS["step fp32"] = lambda device: step(device, torch.float32)


# ---- Who does it ----

class InBackward(torch.autograd.Function):
    """Runs `work` in the backward pass: on autograd's own thread for the device."""

    @staticmethod
    def forward(ctx, x, work):
        ctx.work = work
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        with torch.enable_grad():
            ctx.work()
        return gradient, None


def in_main(work, device):
    return work()


def in_thread(work, device):
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(work).result()


def in_autograd(work, device):
    """Nothing of the library ran before, nor does anything else on that thread."""
    results = []
    x = torch.zeros(1, device=device, requires_grad=True)
    InBackward.apply(x, lambda: results.append(work())).sum().backward()
    return results[0]


def in_graph(work, device):
    """Recorded after a first run and replayed; with leaves of the captured stream, as autograd asks for."""
    if device.type != "cuda":
        sys.exit(CANNOT)
    with torch.cuda.device(device):  # torch.cuda.graph() captures on the current GPU
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            work()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            results = work()
        graph.replay()
        torch.cuda.synchronize()
    return results


KINDS = {"main": in_main, "thread": in_thread, "autograd": in_autograd, "graph": in_graph, "fork": in_main}


def become_a_child():
    """Of a process that loaded everything and did nothing on a GPU."""
    ingot_library.library()
    child = os.fork()
    if child != 0:
        sys.exit(os.WEXITSTATUS(os.waitpid(child, 0)[1]))


def gpus():
    """The current GPU, and which have a context."""
    if not torch.cuda.is_initialized():
        return 0, set()
    return torch.cuda.current_device(), {gpu for gpu in range(torch.cuda.device_count())
                                         if torch._C._cuda_hasPrimaryContext(gpu)}


def main(op, kind, name):
    device = torch.device(name)
    if kind == "fork":
        become_a_child()
    if "sm90" in op and torch.cuda.get_device_capability(device) != (9, 0):
        sys.exit(CANNOT)
    before, contexts = gpus()
    # What a thread finds as its current GPU afterwards is asked on that thread.
    seen = []

    def work():
        results = OPS[op](device)
        seen.append(gpus()[0])
        return [tensor.detach().clone() for tensor in results]

    first = KINDS[kind](work, device)
    after, contexts_after = gpus()
    again = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        if after != before or set(seen) - {before, device.index if kind in ("autograd", "graph") else before}:
            sys.exit(f"the current GPU was {before}, and is {after}; within the thread {seen}")
        # What else PyTorch sets up for autograd and graphs is its own matter.
        is_alone = kind in ("main", "thread") and op.split()[0] not in USES_AUTOGRAD
        if is_alone and contexts_after - contexts - {device.index}:
            sys.exit(f"a context was made on {contexts_after - contexts}")
    for number, (a, b) in enumerate(zip(first, again)):
        if not torch.isfinite(a).all() or not a.any() or not torch.equal(a, b):
            sys.exit(f"result {number} is not what it is later: {a.flatten()[:4]}, {b.flatten()[:4]}")
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
