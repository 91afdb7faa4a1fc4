"""The GPU's half of bench_torch.py: `step --device cuda` there says how to call it. Nothing here is run by itself.

Ingot (A) and PyTorch (B) take turns on one GPU, each in a process of its own that is gone before the other starts:
20 s of load, then A B A B of 15 s each, the first seconds of a phase (its start, its compiling, the card reaching its
power limit) left out. Both begin at Ingot's initial weights in each phase, and read the rows in the order of the files.

A is `./train` on the config, its time the sum of `step_seconds` in log.jsonl over the window; the process is killed
when the window is full, so that no time goes into a checkpoint. Where attention is left out it is `./bench step
--no-attention`, on random tokens of its own. B is the loop of torch_step.py. Its rows lie in GPU
memory, and it waits for the step before the last one only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Iterator

from torch_rows import Rows
from torch_twin import fail
from torch_step import LOSSES_KEPT

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Dense bf16 peaks, FLOP/s, by what the device's name contains (vendor data sheets; SXM clocks).
PEAKS = {"H100 PCIe": 756e12, "H100": 989.4e12, "H200": 989.4e12, "A100": 312e12, "L40S": 362e12, "4090": 165.2e12}
# The first loss and the first gradient norm of the two sides may differ by rounding. A wrong target shows in the loss;
# a wrong mask hardly does, as long as the weights are those of the beginning, but it does in the norm.
FIRST_TOLERANCE = {"autocast": (1e-3, 2e-2), "master": (1e-3, 2e-2), "bf16": (1e-3, 2e-2), "fp32": (1e-5, 1e-4)}
# In fp8 the two sides scale in different ways, and each rounds its operands by 3 to 5%.
FIRST_TOLERANCE_FP8 = (5e-3, 1e-1)


# ---- The machine -----------------------------------------------------------------------------------------------------


class Monitor:
    """Asks nvidia-smi about a card a few times a second, from the beginning to the end of the benchmark. The cards are
    counted as CUDA_VISIBLE_DEVICES counts them."""

    FIELDS = ("clocks.sm", "power.draw", "temperature.gpu", "memory.used")

    def __init__(self, number: int = 0) -> None:
        self.samples: list[tuple[float, list[float]]] = []
        self.process = None
        program = shutil.which("nvidia-smi")
        if program is None:
            return
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        index = visible[number] if number < len(visible) else str(number)
        self.process = subprocess.Popen([program, "-i", index, f"--query-gpu={','.join(self.FIELDS)}",
                                         "--format=csv,noheader,nounits", "-lms", "200"], stdout=subprocess.PIPE,
                                        text=True)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        for line in self.process.stdout:  # type: ignore[union-attr]
            with contextlib.suppress(ValueError):
                self.samples.append((time.time(), [float(value) for value in line.split(",")]))

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def between(self, begin: float, end: float) -> dict[str, float | None]:
        rows = [values for when, values in self.samples if begin <= when <= end]
        if not rows:
            return {"clock_mhz": None, "watts": None, "celsius": None, "used_mib": None}
        clocks, watts, celsius, used = zip(*rows)
        return {"clock_mhz": statistics.median(clocks), "watts": statistics.mean(watts), "celsius": max(celsius),
                "used_mib": max(used)}


def device_name(device: str) -> str:
    if device != "cuda":
        return "the CPU (a try of the script, no measurement)"
    code = "import torch; print(torch.cuda.get_device_name(0))"  # in another process: this one stays off the GPU
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if result.returncode != 0:
        fail(f"PyTorch finds no CUDA device: {result.stderr.strip().splitlines()[-1:]}")
    return result.stdout.strip()


def driver_version() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    result = subprocess.run([program, "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True,
                            text=True)
    return (result.stdout.splitlines() or ["unknown"])[0]


# ---- The config ------------------------------------------------------------------------------------------------------


def read_config(path: pathlib.Path, assignments: list[str]) -> dict[str, Any]:
    """Returns the config as ./train resolves it: comments out, assignments in, defaults from the schema."""
    text = re.sub(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', lambda match: match.group(1) or "", path.read_text(),
                  flags=re.DOTALL)
    config = json.loads(text)
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        section = config
        *sections, name = key.split(".")
        for part in sections:
            section = section.setdefault(part, {})
        try:
            section[name] = json.loads(value)
        except ValueError:
            section[name] = value

    def fill(target: dict[str, Any], schema: dict[str, Any]) -> None:
        for name, entry in schema["properties"].items():
            if entry.get("type") == "object":
                fill(target.setdefault(name, {}), entry)
            elif "default" in entry:
                target.setdefault(name, entry["default"])

    fill(config, json.loads((ROOT / "configs/schema.json").read_text()))
    m, training = config["model"], config["training"]
    m["n_kv_heads"] = m.get("n_kv_heads") or m["n_heads"]
    m["head_dim"] = m.get("head_dim") or m["d_model"] // m["n_heads"]
    m["d_ff"] = m.get("d_ff") or (m["d_model"] * 8 // 3 + 63) // 64 * 64
    training["batch_tokens"] = training.get("batch_tokens") or 32 * m["context_length"]
    if not isinstance(training.get("micro_batch_size"), int):
        fail("training.micro_batch_size must be a number of rows: both sides are to take the same")
    if training["z_loss"] != 0:
        fail("training.z_loss is not part of PyTorch's side: set it to 0")
    return config


def flops_per_token(config: dict[str, Any], rows: Rows, with_attention: bool) -> float:
    """Counts 6 for each parameter of a GEMM, and attention over the pairs that the documents leave: forward two GEMMs
    of 2 HS a pair and head, backward twice that; a document of n tokens has n^2 / 2 pairs. Without documents that is 6
    L d T, d being the width of all query heads."""
    m = config["model"]
    q, kv = m["n_heads"] * m["head_dim"], m["n_kv_heads"] * m["head_dim"]
    layer = m["d_model"] * (q + 2 * kv) + q * m["d_model"] + 3 * m["d_model"] * m["d_ff"]
    flops = 6.0 * (m["n_layers"] * layer + m["vocab_size"] * m["d_model"])
    if with_attention:
        _, _, documents = rows.batch(0, max(1, min(2048, rows.count // rows.context)))
        _, lengths = torch.unique_consecutive(documents + 2**20 * torch.arange(len(documents))[:, None],
                                              return_counts=True)
        flops += 6.0 * m["n_layers"] * q * float((lengths.double() ** 2).sum() / lengths.sum())
    return flops


# ---- The comparison --------------------------------------------------------------------------------------------------


class Comparison:
    def __init__(self, args: argparse.Namespace, sets: list[str]) -> None:
        self.args = args
        self.output = args.output.resolve()
        self.output.mkdir(parents=True, exist_ok=True)
        self.device = "cpu" if args.rehearse else "cuda"
        # The run has nothing but steps, all of them alike.
        self.sets = [*sets, "data.val=[]", "data.tokenizer=null", "data.shuffle=false", "sample.every=0",
                     "eval.every=0", f"training.device={self.device}", "training.steps=100000000",
                     "schedule.type=constant", "schedule.warmup_steps=0", "checkpoint.every=100000000",
                     "log.every=1000", "log.jsonl=true"]
        self.config = read_config(args.config, self.sets)
        self.batch_tokens = self.config["training"]["batch_tokens"]
        self.is_fp8 = self.config["training"]["precision"] == "fp8"
        self.sides = {"torch": ["PyTorch"], "ingot": ["Ingot"]}.get(args.only, ["Ingot", "PyTorch"])
        if args.attention == "mask" and not args.rehearse:
            fail("--attention mask builds whole T x T matrices: it is for --rehearse alone")
        if args.attention == "flex" and args.rehearse and "PyTorch" in self.sides:
            fail("FlexAttention has no backward on the CPU: rehearse with --attention mask")
        self.program, option = (args.bench, "--bench") if args.attention == "none" else (args.train, "--train")
        if "Ingot" in self.sides and shutil.which(self.program) is None:
            fail(f"{self.program} is not there: build it, or name it with {option}, or use --torch-only")
        rows = Rows(self.config)
        self.flops = flops_per_token(self.config, rows, args.attention != "none")
        self.name = device_name(self.device)
        self.peak = next((peak for name, peak in PEAKS.items() if name in self.name), None)
        self.plain = args.attention in ("flash", "cudnn") and (
            self.config["model"]["position"] == "alibi" or self.config["data"]["mask_documents"])

    def ingot_without_attention(self, seconds: float, settle: float) -> dict[str, Any]:
        result_file = self.output / "ingot.json"
        command = [self.program, "step", "--no-attention", "--no-parts", "--config", str(self.args.config),
                   "--seconds", str(seconds), "--settle", str(settle), "--json", str(result_file)]
        for assignment in self.sets:
            command += ["--set", assignment]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            fail(f"{' '.join(command)} ended with code {done.returncode}: {done.stderr.strip()[-2000:]}")
        result = json.loads(result_file.read_text())
        return {"tokens_per_second": result["tokens_per_second"], "steps": result["steps"],
                "median_step_seconds": result["median_step_seconds"], "first_step_seconds": math.nan,
                "window": result["window"], "losses": [result["loss"]], "norms": [math.nan],
                "memory": {"planned": result["memory_bytes"]}}

    def ingot(self, seconds: float, settle: float) -> dict[str, Any]:
        if self.args.attention == "none":
            return self.ingot_without_attention(seconds, settle)
        folder = self.output / "ingot"
        shutil.rmtree(folder, ignore_errors=True)
        command = [self.args.train, "--config", str(self.args.config)]
        for assignment in [*self.sets, "name=ingot", f"run_dir={folder}"]:
            command += ["--set", assignment]
        spawned = time.time()
        printed = self.output / "ingot-output.txt"
        with open(printed, "w") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            return self.follow(process, folder, printed, spawned, seconds, settle)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def follow(self, process: subprocess.Popen[bytes], folder: pathlib.Path, printed: pathlib.Path, spawned: float,
               seconds: float, settle: float) -> dict[str, Any]:
        """Reads log.jsonl as it grows, until the window is full."""
        lines: list[dict[str, Any]] = []
        arrivals: list[float] = []
        first, text, position = 0, "", 0
        while True:
            is_over = process.poll() is not None
            if (folder / "log.jsonl").exists():
                with open(folder / "log.jsonl") as file:
                    file.seek(position)
                    text += file.read()
                    position = file.tell()
            *whole, text = text.split("\n")
            for line in whole:
                lines.append(json.loads(line))
                arrivals.append(time.time())
                if first == 0 and sum(x["step_seconds"] for x in lines[1:]) >= settle and len(lines) > 1:
                    first = len(lines)
            if 0 < first < len(lines) and sum(x["step_seconds"] for x in lines[first:]) >= seconds:
                break
            if is_over and not whole:
                fail(f"{self.args.train} ended with code {process.returncode}: {printed.read_text().strip()[-2000:]}")
            time.sleep(0.005)
        config = json.loads((folder / "config.json").read_text())
        if config["model"] != {key: self.config["model"][key] for key in config["model"]}:
            fail(f"Ingot takes the model for {config['model']}, this script for {self.config['model']}")
        window = lines[first:]
        own = sum(x["step_seconds"] for x in window)
        wall = arrivals[-1] - arrivals[first - 1]
        if not abs(own - wall) <= 0.02 * wall:
            print(f"NOTE: Ingot's steps add up to {own:.3f} s, the clock on the wall says {wall:.3f} s")
        return {"tokens_per_second": len(window) * self.batch_tokens / own, "steps": len(window),
                "wall_tokens_per_second": len(window) * self.batch_tokens / wall,
                "median_step_seconds": statistics.median(x["step_seconds"] for x in window),
                "data_wait_seconds": sum(x["data_wait_seconds"] for x in window) / len(window),
                "first_step_seconds": arrivals[0] - spawned, "window": [arrivals[first - 1], arrivals[-1]],
                "losses": [float(x["loss"]) for x in lines[:LOSSES_KEPT]],
                "norms": [float(x["grad_norm"]) for x in lines[:LOSSES_KEPT]], "logged_mfu": lines[-1]["mfu"],
                "memory": {"planned": lines[-1]["memory_bytes"]}}

    def torch(self, seconds: float, settle: float) -> dict[str, Any]:
        args = self.args
        job = {"kind": "gpu", "config": self.config, "device": self.device, "precision": args.precision,
               "loss": args.loss, "chunk_tokens": args.chunk_tokens, "attention": args.attention,
               "compile": args.compile, "settle": settle, "seconds": seconds, "spawned": time.time(),
               "threads": args.threads if args.rehearse else None, "result": str(self.output / "torch.json")}
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(self.cache / "inductor"),
                       "TRITON_CACHE_DIR": str(self.cache / "triton")}
        job_file = self.output / "torch-job.json"
        job_file.write_text(json.dumps(job))
        result = subprocess.run([sys.executable, str(ROOT / "scripts/peers/bench_torch.py"), "worker", str(job_file)],
                                env=environment)
        if result.returncode != 0:
            fail("PyTorch's side failed: its message stands above")
        return json.loads((self.output / "torch.json").read_text())

    def phase(self, side: str, seconds: float, settle: float) -> dict[str, Any]:
        begin = time.time()
        result = (self.ingot if side == "Ingot" else self.torch)(seconds, settle)
        smi = self.monitor.between(*result["window"])
        smi["used_mib"] = self.monitor.between(begin, time.time())["used_mib"]
        result |= {"side": side, "machine": smi, "mfu": None if self.peak is None else
                   self.flops * result["tokens_per_second"] / self.peak}
        return result

    def show(self, label: str, result: dict[str, Any]) -> None:
        def text(value: float | None, form: str) -> str:
            return "-" if value is None else format(value, form)

        smi, memory = result["machine"], result["memory"]
        own = memory.get("planned", memory.get("allocated"))
        mfu = None if result["mfu"] is None else 100 * result["mfu"]
        print(f"{label:8} {result['side']:8} {result['tokens_per_second']:9.0f} tokens/s  "
              f"{text(mfu, '5.1f')}% MFU  {1e3 * result['median_step_seconds']:8.2f} ms a step  "
              f"{text(smi['clock_mhz'], '.0f')} MHz  {text(smi['watts'], '.0f')} W  "
              f"own {text(own and own / 2**30, '.1f')} GiB, "
              f"card {text(smi['used_mib'] and smi['used_mib'] / 1024, '.1f')} GiB  "
              f"first step {result['first_step_seconds']:.1f} s  norm {result['norms'][0]:.4f}, "
              f"loss {result['losses'][0]:.4f} -> {result['losses'][-1]:.4f} in {len(result['losses'])}", flush=True)

    def check_same_work(self, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        if self.plain or self.args.attention == "none":
            return
        tolerances = FIRST_TOLERANCE_FP8 if self.is_fp8 else FIRST_TOLERANCE[self.args.precision]
        for what, key, tolerance in zip(("losses", "gradient norms"), ("losses", "norms"), tolerances):
            a, b = ours[key][0], theirs[key][0]
            if not abs(a - b) <= tolerance * abs(b):
                fail(f"the first {what} are {a} and {b}: the two sides do not do the same work")

    def run(self) -> None:
        with self.compile_cache() as self.cache:
            self.monitor = Monitor()
            try:
                self.compare()
            finally:
                self.monitor.close()
                shutil.rmtree(self.output / "ingot", ignore_errors=True)

    @contextlib.contextmanager
    def compile_cache(self) -> Iterator[pathlib.Path]:
        if self.args.cache is not None:
            yield self.args.cache.resolve()
        else:
            with tempfile.TemporaryDirectory(prefix="bench-torch-") as folder:
                yield pathlib.Path(folder)

    def compare(self) -> None:
        args = self.args
        sides = "; ".join([f"Ingot: {self.program}"] * ("Ingot" in self.sides) + [
            f"PyTorch {torch.__version__}: {args.precision}{', torchao float8' if self.is_fp8 else ''}, attention {args.attention}, loss {args.loss}, "
            f"compile {args.compile}"] * ("PyTorch" in self.sides))
        print(f"{self.name}, driver {driver_version()}; {sides}")
        print(f"{self.config['name']}: {self.batch_tokens} tokens a step, {self.flops / 1e9:.3f} GFLOP a token" +
              (f", peak {self.peak / 1e12:.1f} TFLOP/s" if self.peak else ""))
        if self.plain and "PyTorch" in self.sides:
            print("NOTE: PyTorch's attention is plain causal: it leaves out the ALiBi or the documents of the config")
        phases: list[dict[str, Any]] = []
        ratios: list[float] = []
        load = self.phase(self.sides[-1], args.load_seconds, 0)  # PyTorch then has compiled its code
        self.show("load", load)
        for number in range(1, args.rounds + 1):
            for side in self.sides:
                phases.append(self.phase(side, args.seconds, args.settle))
                self.show(f"round {number}", phases[-1])
            if len(self.sides) == 2:
                self.check_same_work(phases[-2], phases[-1])
                ratios.append(phases[-2]["tokens_per_second"] / phases[-1]["tokens_per_second"])
        for side in self.sides:
            speeds = [x["tokens_per_second"] for x in phases if x["side"] == side]
            print(f"{side}: median {statistics.median(speeds):.0f} tokens/s, {min(speeds):.0f} to {max(speeds):.0f}")
        if ratios:
            print(f"Ingot's speed is {statistics.median(ratios):.3f} of PyTorch's (median of "
                  f"{', '.join(f'{ratio:.3f}' for ratio in ratios)})")
        result = {"device": self.name, "driver": driver_version(), "torch": torch.__version__, "config": self.config,
                  "flops_per_token": self.flops, "peak": self.peak, "precision": args.precision, "loss": args.loss,
                  "attention": args.attention, "compile": args.compile, "load": load, "phases": phases,
                  "ratios": ratios, "ratio": statistics.median(ratios) if ratios else None,
                  "machine_samples": [[when, *values] for when, values in self.monitor.samples]}
        name = "-".join([self.config["name"], *([args.only] if args.only else []), args.attention, args.loss,
                         args.precision])
        path = self.output / f"{name}.json"
        path.write_text(json.dumps(result, indent=1))
        print(f"all of it: {path}")
