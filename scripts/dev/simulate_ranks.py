#!/usr/bin/env python3
"""Predict the cost of a training step on many GPUs from measurements on one or two.

    scripts/dev/simulate_ranks.py                                     the shapes and the machine that are built in
    scripts/dev/simulate_ranks.py --step step.json [--ranks ranks.json] [OPTION]...

step.json is what `./bench step --json` writes on one GPU: its config, time of a step and its parts. ranks.json is what
`./bench ranks --json` writes on the GPUs of one host: the collectives of each size of bucket, in place of those that
are built in. For as many ranks as were measured their time is interpolated; for others on one host the best measured
bus bandwidth is that of a ring. Its step is compared with the simulated one, if the config of step.json is that of the
measurement.

What is simulated is Ingot's step with a sharded optimizer (ZeRO-1), on a compute stream and a collective stream:

    forward of the first micro-step     the bf16 all-gathers of embedding, layers and head run ahead of it in this
                                        order; each part of the model waits for its own
    micro-steps between                 without communication
    backward of the last micro-step     the fp32 gradients of head, layers and embedding are reduce-scattered one after
                                        the other, each from when it is complete
    update                              when all sums are there: one small all-reduce, then each GPU updates its shard

A part's compute time is its share of the GEMM and attention FLOPs; backward takes twice forward's time, three times if
blocks are computed again. A ring over R GPUs takes base + hops * latency + (R - 1) / R * bytes / bandwidth. While a
collective of NCCL between hosts runs, compute loses the share --slowdown of its speed. Within a host the copy engines
move the data, which costs compute nothing, and a kernel adds the gradients, at --sum-rate, while which compute loses
the share --sum-share. Each bucket has a kernel for its part of the gradient's norm (--norm). The slowest of R GPUs sets
the pace: their speeds are normal with a deviation of --spread, the expected maximum is Blom's (1958), and in proportion
to it a GPU is late with a step for reasons that do not depend on the step's length, of two GPUs by --late.

The collectives, --sum-rate, --norm and --late were measured on two H200s (docs/lab/several-gpus.md); --sum-share was
chosen so that the step of the 1.3B class on two GPUs is the measured one. All else, and all that is said of more than
two GPUs, is a prediction. Efficiency is the speed of a GPU among R over that of one alone with as many micro-steps; it
may exceed 1, since the update is divided.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import re
import statistics
import sys
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn, Optional

ROOT = pathlib.Path(__file__).resolve().parents[2]
ALIGNMENT = 64  # ParameterTable::kAlignment, in elements
GIB = 2.0**30
RANKS = (2, 8, 64, 1024)
MOST_RANKS = 16384
UPDATE_PARTS = ("adamw", "gradient norm")  # as src/bench/step_parts.cpp names them
SEVEN_B_OTHER_GIB = 14.65  # activations, logits and workspace of 8 rows with blocks computed again, by --dry-run
# Bytes and microseconds of a bucket's collective by the copy engines of two H200s: docs/lab/several-gpus.md.
MEASURED_RANKS = 2
MEASURED = {"reduce_scatter": ((25.2e6, 76), (154.5e6, 425), (180.4e6, 528), (412.1e6, 1202)),
            "all_gather": ((12.6e6, 42), (77.3e6, 127), (90.2e6, 144), (206.1e6, 371))}
# There a kernel took 45 us, beside GEMMs, for a bucket of 25.2 MB: it reads two halves and writes one.
SUM_RATE = 1.5 * 25.2e6 / 45e-6
# Llama 3 on 16,384 H100s: 419 unexpected interruptions in 54 days (Grattafiori et al. 2024, section 3.3.4).
GPU_HOURS_PER_FAILURE = 54 * 24 * 16384 / 419


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


# ---- The network -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """Bandwidths in bytes per second of one GPU, latencies in seconds."""
    gpus_per_host: int
    nvlink: float
    nic: float
    base_latency: float
    hop_latency: float
    host_latency: float
    tree_base: float
    tree_hop: float
    tree_host: float
    # (bytes, seconds) of each collective between so many ranks of one host, ascending, where they were measured.
    measured_ranks: int = 0
    measured: tuple[tuple[str, tuple[tuple[float, float], ...]], ...] = ()

    def hosts(self, ranks: int) -> int:
        return -(-ranks // self.gpus_per_host)

    def ring(self, collective: str, size: float, ranks: int) -> float:
        """Returns the seconds of a reduce_scatter or an all_gather of a buffer of so many bytes."""
        if ranks == 1:
            return 0.0
        hosts = self.hosts(ranks)
        points = dict(self.measured).get(collective, ()) if hosts == 1 else ()
        if points and ranks == self.measured_ranks:
            return interpolate(points, size)
        nvlink = max((bus_bandwidth(b, s, self.measured_ranks) for b, s in points), default=self.nvlink)
        # Between hosts every network adapter carries a ring of its own, so that together they carry what NVLink does
        # within a host.
        bandwidth = nvlink if hosts == 1 else min(nvlink, self.nic * min(ranks, self.gpus_per_host))
        hops = ranks - 1
        return self.base_latency + (hops - (hosts - 1)) * self.hop_latency + (hosts - 1) * self.host_latency + \
            hops / ranks * size / bandwidth

    def small_all_reduce(self, ranks: int) -> float:
        """Returns the seconds of an all_reduce of a few numbers by a tree, along the GPUs of a host and between
        hosts."""
        if ranks == 1:
            return 0.0
        in_host = min(ranks, self.gpus_per_host) - 1
        return self.tree_base + 2 * (in_host * self.tree_hop + math.ceil(math.log2(self.hosts(ranks))) * self.tree_host)


def bus_bandwidth(size: float, seconds: float, ranks: int) -> float:
    return (ranks - 1) / ranks * size / seconds


def interpolate(points: tuple[tuple[float, float], ...], size: float) -> float:
    """Between two sizes linearly; below the smallest its time; above the largest at its rate."""
    if size <= points[0][0]:
        return points[0][1]
    for (a, x), (b, y) in zip(points, points[1:]):
        if size <= b:
            return x + (y - x) * (size - a) / (b - a)
    return points[-1][1] * size / points[-1][0]


# ---- The model -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A model, and the seconds of its parts on one GPU for one micro-step."""
    name: str
    buckets: tuple[int, ...]  # parameters of the embedding, of each layer, of what comes after them
    context: int
    rows: int  # of a micro-step
    batch_tokens: int  # of a step, where gradients are accumulated
    forward: tuple[float, ...]  # of each bucket
    backward: tuple[float, ...]
    update: float  # of all parameters: norm of the gradients, AdamW
    other_bytes: Optional[float]  # on each GPU beside weights, gradients and optimizer

    def scaled(self, rows: int) -> "Shape":
        """Returns the same with another micro-batch, the time being proportional."""
        factor = rows / self.rows
        return replace(self, rows=rows, forward=tuple(factor * x for x in self.forward),
                       backward=tuple(factor * x for x in self.backward),
                       other_bytes=None if self.other_bytes is None else factor * self.other_bytes)

    def padded(self, ranks: int) -> list[int]:
        block = ALIGNMENT * ranks
        return [-(-size // block) * block for size in self.buckets]

    def bytes_per_gpu(self, ranks: int) -> float:
        """bf16 weights, fp32 gradients, a shard of the fp32 masters and both moments, and the rest if it is known."""
        return sum(self.padded(ranks)) * (2 + 4 + 12 / ranks) + (self.other_bytes or 0)


def read_config(path: pathlib.Path) -> dict[str, Any]:
    text = re.sub(r'("(?:\\.|[^"\\])*")|//[^\n]*', lambda match: match.group(1) or "", path.read_text())
    return json.loads(text)


def bucket_sizes(m: dict[str, Any]) -> tuple[int, ...]:
    """The table of src/model/parameters.cpp: the vocabulary is padded to 128, norms count, biases too."""
    c, f = m["d_model"], m.get("d_ff") or -(-m["d_model"] * 8 // 3 // 64) * 64
    heads, kv = m["n_heads"], m.get("n_kv_heads") or m["n_heads"]
    hs = m.get("head_dim") or c // heads
    width = (heads + 2 * kv) * hs
    layer = c * width + heads * hs * c + 3 * c * f + 2 * c
    layer += (width if m.get("qkv_bias") else 0) + (2 * hs if m.get("qk_norm") else 0)
    vocabulary = -(-m["vocab_size"] // 128) * 128 * c
    return (vocabulary, *[layer] * m["n_layers"], c + (0 if m.get("tie_embeddings", True) else vocabulary))


def parts_of_flops(m: dict[str, Any], pairs_per_token: float) -> tuple[float, float]:
    """Returns the forward FLOPs per token of a layer and of the head, and attention's, 4 per pair and channel of q."""
    sizes = bucket_sizes(m)
    heads = m["n_heads"]
    q = heads * (m.get("head_dim") or m["d_model"] // heads)
    return 2.0 * sizes[1] + 4.0 * pairs_per_token * q, 2.0 * m["vocab_size"] * m["d_model"]


def make_shape(name: str, config: dict[str, Any], rows: int, micro_step_seconds: float, update: float,
               pairs_per_token: float, batch_tokens: int, other_bytes: Optional[float]) -> Shape:
    """Divides the time of a micro-step between the parts of the model. The embedding, a lookup, counts nothing."""
    m = config["model"]
    layers = m["n_layers"]
    layer, head = parts_of_flops(m, pairs_per_token)
    # Only layers are computed again.
    repeats = 1 if config.get("training", {}).get("recompute", "none") == "block" else 0
    unit = micro_step_seconds / (layers * layer * (3 + repeats) + head * 3)
    forward = [0.0] + [layer * unit] * layers + [head * unit]
    backward = [0.0] + [layer * unit * (2 + repeats)] * layers + [head * unit * 2]
    return Shape(name, bucket_sizes(m), m["context_length"], rows, batch_tokens, tuple(forward), tuple(backward),
                 update, other_bytes)


def built_in_shapes() -> list[Shape]:
    """One H200 (700 W, CUDA 13.0), 2026-11-30: 726k and 78.1k tokens/s, 1.0 and 10.0 ms of norm and AdamW; memory by
    the plan of `./train --dry-run --device cuda`. 7B has never run: it gets the FLOP rate of the 1.3B class."""
    shapes = []
    rate = update_rate = 0.0
    for path, rows, tokens_per_second, update, plan_gib in (("bench-gpu-124m", 64, 726e3, 1.0e-3, 19.95),
                                                            ("bench-gpu-1.3b", 8, 78.1e3, 10.0e-3, 43.28)):
        config = read_config(ROOT / f"configs/{path}.json")
        m = config["model"]
        tokens, pairs = rows * m["context_length"], m["context_length"] / 8  # documents of a quarter of the context
        sizes = bucket_sizes(m)
        seconds = tokens / tokens_per_second - update
        shapes.append(make_shape(config["name"], config, rows, seconds, update, pairs, 524288,
                                 plan_gib * GIB - 18 * sum(sizes)))
        layer, head = parts_of_flops(m, pairs)
        rate = 3 * (m["n_layers"] * layer + head) * tokens / seconds
        update_rate = sum(sizes) / update
    config = read_config(ROOT / "configs/gpt-7b-8gpu.json")
    m, rows = config["model"], 8
    # Real documents are shorter than this context: a quarter of it, as above.
    layer, head = parts_of_flops(m, m["context_length"] / 8)
    seconds = rows * m["context_length"] * (4 * m["n_layers"] * layer + 3 * head) / rate
    sizes = bucket_sizes(m)
    shapes.append(make_shape(config["name"], config, rows, seconds, sum(sizes) / update_rate, m["context_length"] / 8,
                             config["training"]["batch_tokens"], SEVEN_B_OTHER_GIB * GIB))
    return shapes


def shape_of_bench(path: pathlib.Path, batch_tokens: int) -> Shape:
    """Reads what `./bench step --json` wrote."""
    try:
        result = json.loads(path.read_text())
        config, training = result["config"], result["config"]["training"]
        rows, context = training["micro_batch_size"], config["model"]["context_length"]
        micro_steps = training["batch_tokens"] // (rows * context)
        seconds = {part["part"]: part["seconds"] for part in result["parts"]}
        update = sum(seconds[part] for part in UPDATE_PARTS)
        sizes = bucket_sizes(config["model"])
        return make_shape(config["name"], config, rows, (result["step_seconds"] - update) / micro_steps, update,
                          result["visible_pairs_per_token"], batch_tokens, result["memory_bytes"] - 18 * sum(sizes))
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"{path} is not what ./bench step --json writes with its table of parts: {type(error).__name__} {error}")


def measured_collectives(path: pathlib.Path) -> dict[str, Any]:
    """Reads ranks.json; returns the fields of Network that it replaces."""
    try:
        result = json.loads(path.read_text())
        ranks = int(result["ranks"])
        measured = []
        for name in ("reduce_scatter", "all_gather"):
            points = [(float(entry[f"{name}_bytes"]), float(entry[f"{name}_seconds"]))
                      for entry in result["collectives"]]
            if ranks < 2 or not points or not all(size > 0 and seconds > 0 for size, seconds in points):
                raise ValueError(f"{name} between {ranks} ranks: {points}")
            measured.append((name, tuple(sorted(points))))
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"{path} is not what ./bench ranks --json writes: {type(error).__name__} {error}")
    return {"measured_ranks": ranks, "measured": tuple(measured)}


def compare(path: pathlib.Path, shape: Shape, costs: Costs) -> None:
    """Prints the measured step beside the simulated one."""
    result = json.loads(path.read_text())
    ranks, tokens = result["ranks"], shape.rows * shape.context
    micro_steps, rest = divmod(result["batch_tokens"], ranks * tokens)
    if micro_steps == 0 or rest:
        return
    seconds, apart = result["step_seconds"], result["step_seconds_without_collectives"]
    step = simulate(shape, ranks, micro_steps, costs)
    print(f"  {ranks} GPUs, {micro_steps} x {shape.rows} rows: measured {1e3 * seconds:.2f} ms a step, "
          f"{1e3 * (seconds - apart):.2f} ms of it exposed; simulated {1e3 * step.seconds:.2f} ms, "
          f"{1e3 * step.exposed:.2f} ms")


# ---- The step --------------------------------------------------------------------------------------------------------


class Phase(NamedTuple):
    seconds: float
    waits_for: Optional[int] = None  # the transfer that must be done before it


class Transfer(NamedTuple):
    seconds: float
    after: Optional[int] = None  # the phase that must be done before it


def run_streams(phases: list[Phase], transfers: list[Transfer], slowdown: float) -> float:
    """Runs two streams, each in its own order; returns when both are done. A phase loses the share `slowdown` of its
    speed while a transfer runs."""
    now, phase, transfer = 0.0, 0, 0
    left_phase = phases[0].seconds if phases else 0.0
    left_transfer = transfers[0].seconds if transfers else 0.0
    while phase < len(phases) or transfer < len(transfers):
        waits_for = phases[phase].waits_for if phase < len(phases) else None
        after = transfers[transfer].after if transfer < len(transfers) else None
        computes = phase < len(phases) and (waits_for is None or waits_for < transfer)
        moves = transfer < len(transfers) and (after is None or after < phase)
        if not computes and not moves:
            raise ValueError("the streams wait for each other")
        speed = 1 - slowdown if computes and moves else 1.0
        seconds = min([left_phase / speed] * computes + [left_transfer] * moves)
        now += seconds
        # A phase or a transfer that ends now ends exactly, whatever was rounded.
        phase_ends = computes and left_phase / speed <= seconds
        transfer_ends = moves and left_transfer <= seconds
        left_phase -= seconds * speed if computes else 0.0
        left_transfer -= seconds if moves else 0.0
        if phase_ends:
            phase += 1
            left_phase = phases[phase].seconds if phase < len(phases) else 0.0
        if transfer_ends:
            transfer += 1
            left_transfer = transfers[transfer].seconds if transfer < len(transfers) else 0.0
    return now


def expected_maximum(count: int) -> float:
    """Returns the expected maximum of so many normal numbers with mean 0 and deviation 1 (Blom 1958)."""
    return 0.0 if count == 1 else statistics.NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


@dataclass(frozen=True)
class Costs:
    network: Network
    slowdown: float  # share of its speed that compute loses beside a collective between hosts
    spread: float  # deviation of the GPUs' speeds
    sum_rate: float = math.inf  # bytes per second that a kernel reads and writes to add gradients beside GEMMs
    sum_share: float = 0.0  # of its speed that compute loses meanwhile
    norm: float = 0.0  # seconds of a bucket's kernel for the gradient's norm
    late: float = 0.0  # seconds that one of two GPUs is late with a step


class Step(NamedTuple):
    seconds: float
    exposed: float  # communication that compute waits for, or is slowed by, and the kernels that it needs
    stragglers: float
    efficiency: float


def simulate(shape: Shape, ranks: int, micro_steps: int, costs: Costs) -> Step:
    network = costs.network
    sizes = shape.padded(ranks)
    buckets = range(len(sizes))
    forward, backward = sum(shape.forward), sum(shape.backward)
    compute = micro_steps * (forward + backward)
    update = shape.update / ranks
    begin, end, small = forward, backward, 0.0
    late = 0.0
    if ranks > 1:
        in_host = network.hosts(ranks) == 1
        slowdown = 0.0 if in_host else costs.slowdown
        begin = run_streams([Phase(shape.forward[b], waits_for=b) for b in buckets],
                            [Transfer(network.ring("all_gather", 2.0 * sizes[b], ranks)) for b in buckets],
                            slowdown)
        order = [buckets[-1], *reversed(buckets[1:-1]), 0]
        end = run_streams([Phase(shape.backward[b]) for b in order],
                          [Transfer(network.ring("reduce_scatter", 4.0 * sizes[b], ranks), after=i)
                           for i, b in enumerate(order)], slowdown)
        small = network.small_all_reduce(ranks) + len(sizes) * costs.norm
        if in_host:  # of every bucket a rank reads its part on all ranks, and writes it
            small += costs.sum_share * sum(4.0 * size * (1 + 1 / ranks) / costs.sum_rate for size in sizes)
        late = costs.late * expected_maximum(ranks) / expected_maximum(2)
    exposed = begin - forward + end - backward + small
    stragglers = costs.spread * expected_maximum(ranks) * compute + late
    seconds = compute + exposed + stragglers + update
    return Step(seconds, exposed, stragglers, (compute + shape.update) / seconds)


def cheaper(costs: Costs) -> dict[str, Costs]:
    """Returns the costs without one of them, by its name."""
    n = costs.network
    return {
        "latency of the rings": replace(costs, network=replace(n, base_latency=0.0, hop_latency=0.0, host_latency=0.0)),
        "bandwidth": replace(costs, network=replace(n, nvlink=math.inf, nic=math.inf, measured=tuple(
            (name, tuple((b, s * 1e-9) for b, s in points)) for name, points in n.measured))),
        "multiprocessors that collectives take": replace(costs, slowdown=0.0, sum_share=0.0),
        "the slowest GPU": replace(costs, spread=0.0, late=0.0),
    }


def largest_cost(shape: Shape, ranks: int, micro_steps: int, costs: Costs) -> str:
    return max(cheaper(costs).items(), key=lambda item: simulate(shape, ranks, micro_steps, item[1]).efficiency)[0]


def split_batch(shape: Shape, ranks: int) -> Optional[tuple[Shape, int]]:
    """Returns the shape with the micro-batch, and how many of them a GPU takes, of a step of batch_tokens; or nothing
    where the rows do not go round."""
    rows, rest = divmod(shape.batch_tokens // shape.context, ranks)
    if rows == 0 or rest:
        return None
    micro = max(size for size in range(1, min(rows, shape.rows) + 1) if rows % size == 0)
    return shape.scaled(micro), rows // micro


def first_limit(shape: Shape, costs: Costs, threshold: float, is_fixed: bool) -> str:
    """Says what stops the shape first as the number of GPUs doubles."""
    ranks = 2
    while ranks <= MOST_RANKS:
        split = split_batch(shape, ranks) if is_fixed else (shape, 1)
        if split is None:
            return f"at {ranks} GPUs the batch: its {shape.batch_tokens // shape.context} rows do not go round"
        own, micro_steps = split
        if not simulate(own, ranks, micro_steps, costs).efficiency >= threshold:
            return f"at {ranks} GPUs the efficiency is below {threshold:g}: " + \
                largest_cost(own, ranks, micro_steps, costs)
        ranks *= 2
    return f"nothing up to {MOST_RANKS} GPUs"


# ---- The table -------------------------------------------------------------------------------------------------------


def report(shape: Shape, costs: Costs, ranks_list: list[int], threshold: float) -> None:
    parameters = sum(shape.buckets)
    print(f"\n{shape.name}: {parameters / 1e6:.0f}M parameters, {len(shape.buckets) - 2} layers of "
          f"{shape.buckets[1] / 1e6:.1f}M, micro-steps of {shape.rows} x {shape.context} tokens")
    for is_fixed in (False, True):
        what = f"{shape.batch_tokens} tokens a step" if is_fixed else "every micro-step an optimizer step"
        print(f"  {what}\n  {'GPUs':>6} {'micro-steps':>12} {'tokens a step':>14} {'step':>10} {'exposed':>9} "
              f"{'slowest':>8} {'efficiency':>10} {'GiB':>6}  largest cost")
        for ranks in ranks_list:
            split = split_batch(shape, ranks) if is_fixed else (shape, 1)
            if split is None:
                rows = shape.batch_tokens // shape.context
                print(f"  {ranks:>6} {'-':>12} {'-':>14}  its {rows} rows do not go round")
                continue
            own, micro_steps = split
            step = simulate(own, ranks, micro_steps, costs)
            tokens = ranks * micro_steps * own.rows * own.context
            print(f"  {ranks:>6} {f'{micro_steps} x {own.rows}':>12} {tokens:>14} {1e3 * step.seconds:>7.1f} ms "
                  f"{1e3 * step.exposed:>6.2f} ms {1e3 * step.stragglers:>5.1f} ms {step.efficiency:>10.3f} "
                  f"{own.bytes_per_gpu(ranks) / GIB:>6.1f}  {largest_cost(own, ranks, micro_steps, costs)}")
        print(f"  stopped first: {first_limit(shape, costs, threshold, is_fixed)}")


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to below 1")
    return value


def rank_counts(text: str) -> list[int]:
    counts = [int(item) for item in text.split(",")]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text}: GPUs are counted from 1")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", action="append", type=pathlib.Path, default=[], metavar="FILE",
                        help="of ./bench step --json; may be repeated (default: the shapes that are built in)")
    parser.add_argument("--ranks", type=pathlib.Path, metavar="FILE", help="of ./bench ranks --json")
    parser.add_argument("--gpus", type=rank_counts, default=list(RANKS), metavar="N,...",
                        help=f"(default: {','.join(map(str, RANKS))})")
    parser.add_argument("--batch-tokens", type=int, default=524288, metavar="N",
                        help="of a step of --step's shapes where gradients are accumulated (default: 524288)")
    parser.add_argument("--threshold", type=share, default=0.9, help="efficiency that counts as stopped (default: 0.9)")
    network = parser.add_argument_group("machine", "Latencies are those that NCCL's own cost model assumes for rings "
                                        "with the Simple protocol, and for trees with LL (src/graph/tuning.cc).")
    network.add_argument("--gpus-per-host", type=int, default=8, metavar="N", help="(default: 8)")
    network.add_argument("--nvlink", type=positive, default=371, metavar="GB/S",
                         help="bus bandwidth within a host of NCCL's rings between hosts (default: 371, 18 links of "
                              "20.6, which NCCL assumes for Hopper, src/graph/topo.h)")
    network.add_argument("--nic", type=positive, default=48, metavar="GB/S",
                         help="of a GPU's network adapter (default: 48 of the 50 of NDR InfiniBand, 400 Gbit/s, one "
                              "for each GPU, as in NVIDIA's DGX H100)")
    network.add_argument("--base-latency", type=positive, default=8.4, metavar="US", help="(default: 8.4)")
    network.add_argument("--hop-latency", type=positive, default=3.4, metavar="US", help="by NVLink (default: 3.4)")
    network.add_argument("--host-latency", type=positive, default=14.0, metavar="US",
                         help="from host to host (default: 14)")
    network.add_argument("--slowdown", type=share, default=0.12,
                         help="of compute while a collective between hosts runs (default: 0.12, 16 of 132 "
                              "multiprocessors)")
    network.add_argument("--sum-rate", type=positive, default=SUM_RATE / 1e9, metavar="GB/S",
                         help="at which gradients are read, added and written beside GEMMs, within a host (default: "
                              "840, measured)")
    network.add_argument("--sum-share", type=share, default=0.4,
                         help="of compute that is lost meanwhile (default: 0.4, calibrated)")
    network.add_argument("--norm", type=positive, default=9.0, metavar="US",
                         help="of each bucket's kernel for the gradient's norm (default: 9, measured)")
    network.add_argument("--late", type=positive, default=2.0, metavar="MS",
                         help="that one of two GPUs is late with a step (default: 2; in a trace 1 to 3)")
    network.add_argument("--spread", type=share, default=0.005,
                         help="deviation of the GPUs' speeds (default: 0.005, an assumption)")
    args = parser.parse_args()
    if args.gpus_per_host < 1 or args.batch_tokens < 1:
        fail("--gpus-per-host and --batch-tokens must be at least 1")
    net = Network(args.gpus_per_host, args.nvlink * 1e9, args.nic * 1e9, args.base_latency * 1e-6,
                  args.hop_latency * 1e-6, args.host_latency * 1e-6, tree_base=6.8e-6, tree_hop=0.6e-6,
                  tree_host=5.0e-6)
    if args.ranks is not None:
        net = replace(net, **measured_collectives(args.ranks))
    else:
        net = replace(net, measured_ranks=MEASURED_RANKS, measured=tuple(
            (name, tuple((size, 1e-6 * us) for size, us in points)) for name, points in MEASURED.items()))
    costs = Costs(net, args.slowdown, args.spread, args.sum_rate * 1e9, args.sum_share, args.norm * 1e-6,
                  args.late * 1e-3)
    shapes = [shape_of_bench(path, args.batch_tokens) for path in args.step] or built_in_shapes()
    print(f"hosts of {args.gpus_per_host} GPUs\n"
          f"within one: collectives as measured between {net.measured_ranks} GPUs "
          f"({args.ranks or 'docs/lab/several-gpus.md'}); gradients are added at {args.sum_rate:g} GB/s, while which "
          f"compute loses {100 * args.sum_share:g}%\n"
          f"between hosts: NVLink {args.nvlink:g}, network {args.nic:g} GB/s a GPU; compute loses "
          f"{100 * args.slowdown:g}% beside a collective; latency {args.base_latency:g} + {args.hop_latency:g} a hop, "
          f"{args.host_latency:g} us from host to host\n"
          f"everywhere: a norm takes {args.norm:g} us a bucket; GPUs differ by {100 * args.spread:g}%, and one of two "
          f"is late by {args.late:g} ms")
    for shape in shapes:
        report(shape, costs, args.gpus, args.threshold)
        if args.ranks is not None:
            compare(args.ranks, shape, costs)
    print("\na failure of a GPU or host, at the rate of Llama 3's run: " + ", ".join(
        f"every {GPU_HOURS_PER_FAILURE / ranks:.0f} h with {ranks} GPUs" for ranks in args.gpus))


if __name__ == "__main__":
    main()
