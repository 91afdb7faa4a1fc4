#!/usr/bin/env python3
"""Time PyTorch's training step on the GPUs of one machine: how much of a GPU's speed is left when they train together.

    python3 scripts/peers/bench_torch_ranks.py --make-data data/random --output DIR [OPTION]...

The model, masks, rows and the step are those of bench_torch.py (torch.compile in bf16, FlexAttention, fused AdamW,
clipping). They run in four ways, one process per GPU:

    one     the first GPU alone, the others idle
    alone   every GPU alone, all at the same time: their mean is what the ratios divide by
    ddp     DistributedDataParallel, fp32 gradients; no_sync() in all micro-steps but the last
    fsdp2   fully_shard of every layer, bf16 weights, fp32 gradients; no gradient sync in all micro-steps but the last

each with one micro-step an optimizer step and with as many as give --step-tokens tokens a step over all GPUs. Alone a
GPU takes as many micro-steps as it takes together with the others, so that the ratio shows what being together costs.

A config's processes are started once, and compile once. Then the ways take turns, since a card at its power limit
drifts: --load-seconds of load first, then --rounds times each way for --seconds, the first --settle seconds left out.
The ratio is the median over the rounds; clock and watts of each GPU are printed. All ways begin at Ingot's initial
weights, and the comparison is refused if the losses of their first steps differ.

Run it with the Python that has PyTorch 2.6 or later; NCCL_* variables pass through. `--device cpu` runs all of it with
gloo, eagerly and in fp32, to try the script: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Iterator

from torch_twin import fail
from torch_rows import Rows
from bench_torch import make_data
from bench_torch_gpu import FIRST_TOLERANCE, PEAKS, Monitor, driver_version, flops_per_token, read_config

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = ["configs/bench-gpu-124m.json", "configs/bench-gpu-1.3b.json"]
WAYS = ["one", "alone", "ddp", "fsdp2"]


def count_gpus() -> int:
    # Another process asks, so that this one stays off the GPUs.
    result = subprocess.run([sys.executable, "-c", "import torch; print(torch.cuda.device_count())"],
                            capture_output=True, text=True)
    return int(result.stdout) if result.returncode == 0 else 0


class Comparison:
    """All measurements of one config."""

    def __init__(self, args: argparse.Namespace, path: pathlib.Path, cache: pathlib.Path) -> None:
        self.args, self.output, self.cache = args, args.output.resolve(), cache
        sets = [*args.set, "data.shuffle=false"]
        if args.make_data is not None:
            config = read_config(path, sets)
            shard = make_data(args.make_data.resolve(), config, args.documents)
            sets += [f"data.train={json.dumps([str(shard)])}", f"data.eot_token={config['model']['vocab_size'] - 1}",
                     "data.eot=end"]
        self.config = read_config(path, sets)
        self.micro_tokens = self.config["training"]["micro_batch_size"] * self.config["model"]["context_length"]
        many = args.step_tokens // (self.micro_tokens * args.gpus)
        if many * self.micro_tokens * args.gpus != args.step_tokens:
            fail(f"--step-tokens {args.step_tokens} is no multiple of {args.gpus} GPUs x {self.micro_tokens} tokens a "
                 "micro-step")
        self.micro_steps = sorted({1, many})
        self.flops = flops_per_token(self.config, Rows(self.config), with_attention=True)

    def phases(self) -> list[dict[str, Any]]:
        """The first one is load."""
        args = self.args
        load = {"way": "alone", "micro_steps": 1, "seconds": args.load_seconds, "settle": 0}
        return [load] + [{"way": way, "micro_steps": micro_steps, "seconds": args.seconds, "settle": args.settle}
                         for micro_steps in self.micro_steps for _ in range(args.rounds) for way in args.ways]

    def run_ranks(self, folder: pathlib.Path, phases: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns what each rank wrote. When one fails the others, which wait for it, are ended."""
        args = self.args
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(self.cache / "inductor"),
                       "TRITON_CACHE_DIR": str(self.cache / "triton")}
        processes = []
        try:
            for rank in range(args.gpus):
                job = {"kind": "ranks", "config": self.config, "device": args.device, "rank": rank, "ranks": args.gpus,
                       "precision": args.precision, "attention": args.attention, "loss": args.loss,
                       "chunk_tokens": args.chunk_tokens, "compile": args.compile, "ways": args.ways,
                       "micro_steps": self.micro_steps, "phases": phases, "rendezvous": str(folder / "rendezvous"),
                       "threads": 1 if args.device == "cpu" else None, "result": str(folder / f"rank-{rank}.json")}
                job_file = folder / f"job-{rank}.json"
                job_file.write_text(json.dumps(job))
                processes.append(subprocess.Popen([sys.executable, __file__, "worker", str(job_file)], env=environment))
            while any(process.poll() is None for process in processes):
                if any(process.poll() not in (None, 0) for process in processes):
                    break
                time.sleep(0.1)
            failed = [rank for rank, process in enumerate(processes) if process.poll() not in (None, 0)]
            if failed:
                fail(f"rank {failed[0]} ended with code {processes[failed[0]].returncode}: its message stands above")
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(args.gpus)]

    def check_same_work(self, ranks: list[dict[str, Any]]) -> None:
        """Every way has taken a step from the same weights on the same rows: the mean loss of the ranks is one number,
        and so is the norm of the gradient where they share it."""
        loss_tolerance, norm_tolerance = FIRST_TOLERANCE[self.args.precision]
        first = {way: [statistics.mean(rank["first_steps"][way][k] for rank in ranks) for k in (0, 1)]
                 for way in ranks[0]["first_steps"]}
        for way, (loss, norm) in first.items():
            if not abs(loss - first["alone"][0]) <= loss_tolerance * first["alone"][0]:
                fail(f"the first loss of {way} is {loss}, alone it is {first['alone'][0]}: they do not do the same "
                     "work")
            if way != "alone" and not abs(norm - first[self.args.together[0]][1]) <= norm_tolerance * norm:
                fail(f"the first gradient norm of {way} is {norm}, that of {self.args.together[0]} is "
                     f"{first[self.args.together[0]][1]}: they do not do the same work")

    def show(self, label: str, result: dict[str, Any], ratio: float | None) -> None:
        speeds = result["ranks_tokens_per_second"]
        parts = [f"{label:8} {result['way']:6} {result['micro_steps']:3} micro-step(s) {result['per_gpu']:9.0f} "
                 f"tokens/s per GPU"]
        if ratio is not None:
            parts.append(f"{ratio:.3f} of the mean alone")
        if result["way"] == "alone" and len(speeds) > 1:
            parts.append(f"{min(speeds):.0f} to {max(speeds):.0f}")
        if result["mfu"] is not None:
            parts.append(f"{100 * result['mfu']:.1f}% MFU")
        if result["memory_bytes"] is not None:
            parts.append(f"{result['memory_bytes'] / 2**30:.1f} GiB")
        for number, machine in enumerate(result["machines"]):
            if machine["watts"] is not None:
                parts.append(f"GPU {number}: {machine['clock_mhz']:.0f} MHz {machine['watts']:.0f} W")
        print(", ".join(parts), flush=True)

    def run(self) -> dict[str, Any]:
        args = self.args
        phases = self.phases()
        monitors = [Monitor(number) for number in range(args.gpus)] if args.device == "cuda" else []
        try:
            with tempfile.TemporaryDirectory(prefix="bench-torch-ranks-") as folder:
                ranks = self.run_ranks(pathlib.Path(folder), phases)
        finally:
            for monitor in monitors:
                monitor.close()
        self.check_same_work(ranks)
        peak = next((peak for name, peak in PEAKS.items() if name in ranks[0]["device"]), None)
        print(f"{self.config['name']}: {args.gpus} x {ranks[0]['device']}, driver {driver_version()}, PyTorch "
              f"{torch.__version__}, NCCL {ranks[0]['nccl'] or '-'} {ranks[0]['nccl_variables'] or ''}; micro-steps of "
              f"{self.micro_tokens} tokens, {self.flops / 1e9:.3f} GFLOP a token; compiled in "
              f"{', '.join(f'{seconds:.0f} s ({way})' for way, seconds in ranks[0]['compile_seconds'].items())}")
        results = []
        for index, phase in enumerate(phases):
            own = [rank["phases"][index] for rank in ranks if rank["phases"][index] is not None]
            speeds = [x["tokens_per_second"] for x in own]
            window = [max(x["window"][0] for x in own), min(x["window"][1] for x in own)]
            per_gpu = statistics.mean(speeds)
            memory = [x["memory_bytes"] for x in own if x["memory_bytes"] is not None]
            results.append({**phase, "per_gpu": per_gpu, "ranks_tokens_per_second": speeds, "ranks": own,
                            "mfu": None if peak is None else self.flops * per_gpu / peak,
                            "memory_bytes": max(memory, default=None),
                            "machines": [monitor.between(*window) for monitor in monitors]})
        ratios = self.report(results)
        return {"device": ranks[0]["device"], "gpus": args.gpus, "driver": driver_version(), "torch": torch.__version__,
                "nccl": ranks[0]["nccl"], "nccl_variables": ranks[0]["nccl_variables"], "config": self.config,
                "flops_per_token": self.flops, "peak": peak, "precision": args.precision, "attention": args.attention,
                "loss": args.loss, "compile": args.compile, "compile_seconds": ranks[0]["compile_seconds"],
                "first_steps": [rank["first_steps"] for rank in ranks], "phases": results, "ratios": ratios,
                "machine_samples": [monitor.samples for monitor in monitors]}

    def report(self, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Prints the phases and the ratios of each way to the mean alone in its round."""
        self.show("load", results[0], None)
        found = []
        number = 1
        for micro_steps in self.micro_steps:
            ratios: dict[str, list[float]] = {way: [] for way in self.args.ways}
            for round_number in range(1, self.args.rounds + 1):
                turn = {result["way"]: result for result in results[number:number + len(self.args.ways)]}
                number += len(self.args.ways)
                for way, result in turn.items():
                    ratios[way].append(result["per_gpu"] / turn["alone"]["per_gpu"])
                    self.show(f"round {round_number}", result, None if way == "alone" else ratios[way][-1])
            for way in self.args.ways:
                if way == "alone":
                    continue
                median = statistics.median(ratios[way])
                print(f"{way}: {median:.3f} of the mean alone per GPU, with {micro_steps} micro-step(s) of "
                      f"{self.micro_tokens} tokens per GPU and optimizer step (median of "
                      f"{', '.join(f'{ratio:.3f}' for ratio in ratios[way])})")
                found.append({"way": way, "micro_steps": micro_steps, "ratio": median, "rounds": ratios[way]})
        return found


@contextlib.contextmanager
def compile_cache(folder: pathlib.Path | None) -> Iterator[pathlib.Path]:
    if folder is not None:
        yield folder.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="bench-torch-") as temporary:
            yield pathlib.Path(temporary)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", type=pathlib.Path, metavar="FILE",
                        help=f"a config of Ingot's; may be repeated (default: {' and '.join(CONFIGS)})")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="as for ./train; may be repeated")
    parser.add_argument("--output", type=pathlib.Path, required=True, metavar="DIR", help="for NAME-ranks.json")
    parser.add_argument("--gpus", type=int, metavar="N", help="how many train together (default: all that are there)")
    parser.add_argument("--ways", default=",".join(WAYS), metavar="WAY,...",
                        help=f"of {', '.join(WAYS)} (default: all); alone is always among them")
    parser.add_argument("--step-tokens", type=int, default=524288, metavar="N",
                        help="tokens of a step over all GPUs, where gradients are accumulated (default: 524288)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each way (default: 2)")
    parser.add_argument("--seconds", type=float, default=15, help="of a phase (default: 15)")
    parser.add_argument("--settle", type=float, default=3, help="seconds of each phase that do not count (default: 3)")
    parser.add_argument("--load-seconds", type=float, default=20, help="of load before the first phase (default: 20)")
    parser.add_argument("--make-data", type=pathlib.Path, metavar="DIR",
                        help="write a shard of random tokens for each config there, unless it is there, and read it")
    parser.add_argument("--documents", choices=["quarter", "log-normal"], default="quarter",
                        help="of --make-data: T/4 tokens each, or about 400, log-normal (default: quarter)")
    parser.add_argument("--precision", choices=["autocast", "fp32"],
                        help="bf16 autocast over fp32 weights (fsdp2: bf16 weights from fp32 ones), or fp32 "
                             "(default: autocast; on the CPU fp32)")
    parser.add_argument("--loss", choices=["full", "chunked"], default="full",
                        help="all logits at once, or their gradient chunk by chunk (default: full)")
    parser.add_argument("--chunk-tokens", type=int, default=8192, metavar="N", help="of --loss chunked (default: 8192)")
    parser.add_argument("--compile", metavar="MODE",
                        choices=["default", "max-autotune-no-cudagraphs", "off"],
                        help="mode of torch.compile, or off (default: default; on the CPU off)")
    parser.add_argument("--cache", type=pathlib.Path, metavar="DIR",
                        help="where compiled code is kept (default: a new folder, removed at the end)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda",
                        help="cpu: processes with gloo, to try the script; no measurement (default: cuda)")
    args = parser.parse_args()
    is_cpu = args.device == "cpu"
    args.config = args.config or [ROOT / name for name in CONFIGS]
    args.precision = args.precision or ("fp32" if is_cpu else "autocast")
    args.compile = args.compile or ("off" if is_cpu else "default")
    args.attention = "mask" if is_cpu else "flex"  # FlexAttention has no backward on the CPU
    ways = args.ways.split(",")
    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        fail(f"--ways does not know {unknown[0]!r}: it takes {', '.join(WAYS)}")
    args.ways = [way for way in WAYS if way in ways or way == "alone"]
    args.together = [way for way in args.ways if way in ("ddp", "fsdp2")]
    if args.rounds < 1 or args.step_tokens < 1 or args.chunk_tokens < 1 or not args.seconds > 0 or \
            not args.settle >= 0 or not args.load_seconds >= 0 or not math.isfinite(args.seconds + args.settle +
                                                                                    args.load_seconds):
        fail("--rounds, --step-tokens, --seconds and --chunk-tokens must be positive, --settle and --load-seconds not "
             "negative")
    if not is_cpu:
        there = count_gpus()
        if there < 2:
            fail(f"GPUs that train together are compared with GPUs alone, which takes two or more, and PyTorch finds "
                 f"{there}: --device cpu tries the script without")
        if args.gpus is not None and args.gpus > there:
            fail(f"--gpus is {args.gpus}, and PyTorch finds {there}")
        args.gpus = args.gpus or there
    args.gpus = args.gpus or 2
    if args.gpus < 2:
        fail(f"--gpus is {args.gpus}: it must be 2 or more, since GPUs that train together are compared with GPUs "
             "alone")
    return args


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        import torch_ranks

        torch_ranks.worker(json.loads(pathlib.Path(sys.argv[2]).read_text()))
        return
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.device == "cpu":
        print("NOTE: --device cpu tries the script: the figures are no measurement")
    with compile_cache(args.cache) as cache:
        for config in args.config:
            comparison = Comparison(args, config, cache)
            result = comparison.run()
            path = args.output / f"{comparison.config['name']}-ranks.json"
            path.write_text(json.dumps(result, indent=1))
            print(f"all of it: {path}")


if __name__ == "__main__":
    main()
