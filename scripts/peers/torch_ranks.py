"""PyTorch's side of a training step on several GPUs, one process each: what bench_torch_ranks.py starts. Nothing here
is run by itself."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import pathlib
import statistics
import time
from typing import Any, Callable, Iterator

from torch_step import Trainer

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

WARMUP_STEPS = 3


class AloneTrainer(Trainer):
    """Every rank trains a model of its own, and reads the rows that are its own when the ranks train together."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        super().__init__(job)

    def first_row(self, micro_step: int) -> int:
        return (micro_step * self.size + self.rank) * self.micro_batch


class DdpTrainer(AloneTrainer):
    """DistributedDataParallel: whole states everywhere, gradients averaged bucket by bucket during backward."""

    def distribute(self, mode: str) -> Callable[..., Tensor]:
        self.parallel = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        return self.parallel if mode == "off" else torch.compile(self.parallel, mode=mode, dynamic=False)

    def accumulating(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if is_last else self.parallel.no_sync()


class Fsdp2Trainer(AloneTrainer):
    """fully_shard: each layer is a group of its own, whose bf16 weights are kept from forward to backward; fp32
    gradients are reduce-scattered. Layers are compiled one by one, since the collectives stand between them."""

    def distribute(self, mode: str) -> Callable[..., Tensor]:
        if mode != "off":
            for name, layer in list(self.model.layers.named_children()):
                self.model.layers.register_module(name, torch.compile(layer, mode=mode, dynamic=False))
            self.model.loss = torch.compile(self.model.loss, mode=mode, dynamic=False)  # type: ignore[method-assign]
        narrow = None if self.precision == "fp32" else torch.bfloat16
        # The scale of the loss stays fp32: inputs are not cast.
        policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False)
        mesh = init_device_mesh(torch.device(self.device).type, (self.size,))
        for module in (*self.model.layers, self.model):
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        self.precision = "fp32"  # from here on: no autocast, and the masters are the model's own parameters
        return self.model

    @contextlib.contextmanager
    def accumulating(self, is_last: bool) -> Iterator[None]:
        self.model.set_requires_gradient_sync(is_last)  # type: ignore[attr-defined]
        self.model.set_reshard_after_backward(is_last)  # type: ignore[attr-defined]
        self.model.set_is_last_backward(is_last)  # type: ignore[attr-defined]
        yield

    def clip(self) -> Tensor:
        return super().clip().full_tensor()  # type: ignore[attr-defined]


TRAINERS = {"one": AloneTrainer, "alone": AloneTrainer, "ddp": DdpTrainer, "fsdp2": Fsdp2Trainer}


class Clock:
    """Marks the ends of steps, with events on a GPU, where the host is a step ahead and no more."""

    def __init__(self, is_gpu: bool) -> None:
        self.is_gpu = is_gpu

    def synchronize(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def run(self, steps: int, step: Callable[[], Any]) -> tuple[list[float], tuple[float, float]]:
        """Returns the seconds of each step, and the window."""
        self.synchronize()
        begin = time.time()
        marks = [self.mark()]
        for _ in range(steps):
            step()
            marks.append(self.mark())
            if self.is_gpu:
                marks[-2].synchronize()
        self.synchronize()
        end = time.time()
        seconds = [a.elapsed_time(b) / 1e3 if self.is_gpu else b - a for a, b in zip(marks, marks[1:])]
        return seconds, (begin, end)

    def mark(self) -> Any:
        if not self.is_gpu:
            return time.time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def wait_for_all() -> None:
    """Waits for the hosts of all ranks. NCCL's barrier would keep a waiting GPU busy, beside one that is measured."""
    dist.all_reduce(torch.zeros(1))


def from_first(value: int) -> int:
    """All ranks get the number of the first one, through their hosts."""
    box = torch.tensor([value])
    dist.broadcast(box, 0)
    return int(box)


class Bench:
    """One rank of all measurements: it makes the trainers once, and runs phases of them."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.rank, self.size = job, dist.get_rank(), dist.get_world_size()
        self.is_gpu = job["device"] == "cuda"
        self.clock = Clock(self.is_gpu)
        self.trainers: dict[str, AloneTrainer] = {}
        self.state_bytes: dict[str, int] = {}
        self.first_steps: dict[str, list[float]] = {}
        self.numbers: dict[str, Iterator[int]] = {}
        self.compile_seconds: dict[str, float] = {}
        for way in job["ways"]:
            if way != "one":  # which runs the trainer of "alone" on the first rank
                self.prepare(way)

    def prepare(self, way: str) -> None:
        begin, before = time.time(), self.allocated()
        trainer = self.trainers[way] = TRAINERS[way](self.job)
        self.numbers[way] = itertools.count()
        # The first step of all has the initial weights, so that its loss and norm show whether all do the same work.
        trainer.micro_steps = 1
        loss, norm = trainer.step(next(self.numbers[way]))
        self.first_steps[way] = [loss.item(), norm.item()]
        for micro_steps in self.job["micro_steps"]:  # what compiles on the way is no part of any phase
            trainer.micro_steps = micro_steps
            for _ in range(WARMUP_STEPS):
                trainer.step(next(self.numbers[way]))
        self.clock.synchronize()
        self.compile_seconds[way] = time.time() - begin
        self.state_bytes[way] = self.allocated() - before

    def allocated(self) -> int:
        return torch.cuda.memory_allocated() if self.is_gpu else 0

    def phase(self, way: str, micro_steps: int, seconds: float, settle: float) -> dict[str, Any] | None:
        """Runs for about so many seconds after some to settle, the same number of steps on all ranks."""
        key = "alone" if way == "one" else way
        trainer = self.trainers[key]
        trainer.micro_steps = micro_steps
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats()
        before = self.allocated()
        wait_for_all()
        result = None
        if way != "one" or self.rank == 0:
            result = self.measure(trainer, key, way == "one", seconds, settle)
            result["memory_bytes"] = torch.cuda.max_memory_allocated() - before + self.state_bytes[key] \
                if self.is_gpu else None
        wait_for_all()
        return result

    def measure(self, trainer: AloneTrainer, key: str, is_one: bool, seconds: float, settle: float) -> dict[str, Any]:
        agree: Callable[[int], int] = (lambda value: value) if is_one else from_first

        def step() -> None:
            trainer.step(next(self.numbers[key]))

        pace, _ = self.clock.run(WARMUP_STEPS, step)
        pace, _ = self.clock.run(agree(max(1, math.ceil(settle / statistics.median(pace)))), step)
        steps, window = self.clock.run(agree(max(3, math.ceil(seconds / statistics.median(pace)))), step)
        tokens = trainer.micro_steps * trainer.micro_batch * self.job["config"]["model"]["context_length"]
        return {"tokens_per_second": len(steps) * tokens / (window[1] - window[0]), "steps": len(steps),
                "median_step_seconds": statistics.median(steps), "window": window}


def worker(job: dict[str, Any]) -> None:
    """Runs one rank; writes what it measured to job["result"]."""
    rank, is_gpu = job["rank"], job["device"] == "cuda"
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    if is_gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if is_gpu else "gloo", init_method=f"file://{job['rendezvous']}",
                            rank=rank, world_size=job["ranks"])
    bench = Bench(job)
    phases = [bench.phase(**phase) for phase in job["phases"]]
    pathlib.Path(job["result"]).write_text(json.dumps({
        "first_steps": bench.first_steps, "compile_seconds": bench.compile_seconds, "phases": phases,
        "device": torch.cuda.get_device_name() if is_gpu else "CPU",
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if is_gpu else None,
        "nccl_variables": {key: value for key, value in os.environ.items() if key.startswith("NCCL_")}}))
    dist.destroy_process_group()
