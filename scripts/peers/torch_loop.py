#!/usr/bin/env python3
"""Train again in PyTorch what Ingot trained, rounding where Ingot rounds: how much of a gap is 16-bit arithmetic?

    python3 scripts/peers/torch_loop.py train --run RUN --dtype bf16 [--device cuda] --output DIR
    python3 scripts/peers/torch_loop.py gap --config FILE --seeds 1337,1,2,3 --dtype bf16,fp16 --device cuda
        --output DIR
    python3 scripts/peers/torch_loop.py gap --reference RUN... --run RUN... --peer DIR... [--last 50]

`train` repeats the run of a run folder of Ingot's (its config.json): the same initial weights, rows, schedule, loss,
clipping and AdamW, with --dtype in place of the run's precision. It is a plain eager loop, which computes in float32 on
values that it rounds: the compute copy of the weights, every activation and the gradient of every activation, once each
and at the points that the contracts in kernels/*.h name, the probabilities of attention before their products among
them. Norms, softmax, loss, the gradients of the weights, and AdamW are float32, as is the residual stream with
--residual fp32. fp16 scales the loss as kernels/core/step.h does. DIR/log.jsonl is like Ingot's: plot.py and
compare_runs.py read it.

`gap` says how far a run of Ingot's (--run) and the loop (--peer) are from a run in fp32 (--reference): the mean over
the last steps of |loss - the reference's|. Several of each are several seeds, in the same order: in fp16 a single one
is chance. What is compared with --limit is the mean over the seeds of Ingot's gaps, divided by that of the loop's; a
mean of ratios would be that of the seed where the loop's gap happens to be small. The exit code is 1 where it is
above. With --config all of it runs: for each seed ./train in fp32 once, and for each --dtype ./train and the loop,
into DIR/seed-SEED/.

It is slow: for small models and a few hundred steps. `train --compiled` takes another loop, that of bench_torch.py:
what people train with in PyTorch, for runs of many tokens on a GPU: torch.compile, FlexAttention, fused AdamW, with
--residual fp32 under bf16 autocast, else on a bf16 copy of the weights.

Run it with the Python that has PyTorch 2.6 or later.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import shlex
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple, Tuple

from torch_rows import IGNORED, Rows
from torch_twin import alibi_slopes, fail, initial_weights, learning_rate, rope_frequencies

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = pathlib.Path(__file__).resolve().parents[2]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# kernels/core/step.h
LOSS_SCALE_MIN, LOSS_SCALE_MAX, GROWTH_INTERVAL = 2.0**-14, 2.0**14, 1000


# ---- Rounding --------------------------------------------------------------------------------------------------------


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).float()


class Stored(torch.autograd.Function):
    """Stores a tensor in `dtype`, and its gradient too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return rounded(x, dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return rounded(gradient, ctx.dtype), None


class Copied(torch.autograd.Function):
    """Makes the compute copy of a weight; the gradient goes to the weight as it is, in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        return rounded(x, dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


class Attention(torch.autograd.Function):
    """Attention as one kernel, which rounds what it multiplies on tensor cores: q, k, v, the probabilities and their
    gradient.
    q (B, NH, T, HS), k and v (B, NKV, T, HS); bias (B or 1, NH or 1, T, T) has ALiBi and -inf where nothing is seen."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        group = q.shape[1] // k.shape[1]
        keys, values = (x.repeat_interleave(group, dim=1) for x in (k, v))
        scale = 1 / math.sqrt(q.shape[-1])
        scores = scale * (q @ keys.transpose(-1, -2)) + bias
        largest = scores.amax(dim=-1, keepdim=True)
        p = (scores - largest).exp()
        total = p.sum(dim=-1, keepdim=True)
        out = rounded(rounded(p, dtype) @ values / total, dtype)
        ctx.save_for_backward(q, k, v, bias, out, largest + total.log())
        ctx.dtype = dtype
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # type: ignore[override]
        q, k, v, bias, out, lse = ctx.saved_tensors
        group = q.shape[1] // k.shape[1]
        keys, values = (x.repeat_interleave(group, dim=1) for x in (k, v))
        scale = 1 / math.sqrt(q.shape[-1])
        dout = rounded(dout, ctx.dtype)
        p = (scale * (q @ keys.transpose(-1, -2)) + bias - lse).exp()
        dv = rounded(p, ctx.dtype).transpose(-1, -2) @ dout
        ds = p * (dout @ values.transpose(-1, -2) - (dout * out).sum(dim=-1, keepdim=True))
        ds = rounded(ds, ctx.dtype)
        dq, dk = scale * (ds @ keys), scale * (ds.transpose(-1, -2) @ q)
        dk, dv = (x.unflatten(1, (-1, group)).sum(dim=2) for x in (dk, dv))
        return dq, dk, dv, None, None


# ---- The model -------------------------------------------------------------------------------------------------------


def parameter_shapes(m: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    c, f, hs, v = m["d_model"], m["d_ff"], m["head_dim"], m["vocab_size"]
    q, kv = m["n_heads"] * hs, m["n_kv_heads"] * hs
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, c), "model.norm.weight": (c,)}
    for number in range(m["n_layers"]):
        at = f"model.layers.{number}."
        shapes |= {at + "input_layernorm.weight": (c,), at + "self_attn.q_proj.weight": (q, c),
                   at + "self_attn.k_proj.weight": (kv, c), at + "self_attn.v_proj.weight": (kv, c),
                   at + "self_attn.o_proj.weight": (c, q), at + "post_attention_layernorm.weight": (c,),
                   at + "mlp.gate_proj.weight": (f, c), at + "mlp.up_proj.weight": (f, c),
                   at + "mlp.down_proj.weight": (c, f)}
        if m.get("qkv_bias", False):
            shapes |= {f"{at}self_attn.{letter}_proj.bias": (q if letter == "q" else kv,) for letter in "qkv"}
        if m["qk_norm"]:
            shapes |= {at + "self_attn.q_norm.weight": (hs,), at + "self_attn.k_norm.weight": (hs,)}
    if not m["tie_embeddings"]:
        shapes["lm_head.weight"] = (v, c)
    return shapes


class RoundingGpt:
    def __init__(self, config: dict[str, Any], dtype: torch.dtype, residual: torch.dtype, device: str) -> None:
        m = self.m = config["model"]
        self.dtype, self.residual, self.device = dtype, residual, device
        self.z_loss = config["training"]["z_loss"]
        weight = initial_weights(config, device)
        self.weights = {name: weight(name, shape).requires_grad_() for name, shape in parameter_shapes(m).items()}
        self.slopes = alibi_slopes(m["n_heads"]).to(device) if m["position"] == "alibi" else None
        self.frequencies = rope_frequencies(m, device)

    def store(self, x: Tensor) -> Tensor:
        return Stored.apply(x, self.dtype)  # type: ignore[return-value]

    def store_residual(self, x: Tensor) -> Tensor:
        return Stored.apply(x, self.residual)  # type: ignore[return-value]

    def copy(self, name: str) -> Tensor:
        return Copied.apply(self.weights[name], self.dtype)  # type: ignore[return-value]

    def norm(self, x: Tensor, name: str) -> Tensor:
        rstd = (x.square().mean(dim=-1, keepdim=True) + self.m["norm_eps"]).rsqrt()
        return self.store(x * rstd * self.copy(name))

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        angles = positions[:, None, :, None] * self.frequencies
        cosine, sine = angles.cos().float(), angles.sin().float()
        first, second = x.chunk(2, dim=-1)
        return self.store(torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1))

    def bias(self, documents: Tensor) -> Tensor:
        place = torch.arange(documents.shape[1], device=self.device)
        distance = place[:, None] - place[None, :]
        sees = (distance >= 0) & (documents[:, None, :, None] == documents[:, None, None, :])
        alibi = 0.0 if self.slopes is None else -self.slopes[:, None, None] * distance
        return torch.where(sees, alibi, -math.inf)

    def attention(self, x: Tensor, at: str, bias: Tensor, positions: Tensor) -> Tensor:
        """Returns the heads of all tokens, before the output projection; x (B, T, C)."""
        rows, context, _ = x.shape

        def project(letter: str) -> Tensor:
            y = x @ self.copy(f"{at}self_attn.{letter}_proj.weight").T
            if self.m.get("qkv_bias", False):
                y = y + self.copy(f"{at}self_attn.{letter}_proj.bias")
            return self.store(y)

        q, k, v = (project(letter).view(rows, context, -1, self.m["head_dim"]).transpose(1, 2) for letter in "qkv")
        if self.m["qk_norm"]:
            q, k = self.norm(q, at + "self_attn.q_norm.weight"), self.norm(k, at + "self_attn.k_norm.weight")
        if self.m["position"] == "rope":
            q, k = self.rotate(q, positions), self.rotate(k, positions)
        y = Attention.apply(q, k, v, bias, self.dtype)
        return y.transpose(1, 2).reshape(rows, context, -1)  # type: ignore[union-attr]

    def layer(self, x: Tensor, at: str, bias: Tensor, positions: Tensor) -> Tensor:
        y = self.attention(self.norm(x, at + "input_layernorm.weight"), at, bias, positions)
        x = self.store_residual(y @ self.copy(at + "self_attn.o_proj.weight").T + x)
        y = self.norm(x, at + "post_attention_layernorm.weight")
        gate, up = (self.store(y @ self.copy(f"{at}mlp.{name}_proj.weight").T) for name in ("gate", "up"))
        return self.store_residual(self.store(F.silu(gate) * up) @ self.copy(at + "mlp.down_proj.weight").T + x)

    def losses(self, tokens: Tensor, targets: Tensor, documents: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the sum of token losses, and the objective that is differentiated."""
        place = torch.arange(documents.shape[1], device=self.device)
        is_first = torch.diff(documents, dim=1, prepend=documents[:, :1] - 1) != 0
        positions = place - torch.where(is_first, place, 0).cummax(dim=1).values
        bias = self.bias(documents)
        x = self.store_residual(self.copy("model.embed_tokens.weight")[tokens])
        for number in range(self.m["n_layers"]):
            x = self.layer(x, f"model.layers.{number}.", bias, positions)
        head = "model.embed_tokens.weight" if self.m["tie_embeddings"] else "lm_head.weight"
        logits = self.store(self.norm(x, "model.norm.weight") @ self.copy(head).T)
        counts = targets != IGNORED
        lse = torch.logsumexp(logits, dim=-1)
        losses = (lse - logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0])[counts]
        return losses.sum(dtype=torch.float64), losses.sum() + self.z_loss * lse[counts].square().sum()


# ---- The loop --------------------------------------------------------------------------------------------------------


class AdamW:
    """The twin of kernels/adamw.h and of decide_step() in kernels/core/step.h."""

    def __init__(self, weights: list[Tensor], config: dict[str, Any], has_dynamic_scale: bool) -> None:
        self.weights, self.o, self.has_dynamic_scale = weights, config["optimizer"], has_dynamic_scale
        self.m, self.v = ([torch.zeros_like(w) for w in weights] for _ in range(2))
        self.updates = self.good_steps = 0
        self.scale = 1.0

    @torch.no_grad()
    def step(self, loss_sum: float, targets: int, lr: float) -> tuple[float, bool]:
        """Returns the norm of the gradient of the mean loss, and whether the update was skipped."""
        squares = sum(float(w.grad.double().square().sum()) for w in self.weights)  # type: ignore[union-attr]
        norm = math.sqrt(squares) / (self.scale * targets) if targets else 0.0
        is_finite = math.isfinite(loss_sum) and math.isfinite(squares)
        if not is_finite or targets == 0:
            if not is_finite:
                self.good_steps = 0
                if self.has_dynamic_scale and self.scale > LOSS_SCALE_MIN:
                    self.scale *= 0.5
            return norm, True
        o = self.o
        clip = o["grad_clip"] / norm if 0 < o["grad_clip"] < norm else 1.0
        factor = clip / (self.scale * targets)
        self.updates += 1
        bias1, bias2 = 1 - o["beta1"] ** self.updates, 1 - o["beta2"] ** self.updates
        for w, m, v in zip(self.weights, self.m, self.v):
            gradient = w.grad * factor  # type: ignore[operator]
            m.mul_(o["beta1"]).add_(gradient, alpha=1 - o["beta1"])
            v.mul_(o["beta2"]).addcmul_(gradient, gradient, value=1 - o["beta2"])
            update = (m / bias1) / ((v / bias2).sqrt() + o["eps"])
            w.sub_(lr * (update + (o["weight_decay"] if w.dim() == 2 else 0.0) * w))
        self.good_steps += 1
        if self.has_dynamic_scale and self.good_steps >= GROWTH_INTERVAL:
            self.scale, self.good_steps = min(2 * self.scale, LOSS_SCALE_MAX), 0
        return norm, False


def logged(value: float) -> float | str:
    return value if math.isfinite(value) else "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


class RoundingLoop:
    def __init__(self, config: dict[str, Any], args: argparse.Namespace) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False
        dtype = DTYPES[args.dtype]
        self.config = config
        self.model = RoundingGpt(config, dtype, torch.float32 if args.residual == "fp32" else dtype, args.device)
        self.weights = list(self.model.weights.values())
        self.optimizer = AdamW(self.weights, config, args.dtype == "fp16")
        self.rows = Rows(config, args.device)
        self.micro_batch = config["training"]["micro_batch_size"]
        self.micro_steps = config["training"]["batch_tokens"] // (self.micro_batch * self.rows.context)

    def step(self, number: int) -> dict[str, Any]:
        """Takes step `number`, from 1, and returns its line of the log."""
        loss_sum, targets, scale = 0.0, 0, self.optimizer.scale
        for w in self.weights:
            w.grad = torch.zeros_like(w)
        for micro_step in range(self.micro_steps):
            batch = self.rows.batch(((number - 1) * self.micro_steps + micro_step) * self.micro_batch, self.micro_batch)
            losses, objective = self.model.losses(*batch)
            (objective * scale).backward()
            loss_sum += losses.item()
            targets += int((batch[1] != IGNORED).sum())
        norm, is_skipped = self.optimizer.step(loss_sum, targets, learning_rate(self.config, number))
        return {"loss": loss_sum / targets if targets else 0.0, "grad_norm": norm,
                "loss_scale": self.optimizer.scale, "skipped": is_skipped}


class CompiledLoop:
    def __init__(self, config: dict[str, Any], args: argparse.Namespace) -> None:
        from torch_step import Trainer  # needs FlexAttention

        if args.dtype != "bf16" or args.device != "cuda":
            fail("--compiled is a loop in bf16 on a GPU: use --dtype bf16 --device cuda")
        if config["training"]["z_loss"] != 0:
            fail("training.z_loss is not part of --compiled: set it to 0")
        torch.set_float32_matmul_precision("high")
        self.config = config
        self.trainer = Trainer({"config": config, "device": "cuda", "attention": "flex", "loss": "full",
                                "precision": "autocast" if args.residual == "fp32" else "master",
                                "compile": "default"})

    def step(self, number: int) -> dict[str, Any]:
        for group in self.trainer.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, number)
        loss, norm = self.trainer.step(number - 1)
        return {"loss": loss.item(), "grad_norm": norm.item(), "loss_scale": 1.0, "skipped": False}


def train(args: argparse.Namespace) -> None:
    config = json.loads((args.run / "config.json").read_text())
    training = config["training"]
    loop = (CompiledLoop if args.compiled else RoundingLoop)(config, args)
    batch_tokens = training["batch_tokens"]
    steps = min(args.steps or training["steps"], training["steps"])
    args.output.mkdir(parents=True, exist_ok=True)
    with open(args.output / "log.jsonl", "w") as log:
        for step in range(1, steps + 1):
            begin = time.perf_counter()
            report = loop.step(step)
            seconds, lr = time.perf_counter() - begin, learning_rate(config, step)
            log.write(json.dumps({
                "step": step, "loss": logged(report["loss"]), "val_loss": None,
                "grad_norm": logged(report["grad_norm"]), "lr": lr, "tokens": step * batch_tokens,
                "tokens_per_second": batch_tokens / seconds, "mfu": None,
                "memory_bytes": torch.cuda.max_memory_allocated() if args.device == "cuda" else 0,
                "step_seconds": seconds, "data_wait_seconds": 0.0, "loss_scale": report["loss_scale"],
                "skipped": report["skipped"]}, separators=(",", ":")) + "\n")
            log.flush()
            if step % args.print_every == 0 or step == steps:
                print(f"step {step:6}/{steps} | loss {report['loss']:.4f} | norm {report['grad_norm']:.2f} | "
                      f"lr {lr:.1e} | {batch_tokens / seconds:.0f} tok/s", flush=True)


# ---- The gap ---------------------------------------------------------------------------------------------------------


def read_losses(folder: pathlib.Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: float(line["loss"]) for line in lines}


class Gap(NamedTuple):
    """The gaps of one seed. Losses are means over the steps, gaps of |loss - the reference's|."""
    name: str
    reference_loss: float
    run_loss: float
    peer_loss: float
    run: float
    peer: float


Triple = Tuple[pathlib.Path, pathlib.Path, pathlib.Path]  # reference, run, peer


def gap_between(name: str, folders: Triple, last: int) -> tuple[Gap, list[int]]:
    """Returns the gap, and the steps that it covers."""
    logs = [read_losses(folder) for folder in folders]
    common = sorted(set.intersection(*(set(log) for log in logs)))[-last:]
    if len(common) < last:
        fail(f"the logs of {', '.join(map(str, folders))} share {len(common)} steps, --last wants {last}")
    reference, run, peer = ([log[step] for step in common] for log in logs)
    ours, theirs = (statistics.fmean(abs(x - y) for x, y in zip(other, reference)) for other in (run, peer))
    return Gap(name, *map(statistics.fmean, (reference, run, peer)), ours, theirs), common


def ratio_of(run: float, peer: float) -> float:
    return run / peer if peer > 0 else math.inf if run > 0 else 1.0


def print_gaps(title: str, gaps: list[Gap], steps: list[int], limit: float) -> bool:
    """Prints a table with a line for each seed; returns whether the ratio of the mean gaps is within the limit (NaN is
    not)."""
    width = max(8, *(len(gap.name) for gap in gaps))
    print(f"{title}: steps {steps[0]} to {steps[-1]}\n{'':{width}} {'loss fp32':>10} {'Ingot':>10} {'loop':>10} "
          f"{'gap Ingot':>10} {'loop':>10} {'ratio':>7}")
    for gap in gaps:
        print(f"{gap.name:{width}} {gap.reference_loss:10.5f} {gap.run_loss:10.5f} {gap.peer_loss:10.5f} "
              f"{gap.run:10.3e} {gap.peer:10.3e} {ratio_of(gap.run, gap.peer):7.3f}")
    ours, theirs = statistics.fmean(gap.run for gap in gaps), statistics.fmean(gap.peer for gap in gaps)
    ratio = ratio_of(ours, theirs)
    print(f"{'mean':{width}} {'':32} {ours:10.3e} {theirs:10.3e} {ratio:7.3f}   limit {limit}", flush=True)
    return ratio <= limit


def run_ingot(args: argparse.Namespace, seed: int, dtype: str, folder: pathlib.Path) -> None:
    """Runs the config in a dtype, in `folder`, and reads the log; the checkpoints stay."""
    sets = [*args.set, f"seed={seed}", f"training.precision={dtype}", f"run_dir={folder}"]
    command = [str(args.train), "--config", str(args.config), "--device", args.device]
    for assignment in sets:
        command += ["--set", assignment]
    code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if code != 0:
        fail(f"{shlex.join(command)} ended with exit code {code}: run it alone to see why")


def gap_of_seeds(args: argparse.Namespace) -> int:
    for seed in args.seeds:
        folder = args.output / f"seed-{seed}"
        if folder.exists() and any(folder.iterdir()):
            fail(f"{folder} holds an earlier comparison: name another --output, or remove it")
    triples: dict[str, list[Triple]] = {dtype: [] for dtype in args.dtype}
    for seed in args.seeds:
        folder = (args.output / f"seed-{seed}").resolve()
        reference = folder / "reference"
        print(f"seed {seed}: ./train in fp32", flush=True)
        run_ingot(args, seed, "fp32", reference)
        for dtype in args.dtype:
            run, peer = folder / dtype, folder / f"loop-{dtype}"
            print(f"seed {seed}: ./train and the loop in {dtype}", flush=True)
            run_ingot(args, seed, dtype, run)
            train(argparse.Namespace(run=run, dtype=dtype, residual=args.residual, compiled=False, device=args.device,
                                     steps=None, print_every=sys.maxsize, output=peer))
            triples[dtype].append((reference, run, peer))
    is_within = True
    for dtype in args.dtype:
        found = [gap_between(str(seed), triple, args.last) for seed, triple in zip(args.seeds, triples[dtype])]
        is_within &= print_gaps(dtype, [gap for gap, _ in found], found[0][1], args.limit)
    return 0 if is_within else 1


def gap_of_folders(args: argparse.Namespace) -> int:
    if not len(args.reference) == len(args.run) == len(args.peer):
        fail(f"--reference names {len(args.reference)} runs, --run {len(args.run)} and --peer {len(args.peer)}: "
             "give one of each for every seed, in the same order")
    found = [gap_between(str(triple[1]), triple, args.last) for triple in zip(args.reference, args.run, args.peer)]
    return 0 if print_gaps("gap", [gap for gap, _ in found], found[0][1], args.limit) else 1


def gap(args: argparse.Namespace) -> int:
    folders, whole = (args.reference, args.run, args.peer), (args.config, args.output)
    if args.last < 1:
        fail(f"--last {args.last}: it must be at least 1")
    if all(folders) and not any(whole):
        return gap_of_folders(args)
    if all(whole) and not any(folders):
        return gap_of_seeds(args)
    fail("gap takes --config and --output, to train, or --reference, --run and --peer, of runs that are there")


def seeds(text: str) -> list[int]:
    values = [int(word) for word in text.split(",")]
    if len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"{text} names a seed twice")
    return values


def dtypes(text: str) -> list[str]:
    values = text.split(",")
    if len(set(values)) < len(values) or not set(values) <= set(DTYPES):
        raise argparse.ArgumentTypeError(f"{text}: use some of {', '.join(DTYPES)}, separated by commas, each once")
    return values


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="train|gap")
    loop = commands.add_parser("train", help="repeat a run of Ingot's in PyTorch")
    loop.add_argument("--run", type=pathlib.Path, required=True, metavar="RUN", help="a run folder of Ingot's")
    loop.add_argument("--dtype", choices=list(DTYPES), required=True, help="what the loop rounds to")
    loop.add_argument("--residual", choices=["same", "fp32"], default="same", help="type of the residual stream")
    loop.add_argument("--compiled", action="store_true", help="the loop of bench_torch.py instead: bf16 on a GPU")
    loop.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    loop.add_argument("--steps", type=int, help="stop after so many (default: those of the run)")
    loop.add_argument("--print-every", type=int, default=10, metavar="N")
    loop.add_argument("--output", type=pathlib.Path, required=True, metavar="DIR", help="for log.jsonl")
    compare = commands.add_parser("gap", help="compare the gaps of two runs to a third, over one or several seeds")
    for name, text in (("reference", "runs in fp32"), ("run", "the same in 16 bits"), ("peer", "what `train` wrote")):
        compare.add_argument(f"--{name}", type=pathlib.Path, nargs="+", metavar="RUN", help=text)
    compare.add_argument("--config", type=pathlib.Path, metavar="FILE", help="train all of them, from this config")
    compare.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a field of it")
    compare.add_argument("--seeds", type=seeds, default=[1337], metavar="N,N...", help="of the runs (default: 1337)")
    compare.add_argument("--dtype", type=dtypes, default=["bf16"], metavar="D,D...",
                         help="what is compared with fp32 (default: bf16)")
    compare.add_argument("--residual", choices=["same", "fp32"], default="same", help="of the loop, as in train")
    compare.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="of all runs (default: cuda)")
    compare.add_argument("--train", type=pathlib.Path, default=ROOT / "train", metavar="FILE", help="Ingot (./train)")
    compare.add_argument("--output", type=pathlib.Path, metavar="DIR", help="for the runs")
    compare.add_argument("--last", type=int, default=50, metavar="N", help="steps (default: 50)")
    compare.add_argument("--limit", type=float, default=1.5, metavar="X", help="of the ratio (default: 1.5)")
    args = parser.parse_args()
    if args.command == "gap":
        return gap(args)
    train(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
