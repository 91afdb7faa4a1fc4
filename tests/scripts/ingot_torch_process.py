"""One op of libingot.so as the first thing that a thread of a fresh process does: run by test_ingot_torch_processes.py.

    python3 -m tests.scripts.ingot_torch_process OP KIND DEVICE

Does the op on DEVICE (cuda:0, cuda:1, cpu) in the way that KIND says, and once more in the main thread, where by then
everything is set up; both must give the same finite numbers. The thread's current GPU must be what it was, and the
library's own calls may have made a context on no GPU but DEVICE. Prints one line if not, and ends with 1; with 0 if all
is well, with 77 if this GPU cannot do it.
"""

import concurrent.futures
import itertools
import os
import sys

import torch

import ingot_library
import ingot_torch
from ingot_library import CAttentionBackward, CAttentionForward, CAttentionOptions, On, struct_of, view

CANNOT = 77
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
KERNELS = ("automatic", "simt", "sm80", "sm90")  # as ingot_attention_kernel counts them


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


CRope = struct_of("CRope", "x positions table")
def rope(direction, device, dtype):
    x, table = numbers(device, dtype, 30, 4, 64), numbers(device, torch.float32, 30, 64)
    positions = torch.arange(30, device=device, dtype=torch.int32)
    On(x).run(f"rope_{direction}", CRope, dict(x=x, positions=positions, table=table))
    return [x]


# name -> function(device), which returns all that was computed.
OPS = {f"{op.__name__} {name}": (lambda device, op=op, dtype=dtype: op(device, dtype))
       for op, (name, dtype) in itertools.product(
           (documents, rms_norm, swiglu, cross_entropy), TYPES.items())}
OPS.update({f"attention {name} {HS}": (lambda device, dtype=dtype, HS=HS: attention(device, dtype, HS))
            for (name, dtype), HS in itertools.product(TYPES.items(), (32, 64, 96, 128))})
OPS.update({f"raw attention {name} {kernel}":
            (lambda device, dtype=dtype, kernel=kernel: raw_attention(device, dtype, kernel))
            for (name, dtype), kernel in itertools.product(TYPES.items(), KERNELS)
            if name != "fp32" or kernel in ("automatic", "simt")})
OPS.update({f"rope_{direction} {name}":
            (lambda device, dtype=dtype, direction=direction: rope(direction, device, dtype))
            for (name, dtype), direction in itertools.product(TYPES.items(), ("forward", "backward"))})
USES_AUTOGRAD = {"attention", "documents", "rms_norm", "swiglu", "cross_entropy"}


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
