#!/usr/bin/env python3
"""Time Ingot beside PyTorch, doing the same work.

    python3 scripts/bench_torch.py step --config FILE [--set KEY=VALUE]... --output DIR

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
from typing import Any, Callable, NoReturn

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ImportError:
    sys.exit("error: this Python has no PyTorch: run the script with one that has, 2.6 or later")

ROOT = pathlib.Path(__file__).resolve().parents[1]
IGNORED = -1
# Float32 on both sides, summed in different orders: the first loss is within a few 1e-6; a wrong mask, target or weight
# moves it by more than 1e-3.
FIRST_LOSS_TOLERANCE = 1e-4
# Not to be inherited: they would tie one side's threads and leave the other free.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS",
                    "GOTO_NUM_THREADS", "OPENBLAS_CORETYPE", "MKL_DEBUG_CPU_TYPE", "OMP_PROC_BIND", "OMP_PLACES",
                    "GOMP_CPU_AFFINITY",
                    "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_AFFINITY", "KMP_BLOCKTIME")


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


# ---- Data: what src/data/rows.h says, without shuffling --------------------------------------------------------------


def read_shard(path: str) -> Tensor:
    content = pathlib.Path(path).read_bytes()
    magic, version, count = struct.unpack_from("<3i", content)
    if (magic, version) == (20240520, 1):
        tokens = torch.frombuffer(bytearray(content[1024:]), dtype=torch.uint16)
    elif (magic, version) == (20240801, 7):
        tokens = torch.frombuffer(bytearray(content[1024:]), dtype=torch.int32)
    else:
        fail(f"{path}: is not a token shard (magic {magic}, version {version})")
    if len(tokens) != count:
        fail(f"{path}: holds {len(tokens)} tokens, its header says {count}")
    return tokens.to(torch.int64)


class Rows:
    """The stream of all shards, one after another and over again, cut into rows of T tokens."""

    def __init__(self, config: dict[str, Any]) -> None:
        data = config["data"]
        paths: list[str] = []
        for pattern in data["train"]:
            anchor = pathlib.Path(pattern)
            found = sorted(str(path) for path in anchor.parent.glob(anchor.name))
            paths += [path for path in found if path not in paths]
        if not paths:
            fail(f"data.train: {data['train']} matches no file")
        shards = [read_shard(path) for path in paths]
        self.context = config["model"]["context_length"]
        self.masked = data["mask_documents"]
        self.tokens = torch.cat(shards)
        eot = -1 if data["eot_token"] is None else data["eot_token"]
        starts = torch.zeros(len(self.tokens), dtype=torch.bool)
        is_eot = self.tokens == eot
        opens = data["eot"] == "start" or (data["eot"] == "auto" and bool(is_eot[0]))
        if opens:
            starts |= is_eot
        else:
            starts[1:] |= is_eot[:-1]
        begin = 0
        for shard in shards:
            starts[begin] = True
            begin += len(shard)
        self.starts = starts
        self.counts = ~starts | (is_eot if opens else torch.zeros_like(starts))  # whether a token is a target

    def batch(self, first_row: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, targets, and the number of each token's document within its row; all (rows, T)."""
        index = torch.arange(first_row * self.context, (first_row + rows) * self.context) % len(self.tokens)
        following = (index + 1) % len(self.tokens)
        tokens, targets = self.tokens[index], self.tokens[following]
        shape = (rows, self.context)
        if not self.masked:
            return tokens.view(shape), targets.view(shape), torch.zeros(shape, dtype=torch.int64)
        targets = torch.where(self.counts[following], targets, IGNORED)
        documents = self.starts[index].view(shape).cumsum(dim=1)
        return tokens.view(shape), targets.view(shape), documents


def write_random_shard(path: pathlib.Path, vocabulary: int, eot: int, seed: int = 1) -> None:
    """A million ids as frequent as words are (Zipf), in documents of about 400 tokens (log-normal), EOT at each end."""
    generator = torch.Generator().manual_seed(seed)
    count = 1 << 20
    frequency = 1.0 / (torch.arange(vocabulary, dtype=torch.float64) + 2.7)
    tokens = torch.multinomial(frequency, count, replacement=True, generator=generator)
    tokens[tokens == eot] = (eot + 1) % vocabulary
    lengths = torch.exp(5.5 + torch.randn(count // 50, generator=generator)).long().clamp(min=2)
    ends = lengths.cumsum(0) - 1
    tokens[ends[ends < count]] = eot
    if vocabulary <= 65536:
        header, body = (20240520, 1, count), tokens.to(torch.uint16)
    else:
        header, body = (20240801, 7, count), tokens.to(torch.int32)
    path.write_bytes(struct.pack("<256i", *header, *([0] * 253)) + body.numpy().tobytes())


# ---- The model -------------------------------------------------------------------------------------------------------


def alibi_slopes(heads: int) -> Tensor:
    """Press et al. 2022, also for a head count that is no power of two."""
    n2 = 2 ** (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (h + 1) / n2) for h in range(n2)]
    return torch.tensor(slopes + [2.0 ** (-4.0 * (2 * (h - n2) + 1) / n2) for h in range(n2, heads)])


class Attend:
    """How a batch's attention is called: an additive mask or none, keys repeated for the group or not."""

    def __init__(self, is_causal: bool, grouped: bool, group: int) -> None:
        self.is_causal, self.grouped, self.group = is_causal, grouped, group

    def __str__(self) -> str:
        return f"scaled_dot_product_attention({'is_causal' if self.is_causal else 'float mask'}, " + \
            ("no groups" if self.group == 1 else "enable_gqa" if self.grouped else "keys repeated") + ")"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if not self.grouped and self.group > 1:
            k, v = (x.repeat_interleave(self.group, dim=1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if self.is_causal else mask,
                                              is_causal=self.is_causal, enable_gqa=self.grouped and self.group > 1)


class Block(nn.Module):
    def __init__(self, m: dict[str, Any]) -> None:
        super().__init__()
        c, heads, kv_heads, hs = m["d_model"], m["n_heads"], m["n_kv_heads"], m["head_dim"]
        self.heads, self.kv_heads, self.hs, self.eps = heads, kv_heads, hs, m["norm_eps"]
        self.attention_norm = nn.Parameter(torch.ones(c))
        self.qkv = nn.Linear(c, (heads + 2 * kv_heads) * hs, bias=False)
        self.attention_out = nn.Linear(heads * hs, c, bias=False)
        self.mlp_norm = nn.Parameter(torch.ones(c))
        self.gate_up = nn.Linear(c, 2 * m["d_ff"], bias=False)
        self.down = nn.Linear(m["d_ff"], c, bias=False)
        if m["qk_norm"]:
            self.q_norm, self.k_norm = nn.Parameter(torch.ones(hs)), nn.Parameter(torch.ones(hs))

    def forward(self, x: Tensor, attend: Attend, mask: Tensor | None, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        rows, context, c = x.shape
        qkv = self.qkv(F.rms_norm(x, (c,), self.attention_norm, self.eps))
        qkv = qkv.view(rows, context, self.heads + 2 * self.kv_heads, self.hs).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if hasattr(self, "q_norm"):
            q, k = (F.rms_norm(x, (self.hs,), w, self.eps) for x, w in ((q, self.q_norm), (k, self.k_norm)))
        if rope is not None:
            q, k = (rotate(x, *rope) for x in (q, k))
        y = attend(q, k, v, mask).transpose(1, 2).reshape(rows, context, self.heads * self.hs)
        x = x + self.attention_out(y)
        gate, up = self.gate_up(F.rms_norm(x, (c,), self.mlp_norm, self.eps)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


class Gpt(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        m = self.m = config["model"]
        self.embedding = nn.Embedding(m["vocab_size"], m["d_model"])
        self.layers = nn.ModuleList(Block(m) for _ in range(m["n_layers"]))
        self.final_norm = nn.Parameter(torch.ones(m["d_model"]))
        self.head = nn.Linear(m["d_model"], m["vocab_size"], bias=False)
        if m["tie_embeddings"]:
            self.head.weight = self.embedding.weight
        context, hs = m["context_length"], m["head_dim"]
        distance = torch.arange(context)[:, None] - torch.arange(context)[None, :]
        self.causal = torch.where(distance >= 0, 0.0, -math.inf)  # (T, T)
        self.bias = self.causal[None]  # (1 or NH, T, T)
        if m["position"] == "alibi":
            self.bias = self.causal - alibi_slopes(m["n_heads"])[:, None, None] * distance
        self.rope_table = None
        if m["position"] == "rope":
            frequencies = m["rope_theta"] ** (-torch.arange(hs // 2, dtype=torch.float64) / (hs // 2))
            angles = torch.arange(context)[:, None] * torch.cat((frequencies, frequencies))
            self.rope_table = (angles.cos().float(), angles.sin().float())

    def mask(self, documents: Tensor) -> Tensor:
        """(B or 1, NH or 1, T, T), added to the scores."""
        if not bool((documents[:, -1] > documents[:, 0]).any()):
            return self.bias[None]
        other = documents[:, None, :, None] != documents[:, None, None, :]
        return self.bias[None].masked_fill(other, -math.inf)

    def rope(self, documents: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.rope_table is None:
            return None
        first = (documents[:, :, None] == documents[:, None, :]).int().argmax(dim=-1)  # where the document begins
        positions = torch.arange(documents.shape[1]) - first
        cosine, sine = self.rope_table
        return cosine[positions][:, None], sine[positions][:, None]

    def forward(self, tokens: Tensor, targets: Tensor, documents: Tensor, attend: Attend) -> Tensor:
        x = self.embedding(tokens)
        mask = None if attend.is_causal else self.mask(documents)
        rope = self.rope(documents)
        for layer in self.layers:
            x = layer(x, attend, mask, rope)
        logits = self.head(F.rms_norm(x, x.shape[-1:], self.final_norm, self.m["norm_eps"]))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=IGNORED,
                               reduction="sum")

    @torch.no_grad()
    def load(self, path: pathlib.Path) -> None:
        content = memoryview(bytearray(path.read_bytes()))
        (size,) = struct.unpack_from("<Q", content)
        header = json.loads(bytes(content[8:8 + size]))

        def tensor(name: str) -> Tensor:
            begin, end = header[name]["data_offsets"]
            flat = torch.frombuffer(content[8 + size + begin:8 + size + end], dtype=torch.float32)
            return flat.view(header[name]["shape"])

        self.embedding.weight.copy_(tensor("model.embed_tokens.weight"))
        self.final_norm.copy_(tensor("model.norm.weight"))
        if not self.m["tie_embeddings"]:
            self.head.weight.copy_(tensor("lm_head.weight"))
        for number, layer in enumerate(self.layers):
            at = f"model.layers.{number}."
            layer.attention_norm.copy_(tensor(at + "input_layernorm.weight"))
            layer.qkv.weight.copy_(torch.cat([tensor(f"{at}self_attn.{x}_proj.weight") for x in "qkv"]))
            layer.attention_out.weight.copy_(tensor(at + "self_attn.o_proj.weight"))
            layer.mlp_norm.copy_(tensor(at + "post_attention_layernorm.weight"))
            layer.gate_up.weight.copy_(torch.cat([tensor(f"{at}mlp.{x}_proj.weight") for x in ("gate", "up")]))
            layer.down.weight.copy_(tensor(at + "mlp.down_proj.weight"))
            if self.m["qk_norm"]:
                layer.q_norm.copy_(tensor(at + "self_attn.q_norm.weight"))
                layer.k_norm.copy_(tensor(at + "self_attn.k_norm.weight"))


# ---- PyTorch's side --------------------------------------------------------------------------------------------------


def fastest(candidates: dict[str, Callable[[], None]], seconds: float = 0.4) -> str:
    """The name of the candidate with the smallest best time; each runs twice unwatched first."""
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
    model.load(pathlib.Path(job["weights"]))
    parameters = list(model.parameters())
    groups = [{"params": [p for p in parameters if p.dim() == 2], "weight_decay": o["weight_decay"]},
              {"params": [p for p in parameters if p.dim() != 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=o["lr"], betas=(o["beta1"], o["beta2"]), eps=o["eps"], fused=True)
    # Documents differ from row to row; with any mask at all the form must serve them all.
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
        # Nothing but steps in the run, and every step alike.
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
        # One step at a learning rate of 0: its checkpoint holds the initial weights.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="data|step")
    data = commands.add_parser("data", help="write a shard of random tokens, for timing")
    data.add_argument("--vocab-size", type=int, required=True, metavar="V", help="ids are below V; V - 1 is EOT")
    data.add_argument("--output", type=pathlib.Path, required=True, metavar="FILE")
    step = commands.add_parser("step", help="time the training step on both sides")
    step.add_argument("--config", type=pathlib.Path, required=True, metavar="FILE", help="a config of Ingot's")
    step.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for ./train; may be repeated")
    step.add_argument("--train", default=str(ROOT / "train"), metavar="PATH", help="Ingot's program (default: ./train)")
    step.add_argument("--device", choices=["cpu"], default="cpu")
    step.add_argument("--threads", type=int, default=os.cpu_count(), help="on each side (default: all processors)")
    step.add_argument("--rounds", type=int, default=3, help="runs of each side (default: 3)")
    step.add_argument("--steps", type=int, default=12, help="steps of a run, with the warm-up (default: 12)")
    step.add_argument("--warmup", type=int, default=3, help="steps that do not count (default: 3)")
    step.add_argument("--keep-memory", action="store_true",
                      help="tell PyTorch's allocator (glibc's) to keep freed memory, which spares it page faults")
    step.add_argument("--output", type=pathlib.Path, required=True, metavar="DIR", help="for run folders and results")
    commands.add_parser("worker").add_argument("job")
    args = parser.parse_args()
    if args.command == "worker":
        worker(json.loads(args.job))
    elif args.command == "data":
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_random_shard(args.output, args.vocab_size, args.vocab_size - 1)
    else:
        if not 0 <= args.warmup < args.steps or args.rounds < 1 or args.threads < 1:
            fail("--steps must exceed --warmup, and --rounds and --threads be at least 1")
        Comparison(args).run()


if __name__ == "__main__":
    main()
