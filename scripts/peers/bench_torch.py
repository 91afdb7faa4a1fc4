#!/usr/bin/env python3
"""Time Ingot beside PyTorch, doing the same work.

    python3 scripts/peers/bench_torch.py step --config FILE [--set KEY=VALUE]... --output DIR
    python3 scripts/peers/bench_torch.py step --device cuda --config FILE [--make-data DIR] [OPTION]... --output DIR
    python3 scripts/peers/bench_torch.py attention [OPTION]...       attention alone, on a GPU: see its --help

`step` times the training step of one config: the same weights, token ids, documents, micro-batches, loss, clipping
and AdamW on both sides, in float32. The two take turns (Ingot, PyTorch, Ingot, PyTorch, ...), `--rounds` runs each,
with the same number of threads. A run's figure is the median of its steps after the warm-up; the ratio is that of the
best runs.

Ingot runs as a user runs it, `./train --config FILE --set ...`; its time is `step_seconds` of log.jsonl. The model that
PyTorch runs is what a careful user of PyTorch would write in eager mode: fused QKV and gate-up projections,
F.rms_norm, scaled_dot_product_attention, F.cross_entropy, clip_grad_norm_ and AdamW(fused=True). Where PyTorch offers
several ways (attention with or without a mask, keys repeated or grouped, norms one by one or all at once) each is tried
on the spot and the fastest is taken, and named. Both start from the weights that Ingot initialises and read the rows in
the order of the files; the comparison is refused if the losses of the two differ.

With --device cuda PyTorch's side is torch.compile in bf16 (autocast over fp32 weights, unless told otherwise) with
FlexAttention and fused AdamW (and, with `--set training.precision="fp8"`, torchao's float8 in the layers: `python3 -m
pip install torchao`), and the phases are measured in seconds, not steps: 20 s of load, then Ingot and PyTorch
in turns of 15 s, the ratio being the median over the rounds. Clock, watts, MFU by one formula, memory and time to the
first step are printed for each phase, and stand with all else in DIR/NAME.json.

Run it with the Python that has PyTorch 2.6 or later.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import platform
import shutil
import statistics
import struct
import subprocess
import sys
import time
from typing import Any, Callable

from torch_rows import IGNORED, Rows  # says so where there is no PyTorch
from torch_twin import fail, saved_weights
from torch_gpt import Attend, Gpt

import torch
from torch import Tensor, nn

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Float32 on both sides, summed in different orders: the first loss is within a few 1e-6; a wrong mask, target or weight
# moves it by more than 1e-3.
FIRST_LOSS_TOLERANCE = 1e-4
# Neither side inherits these, which would pin the threads of one and not of the other.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS",
                    "GOTO_NUM_THREADS", "OPENBLAS_CORETYPE", "MKL_DEBUG_CPU_TYPE", "OMP_PROC_BIND", "OMP_PLACES",
                    "GOMP_CPU_AFFINITY",
                    "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_AFFINITY", "KMP_BLOCKTIME")


# ---- Data ------------------------------------------------------------------------------------------------------------


def write_random_shard(path: pathlib.Path, vocabulary: int, eot: int, seed: int = 1, tokens: int = 1 << 20,
                       length: int | None = None) -> None:
    """Writes ids as frequent as words are (Zipf), in documents of `length` or of about 400 tokens (log-normal), EOT at
    each end."""
    generator = torch.Generator().manual_seed(seed)
    frequency = 1.0 / (torch.arange(vocabulary, dtype=torch.float64) + 2.7)
    ids = torch.multinomial(frequency, tokens, replacement=True, generator=generator)
    ids[ids == eot] = (eot + 1) % vocabulary
    lengths = torch.exp(5.5 + torch.randn(tokens // 50, generator=generator)).long().clamp(min=2)
    if length is not None:
        lengths = torch.full((tokens // length + 1,), length)
    ends = lengths.cumsum(0) - 1
    ids[ends[ends < tokens]] = eot
    if vocabulary <= 65536:
        header, body = (20240520, 1, tokens), ids.to(torch.uint16)
    else:
        header, body = (20240801, 7, tokens), ids.to(torch.int32)
    path.write_bytes(struct.pack("<256i", *header, *([0] * 253)) + body.numpy().tobytes())


# ---- PyTorch's side --------------------------------------------------------------------------------------------------


def fastest(candidates: dict[str, Callable[[], None]], seconds: float = 0.4) -> str:
    """Returns the name of the candidate with the smallest best time; each runs twice before it is timed."""
    best: dict[str, float] = {}
    for name, call in candidates.items():
        call()
        call()
        best[name] = math.inf
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return min(best, key=lambda name: best[name])


def choose_attention(model: Gpt, documents: Tensor) -> Attend:
    m = model.m
    group = m["n_heads"] // m["n_kv_heads"]
    one_document = not bool((documents[:, -1] > documents[:, 0]).any())
    choices = [Attend(is_causal, grouped, group) for grouped in ((True, False) if group > 1 else (False,))
               for is_causal in ((True, False) if one_document and m["position"] != "alibi" else (False,))]
    rows, context = documents.shape
    mask = model.mask(documents)

    def run(attend: Attend) -> Callable[[], None]:
        def call() -> None:
            qkv = torch.randn(rows, context, m["n_heads"] + 2 * m["n_kv_heads"], m["head_dim"], requires_grad=True)
            q, k, v = qkv.transpose(1, 2).split([m["n_heads"], m["n_kv_heads"], m["n_kv_heads"]], dim=1)
            attend(q, k, v, mask).sum().backward()
        return call

    name = fastest({str(attend): run(attend) for attend in choices})
    return next(attend for attend in choices if str(attend) == name)


def worker(job: dict[str, Any]) -> None:
    """Runs in a process of its own; writes what it measured to job["result"]."""
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    config = job["config"]
    o, training = config["optimizer"], config["training"]
    rows = Rows(config)
    micro_batch = training["micro_batch_size"]
    micro_steps = training["batch_tokens"] // (micro_batch * rows.context)
    model = Gpt(config)
    model.load(saved_weights(pathlib.Path(job["weights"])))
    parameters = list(model.parameters())
    groups = [{"params": [p for p in parameters if p.dim() == 2], "weight_decay": o["weight_decay"]},
              {"params": [p for p in parameters if p.dim() != 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=o["lr"], betas=(o["beta1"], o["beta2"]), eps=o["eps"], fused=True)
    # Documents differ from row to row, so that the form must serve them all with any mask.
    attend = choose_attention(model, torch.cat([rows.batch(step * micro_batch, micro_batch)[2] for step in range(8)])
                              if rows.masked else rows.batch(0, micro_batch)[2])
    foreach = True
    if o["grad_clip"] > 0:
        for p in parameters:
            p.grad = torch.full_like(p, 1e-8)
        norms = {str(x): lambda x=x: nn.utils.clip_grad_norm_(parameters, 1.0, foreach=x) for x in (False, True)}
        foreach = fastest(norms) == "True"
        optimizer.zero_grad(set_to_none=True)

    seconds, losses = [], []
    for step in range(job["steps"]):
        begin = time.perf_counter()
        batches = [rows.batch((step * micro_steps + i) * micro_batch, micro_batch) for i in range(micro_steps)]
        targets = sum(int((batch[1] != IGNORED).sum()) for batch in batches)
        total = 0.0
        for batch in batches:
            loss = model(*batch, attend) / targets
            loss.backward()
            total += loss.item()
        if o["grad_clip"] > 0:
            nn.utils.clip_grad_norm_(parameters, o["grad_clip"], foreach=foreach)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begin)
        losses.append(total)
    chosen = f"{attend}; gradient norm {'foreach' if foreach else 'one by one'}"
    pathlib.Path(job["result"]).write_text(json.dumps({"seconds": seconds, "losses": losses, "chosen": chosen}))


# ---- The comparison --------------------------------------------------------------------------------------------------


def cpu_name() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def system_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.system()


class Comparison:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.output = args.output.resolve()
        self.output.mkdir(parents=True, exist_ok=True)
        self.environment = {key: value for key, value in os.environ.items() if key not in THREAD_VARIABLES}
        self.environment["OMP_NUM_THREADS"] = str(args.threads)
        self.train = shutil.which(args.train) or fail(f"{args.train} is not there: build it, or name it with --train")

    def ingot(self, name: str, steps: int, *more: str) -> tuple[pathlib.Path, str]:
        """Runs ./train; returns its run folder and what it printed."""
        folder = self.output / name
        shutil.rmtree(folder, ignore_errors=True)
        # The run has nothing but steps, all of them alike.
        sets = [f"name={name}", f"run_dir={folder}", "data.val=[]", "data.tokenizer=null", "data.shuffle=false",
                "sample.every=0", f"training.device={self.args.device}", f"training.steps={steps}",
                "schedule.type=constant", "schedule.warmup_steps=0", f"checkpoint.every={steps + 1}"]
        command = [self.train, "--config", str(self.args.config)]
        for assignment in [*self.args.set, *sets, *more]:
            command += ["--set", assignment]
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if result.returncode != 0:
            fail(f"{' '.join(command)} ended with code {result.returncode}: {result.stderr.strip()}")
        return folder, result.stdout

    def torch(self, config: dict[str, Any], weights: pathlib.Path) -> dict[str, Any]:
        result_file = self.output / "torch.json"
        job = {"config": config, "weights": str(weights), "steps": self.args.steps, "threads": self.args.threads,
               "result": str(result_file)}
        environment = dict(self.environment)
        if self.args.keep_memory:  # glibc: never hand freed memory back to the system
            environment |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
                            "MALLOC_TOP_PAD_": str(1 << 26)}
        result = subprocess.run([sys.executable, __file__, "worker", json.dumps(job)], env=environment)
        if result.returncode != 0:
            fail("PyTorch's side failed: its message stands above")
        return json.loads(result_file.read_text())

    def run(self) -> None:
        args = self.args
        # The checkpoint after one step at a learning rate of 0 holds the initial weights.
        folder, printed = self.ingot("initial", 1, "optimizer.lr=0")
        (weights,) = (folder / "checkpoints").glob("*/model-*.safetensors")
        print(f"{cpu_name()}, {os.cpu_count()} processors, {system_name()}; {args.threads} threads on both sides")
        for line in printed.splitlines():
            if line.startswith(("model:", "attention:", "step:", "device: CPU,")):
                print(f"Ingot: {line}")
        print(f"PyTorch {torch.__version__}, {'MKL' if torch.backends.mkl.is_available() else 'no MKL'}, "
              f"{torch.backends.cpu.get_cpu_capability()}" + (", freed memory kept" if args.keep_memory else ""))
        best = {"Ingot": math.inf, "PyTorch": math.inf}
        for number in range(1, args.rounds + 1):
            folder, _ = self.ingot("ingot", args.steps)
            shutil.rmtree(folder / "checkpoints")
            config = json.loads((folder / "config.json").read_text())
            log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
            ours = {"seconds": [line["step_seconds"] for line in log], "losses": [line["loss"] for line in log]}
            theirs = self.torch(config, weights)
            if number == 1:
                print(f"PyTorch: {theirs['chosen']}")
            for name, run in (("Ingot", ours), ("PyTorch", theirs)):
                median = statistics.median(run["seconds"][args.warmup:])
                best[name] = min(best[name], median)
                print(f"round {number}  {name:8} {median:8.4f} s a step  "
                      f"{config['training']['batch_tokens'] / median:8.0f} tokens/s   "
                      f"loss {run['losses'][0]:.5f} -> {run['losses'][-1]:.5f} in {args.steps} steps", flush=True)
            gap = abs(ours["losses"][0] - theirs["losses"][0]) / theirs["losses"][0]
            if not gap <= FIRST_LOSS_TOLERANCE:
                fail(f"the first losses differ by {gap:.1e}: the two sides do not do the same work")
        print(f"best: Ingot {best['Ingot']:.4f} s, PyTorch {best['PyTorch']:.4f} s; "
              f"Ingot's speed is {best['PyTorch'] / best['Ingot']:.3f} of PyTorch's")
        shutil.rmtree(self.output / "initial")


def make_data(folder: pathlib.Path, config: dict[str, Any], documents: str) -> pathlib.Path:
    """Makes a shard for the config, unless it is there."""
    vocabulary, context = config["model"]["vocab_size"], config["model"]["context_length"]
    length = context // 4 if documents == "quarter" else None
    path = folder / f"vocabulary-{vocabulary}-{'log-normal' if length is None else f'documents-{length}'}.bin"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        write_random_shard(temporary, vocabulary, vocabulary - 1, tokens=1 << 23, length=length)
        temporary.rename(path)
    return path


def step_on_gpu(args: argparse.Namespace) -> None:
    import bench_torch_gpu

    sets = list(args.set)
    if args.make_data is not None:
        config = bench_torch_gpu.read_config(args.config, args.set)
        path = make_data(args.make_data.resolve(), config, args.documents)
        sets += [f"data.train={json.dumps([str(path)])}", f"data.eot_token={config['model']['vocab_size'] - 1}",
                 "data.eot=end"]
    bench_torch_gpu.Comparison(args, sets).run()


def run_worker(text: str) -> None:
    """Runs a job, given as JSON (CPU) or as the file that holds it (GPU)."""
    if text.startswith("{"):
        worker(json.loads(text))
    else:
        import torch_step

        torch_step.worker(json.loads(pathlib.Path(text).read_text()))


def add_gpu_options(step: argparse.ArgumentParser) -> None:
    gpu = step.add_argument_group("with --device cuda")
    gpu.add_argument("--attention", choices=["flex", "flash", "cudnn", "none", "mask"], default="flex",
                     help="PyTorch's: FlexAttention with ALiBi and documents; FlashAttention-2 or cuDNN, plain causal; "
                          "none: v takes its place, on both sides; mask: for --rehearse (default: flex)")
    gpu.add_argument("--loss", choices=["full", "chunked"], default="full",
                     help="PyTorch's: all logits at once, or their gradient chunk by chunk (default: full)")
    gpu.add_argument("--chunk-tokens", type=int, default=8192, metavar="N", help="of --loss chunked (default: 8192)")
    gpu.add_argument("--precision", choices=["autocast", "master", "bf16", "fp32"], default="autocast",
                     help="PyTorch's: bf16 autocast over fp32 weights; a bf16 copy of fp32 weights, with a bf16 "
                          "residual stream, as Ingot has; all in bf16, AdamW's too: less than Ingot does; fp32 "
                          "(default: autocast)")
    gpu.add_argument("--compile", default="default", metavar="MODE",
                     choices=["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs", "off"],
                     help="mode of torch.compile, or off (default: default)")
    gpu.add_argument("--cache", type=pathlib.Path, metavar="DIR",
                     help="where compiled code is kept (default: a new folder, removed at the end, so that the first "
                          "phase shows the time from nothing)")
    gpu.add_argument("--seconds", type=float, default=15, help="of a phase (default: 15)")
    gpu.add_argument("--settle", type=float, default=5, help="seconds of each phase that do not count (default: 5)")
    gpu.add_argument("--load-seconds", type=float, default=20, help="of load before the first phase (default: 20)")
    gpu.add_argument("--make-data", type=pathlib.Path, metavar="DIR",
                     help="write a shard of random tokens for this config there, unless it is there, and read it")
    gpu.add_argument("--documents", choices=["quarter", "log-normal"], default="quarter",
                     help="of --make-data: T/4 tokens each, or about 400, log-normal (default: quarter)")
    only = gpu.add_mutually_exclusive_group()
    only.add_argument("--torch-only", dest="only", action="store_const", const="torch", help="leave Ingot out")
    only.add_argument("--ingot-only", dest="only", action="store_const", const="ingot", help="leave PyTorch out")
    gpu.add_argument("--rehearse", action="store_true",
                     help="all of it on the CPU, to try the script (with --attention mask)")


def main() -> None:
    if sys.argv[1:2] == ["attention"]:
        script = str(pathlib.Path(__file__).with_name("bench_torch_attention.py"))
        os.execv(sys.executable, [sys.executable, script, *sys.argv[2:]])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="attention|data|step")
    commands.add_parser("attention", help="time attention alone, on a GPU (bench_torch_attention.py)", add_help=False)
    data = commands.add_parser("data", help="write a shard of random tokens, for timing")
    data.add_argument("--vocab-size", type=int, required=True, metavar="V", help="ids are below V; V - 1 is EOT")
    data.add_argument("--output", type=pathlib.Path, required=True, metavar="FILE")
    step = commands.add_parser("step", help="time the training step on both sides")
    step.add_argument("--config", type=pathlib.Path, required=True, metavar="FILE", help="a config of Ingot's")
    step.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for ./train; may be repeated")
    step.add_argument("--train", default=str(ROOT / "train"), metavar="PATH", help="Ingot's program (default: ./train)")
    step.add_argument("--bench", default=str(ROOT / "bench"), metavar="PATH",
                      help="Ingot's benchmarks, for --attention none (default: ./bench)")
    step.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    step.add_argument("--threads", type=int, default=os.cpu_count(), help="on each side (default: all processors)")
    step.add_argument("--rounds", type=int, help="runs of each side (default: 3; cuda: 2)")
    step.add_argument("--steps", type=int, default=12, help="steps of a run, with the warm-up (default: 12)")
    step.add_argument("--warmup", type=int, default=3, help="steps that do not count (default: 3)")
    step.add_argument("--keep-memory", action="store_true",
                      help="tell PyTorch's allocator (glibc's) to keep freed memory, which spares it page faults")
    step.add_argument("--output", type=pathlib.Path, required=True, metavar="DIR", help="for run folders and results")
    add_gpu_options(step)
    commands.add_parser("worker").add_argument("job")
    args = parser.parse_args()
    if args.command == "worker":
        run_worker(args.job)
    elif args.command == "data":
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_random_shard(args.output, args.vocab_size, args.vocab_size - 1)
    elif args.device == "cuda":
        args.rounds = 2 if args.rounds is None else args.rounds
        if args.rounds < 1 or args.seconds <= 0 or args.settle < 0 or args.load_seconds < 0 or args.chunk_tokens < 1:
            fail("--rounds, --seconds and --chunk-tokens must be positive, --settle and --load-seconds not negative")
        step_on_gpu(args)
    else:
        args.rounds = 3 if args.rounds is None else args.rounds
        if not 0 <= args.warmup < args.steps or args.rounds < 1 or args.threads < 1:
            fail("--steps must exceed --warmup, and --rounds and --threads be at least 1")
        Comparison(args).run()


if __name__ == "__main__":
    main()
