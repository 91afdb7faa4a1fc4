#!/usr/bin/env python3
"""Time Ingot's attention beside PyTorch's, on one GPU.

    python3 scripts/peers/bench_torch.py attention [--tokens 16384 --seq 1024,4096 --heads 16 --kv-heads 4]
        [--head-dim 64,128]
    python3 scripts/peers/bench_torch.py attention --docs exponential:16384:1024 [OPTION]...

For each shape, forward and backward of

    flash   FlashAttention-2, PyTorch's own build of it (aten._flash_attention_forward and _backward); its varlen kernel
            where --docs packs documents into one row
    cudnn   scaled_dot_product_attention by cuDNN (no documents)
    flex    FlexAttention under torch.compile, with the documents as a block mask (and ALiBi, with --alibi)

and of `./bench attention` on the same shapes, in turns of --rounds. Tensors lie in memory as (tokens, heads, head size)
on both sides, random normal; FLOPs are those of the visible pairs. A figure is the median over the rounds, a ratio is
PyTorch's time over Ingot's: above 1 Ingot is faster. The last lines are geometric means and minima of the ratios.

Ingot is deterministic unless --any-order is given; PyTorch's backward is what it is by default, in any order. Run it
with the Python that has PyTorch 2.6 or later. `--docs LENGTHS` takes lengths, separated by commas, or
exponential:N:MEAN.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
from typing import Any, Callable

import torch
from torch import Tensor

ROOT = pathlib.Path(__file__).resolve().parents[2]
BATCH_SECONDS = 5e-3  # launches of about so long stand between two events
Pair = tuple[Callable[[], Any], Callable[[], Any]]  # forward, backward


def fail(message: str) -> None:
    sys.exit(f"bench_torch_attention.py: {message}")


def document_lengths(text: str) -> list[int]:
    """Reads 37,120,8, or exponential:16384:1024: 16,384 tokens in documents of a mean length of 1,024, always the
    same."""
    if not text.startswith("exponential:"):
        return [int(length) for length in text.split(",")]
    tokens, mean = (int(part) for part in text.split(":")[1:])
    generator = random.Random(1)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(min(max(1, round(generator.expovariate(1 / mean))), tokens - sum(lengths)))
    return lengths


class Shape:
    """One row of the table. Documents are the sequences of the batch, or those of --docs."""

    def __init__(self, args: argparse.Namespace, head_dim: int, seq: int | None, lengths: list[int]) -> None:
        self.heads, self.kv_heads, self.head_dim = args.heads, args.kv_heads or args.heads, head_dim
        self.seq, self.lengths, self.tokens = seq, lengths, sum(lengths)
        self.is_causal, self.alibi = args.mask == "causal", args.alibi
        documents = f"{len(lengths)} document{'' if len(lengths) == 1 else 's'}"
        self.name = f"{len(lengths)} x {seq}" if seq else f"{self.tokens} in {documents}"
        pairs = sum(n * (n + 1) / 2 if self.is_causal else n * n for n in lengths)
        self.flops = 4 * pairs * self.heads * head_dim
        self.scale = head_dim ** -0.5

    def slopes(self) -> Tensor:
        """Returns the slopes of Press et al. 2022, also for a head count that is no power of two."""
        base = 2 ** int(math.log2(self.heads))
        first = [2 ** (-8 * (h + 1) / base) for h in range(base)]
        rest = [2 ** (-4 * (2 * h + 1) / base) for h in range(self.heads - base)]
        return torch.tensor(first + rest, device="cuda", dtype=torch.float32)


class Operands:
    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        def make(heads: int) -> Tensor:
            return torch.randn(shape.tokens, heads, shape.head_dim, device="cuda", dtype=dtype)
        torch.manual_seed(1)
        self.q, self.k, self.v = make(shape.heads), make(shape.kv_heads), make(shape.kv_heads)
        self.dout = make(shape.heads)

    def batched(self, shape: Shape, tensor: Tensor) -> Tensor:
        """Returns a view of the same memory, (B, heads, T, head size); B is 1 where documents are packed."""
        rows = len(shape.lengths) if shape.seq else 1
        return tensor.view(rows, -1, tensor.shape[1], shape.head_dim).transpose(1, 2)


def flash(shape: Shape, x: Operands) -> Pair:
    forward_op, backward_op = torch.ops.aten._flash_attention_forward, torch.ops.aten._flash_attention_backward
    if shape.seq:
        tensors = [x.batched(shape, t).transpose(1, 2) for t in (x.q, x.k, x.v, x.dout)]
        starts, longest = None, shape.seq
    else:
        tensors = [x.q, x.k, x.v, x.dout]
        ends = torch.tensor(shape.lengths).cumsum(0)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends]).to("cuda", torch.int32)
        longest = max(shape.lengths)
    q, k, v, dout = tensors

    def forward() -> Any:
        return forward_op(q, k, v, starts, starts, longest, longest, 0.0, shape.is_causal, False, scale=shape.scale)
    out, lse, state, unused = forward()[:4]

    def backward() -> Any:
        return backward_op(dout, q, k, v, out, lse, starts, starts, longest, longest, 0.0, shape.is_causal, state,
                           unused, scale=shape.scale)
    return forward, backward


def by_autograd(shape: Shape, x: Operands, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Pair:
    q, k, v = (x.batched(shape, t).detach().requires_grad_() for t in (x.q, x.k, x.v))
    dout = x.batched(shape, x.dout)

    def forward() -> Tensor:
        with torch.no_grad():
            return attend(q, k, v)
    out = attend(q, k, v)

    def backward() -> Any:
        return torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
    return forward, backward


def cudnn(shape: Shape, x: Operands) -> Pair:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=shape.is_causal, scale=shape.scale, enable_gqa=shape.heads != shape.kv_heads)
    return by_autograd(shape, x, attend)


def flex(shape: Shape, x: Operands) -> Pair:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    length = shape.seq or shape.tokens
    lengths = [length] if shape.seq else shape.lengths
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).cuda()
    slopes = shape.slopes()

    def is_visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        same = document[i] == document[j]
        return same & (i >= j) if shape.is_causal else same

    def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - slopes[h] * (i - j).abs()
    mask = create_block_mask(is_visible, None, None, length, length, device="cuda")
    compiled = torch.compile(flex_attention, dynamic=False)
    return by_autograd(shape, x, lambda q, k, v: compiled(
        q, k, v, score_mod=biased if shape.alibi else None, block_mask=mask, scale=shape.scale,
        enable_gqa=shape.heads != shape.kv_heads))


KINDS: dict[str, Callable[[Shape, Operands], Pair]] = {"flash": flash, "cudnn": cudnn, "flex": flex}


def seconds_of(launch: Callable[[], Any], seconds: float) -> float:
    """Returns the median over batches of launches between two events."""
    def batch(count: int) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(count):
            launch()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / count
    batch(2)
    estimate = max(batch(3), 1e-7)
    count = max(1, math.ceil(BATCH_SECONDS / estimate))
    samples = min(max(5, int(seconds / (estimate * count))), 501)
    return statistics.median(batch(count) for _ in range(samples))


def load(pairs: list[Pair], seconds: float) -> None:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    while True:
        for forward, backward in pairs:
            forward(), backward()
        end.record()
        end.synchronize()
        if begin.elapsed_time(end) * 1e-3 >= seconds:
            return


def ingot(args: argparse.Namespace, head_dims: list[int], sequences: list[int], lengths: list[int]) -> list[Any]:
    """Returns the rows of ./bench attention, in the order of the table."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "ingot.json"
        command = [args.bench, "attention", "--heads", str(args.heads), "--kv-heads", str(args.kv_heads or args.heads),
                   "--head-dim", ",".join(map(str, head_dims)), "--mask", args.mask, "--dtype", args.dtype,
                   "--seconds", str(args.seconds), "--load-seconds", str(args.load_seconds), "--json", str(file)]
        command += ["--docs", ",".join(map(str, lengths))] if lengths else \
            ["--tokens", str(args.tokens), "--seq", ",".join(map(str, sequences))]
        command += ["--alibi"] * args.alibi + ["--any-order"] * args.any_order
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode != 0:
            fail(f"{' '.join(command)}: {run.stderr.strip()}")
        return json.loads(file.read_text())["rows"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--tokens", type=int, default=16384, help="in a launch; the batch is this / seq")
    parser.add_argument("--seq", default="1024,2048,4096,8192,16384")
    parser.add_argument("--docs", default="", help="lengths of documents packed into one row, or exponential:N:MEAN")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=0)
    parser.add_argument("--head-dim", default="64,128")
    parser.add_argument("--mask", choices=("causal", "full"), default="causal")
    parser.add_argument("--dtype", choices=("bf16", "fp16"), default="bf16")
    parser.add_argument("--alibi", action="store_true", help="Ingot and flex; PyTorch's others run without")
    parser.add_argument("--any-order", action="store_true", help="Ingot's dq as training.deterministic = false")
    parser.add_argument("--kinds", default="flash,cudnn", help="of PyTorch: flash, cudnn, flex")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each measurement")
    parser.add_argument("--load-seconds", type=float, default=1, help="of load before each shape")
    parser.add_argument("--bench", default=str(ROOT / "bench"), help="Ingot's bench")
    parser.add_argument("--json", default="", help="write all figures to this file")
    args = parser.parse_args()
    kinds = [kind for kind in args.kinds.split(",") if kind]
    for kind in kinds:
        if kind not in KINDS:
            fail(f"--kinds {kind}: use flash, cudnn or flex")
    if not torch.cuda.is_available():
        fail("PyTorch sees no CUDA device: run it on a machine with a GPU, and a PyTorch that was built for CUDA")
    lengths = document_lengths(args.docs) if args.docs else []
    if lengths and "cudnn" in kinds:
        kinds.remove("cudnn")
        print("NOTE: cudnn is left out: it does not take packed documents here")
    sequences = [int(length) for length in args.seq.split(",")]
    head_dims = [int(size) for size in args.head_dim.split(",")]
    for seq in [] if lengths else sequences:
        if args.tokens % seq != 0:
            fail(f"--tokens {args.tokens} is not a multiple of --seq {seq}")
    shapes = [Shape(args, size, seq, lengths or [seq] * (args.tokens // seq))
              for size in head_dims for seq in ([None] if lengths else sequences)]

    times: dict[tuple[int, str], list[tuple[float, float]]] = {}
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float16
    for _ in range(args.rounds):
        for index, row in enumerate(ingot(args, head_dims, sequences, lengths)):
            times.setdefault((index, "ingot"), []).append((row["forward_seconds"], row["backward_seconds"]))
        for index, shape in enumerate(shapes):
            operands = Operands(shape, dtype)
            pairs = {kind: KINDS[kind](shape, operands) for kind in kinds}
            if pairs:
                load(list(pairs.values()), args.load_seconds)
            for kind, (forward, backward) in pairs.items():
                times.setdefault((index, kind), []).append(
                    (seconds_of(forward, args.seconds), seconds_of(backward, args.seconds)))
            del operands, pairs
            torch.cuda.empty_cache()

    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}; {args.dtype}, {args.mask}"
          f"{', ALiBi' if args.alibi else ''}, Ingot {'in any order' if args.any_order else 'deterministic'}; "
          "TFLOP/s, and PyTorch's time over Ingot's")
    ratios: dict[tuple[str, int], list[float]] = {}
    for index, shape in enumerate(shapes):
        for way, name, factor in ((0, "forward", 1.0), (1, "backward", 2.5)):
            ours = statistics.median(pair[way] for pair in times[index, "ingot"])
            line = f"{shape.name:26} {shape.heads:3}/{shape.kv_heads:<3} {shape.head_dim:4} {name:8} " \
                   f"ingot {factor * shape.flops / ours * 1e-12:6.1f}"
            for kind in kinds:
                theirs = statistics.median(pair[way] for pair in times[index, kind])
                ratios.setdefault((kind, way), []).append(theirs / ours)
                line += f" | {kind} {factor * shape.flops / theirs * 1e-12:6.1f} {theirs / ours:5.2f}"
            print(line)
    for (kind, way), values in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, values)))
        print(f"{kind} {('forward', 'backward')[way]}: geometric mean {mean:.3f}, least {min(values):.3f}")
    if args.json:
        report = {"arguments": vars(args), "device": torch.cuda.get_device_name(), "torch": torch.__version__,
                  "rows": [{"shape": shapes[index].name, "head_dim": shapes[index].head_dim, "kind": kind,
                            "seconds": pairs} for (index, kind), pairs in times.items()]}
        pathlib.Path(args.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
