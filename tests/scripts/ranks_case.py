"""Runs of several processes, started by ./train itself or by hand: what the tests of ranks share. They run on the CPU;
INGOT_RANKS_DEVICE=cuda lets those of RanksOnDevice run on the GPUs of this machine, a rank on each, and skips them
where there are fewer than two."""
from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import unittest

from . import ROOT, TRAIN, run, set_options
from .trainer_case import CONFIG, TrainerCase

DEVICE = os.environ.get("INGOT_RANKS_DEVICE", "cpu")
if DEVICE not in ("cpu", "cuda"):
    raise SystemExit(f"INGOT_RANKS_DEVICE is {DEVICE}: it must be cpu or cuda")
ON_GPUS = DEVICE == "cuda"
# A GPU sums in fp32 as the CPU does. Its bits are the same from run to run in every precision.
IN_FP32 = ["training.precision=fp32"] if ON_GPUS else []

LAUNCHER_VARIABLES = re.compile(
    "(SLURM|OMPI|PMIX?|TORCHELASTIC|MASTER|LOCAL|GROUP|ROLE|INGOT_RUN)_|RANK$|WORLD_SIZE$")
# With a learning rate that does not depend on training.steps, a run of few steps is the beginning of one of many; and
# one that does not end before the test ends it.
ALIKE = ["schedule.type=constant", "schedule.warmup_steps=0"]
ENDLESS = [*ALIKE, "training.steps=1000000"]
SECONDS = 90  # that anything may take, on a machine that has much else to do


def num_gpus() -> tuple[int, str]:
    """The number of GPUs that can be used; and why there are none, if so."""
    cuda = json.loads(run(TRAIN, "info", "--json").stdout)["cuda"]
    return len(cuda["gpus"]), cuda.get("no_gpu_because") or ""


# So many ranks a run can have at most.
MOST_RANKS = num_gpus()[0] if ON_GPUS else 7


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_alive(process: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_for(condition, what: str, seconds: float = SECONDS):
    """Waits for a condition, and returns its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds} s still not: {what}")
        time.sleep(0.005)


class RanksCase(TrainerCase):
    device = "cpu"
    environment: dict[str, str] = {}

    def setUp(self):
        self.started: list[subprocess.Popen] = []
        self.seen: set[int] = set()  # processes of ranks that a launcher started

    def tearDown(self):
        for process in self.started:
            if process.poll() is None:
                self.seen.update(self.children(process))
                process.kill()
        # Before what was printed is read to its end, since ranks that live on hold the pipes.
        for process in filter(is_alive, self.seen):
            os.kill(process, signal.SIGKILL)
        for process in self.started:
            process.communicate()
        wait_for(lambda: not any(map(is_alive, self.seen)), "all ranks have ended")

    def open(self, command, environment=None) -> subprocess.Popen:
        clean = {key: value for key, value in os.environ.items() if not LAUNCHER_VARIABLES.match(key)}
        process = subprocess.Popen([str(word) for word in command], cwd=self.folder, text=True, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, env={**clean, "OMP_NUM_THREADS": "1", **self.environment,
                                        **(environment or {})})
        self.started.append(process)
        return process

    def command(self, name, *arguments, sets=()):
        return [TRAIN, "--config", "config.json", "--device", self.device, *set_options([f"name={name}", *sets]),
                *arguments]

    def launch(self, name, ranks, *arguments, sets=()) -> subprocess.Popen:
        """./train that starts its ranks itself."""
        return self.open(self.command(name, "--gpus", ranks, *arguments, sets=sets))

    def rank_by_hand(self, name, rank, size, port, *arguments, sets=(), before=(), host="127.0.0.1", nonce="n"):
        """One rank of several; the words `before` start its command."""
        return self.open([*before, *self.command(name, *arguments, sets=sets)],
                         {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "MASTER_ADDR": host,
                          "MASTER_PORT": str(port), "INGOT_RUN_NONCE": nonce})

    def ends(self, process, *codes) -> tuple[str, str]:
        output, error = process.communicate(timeout=SECONDS)
        self.assertIn(process.returncode, codes, output + error)
        return output, error

    def run_ranks(self, name, ranks, *arguments, sets=(), code=0) -> tuple[str, str]:
        return self.ends(self.launch(name, ranks, *arguments, sets=sets), code)

    def children(self, process) -> list[int]:
        """The processes of the ranks, by rank. Other children of the launcher, if any, have no RANK."""
        found = {}
        try:
            children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            return []
        for child in children:
            try:
                variables = pathlib.Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            for variable in variables:
                if variable.startswith(b"RANK="):
                    found[int(variable[5:])] = int(child)
        return [found[rank] for rank in sorted(found)]

    def ranks_of(self, process, ranks: int) -> list[int]:
        """Waits until all ranks run."""
        def all_there():
            children = self.children(process)
            return children if len(children) == ranks else None
        children = wait_for(all_there, f"{ranks} ranks run")
        self.seen.update(children)
        return children

    def wait_for_step(self, process, step: int):
        """Waits until the run has printed this step, or has ended. What it prints later is still to be read."""
        for line in process.stdout:
            if line.startswith("step ") and int(line[5:].split("/")[0]) >= step:
                return

    def steps(self, name) -> list[int]:
        return [entry["step"] for entry in self.entries(name)]

    def entries(self, name) -> list[dict]:
        return [json.loads(line) for line in (self.run_folder(name) / "log.jsonl").read_text().splitlines()]

    def manifest(self, name, step) -> dict:
        return json.loads((self.run_folder(name) / f"checkpoints/step-{step:08}/manifest.json").read_text())

    def whole_checkpoints(self, name) -> list[str]:
        return [each for each in self.checkpoints(name) if re.fullmatch("step-[0-9]+", each)]

    def assert_goes_on(self, name, ranks, sets) -> str:
        """Resumes an endless run from its newest checkpoint, which is whole, for some steps: it has the bits of a run
        that was never interrupted. Returns what it printed."""
        last = max(int(each[5:]) for each in self.whole_checkpoints(name)) + 10
        sets = [*sets, *ALIKE, f"training.steps={last}"]
        output, error = self.run_ranks(name, ranks, "--resume", "auto", sets=sets)
        self.assertIn(f"resumed from step {last - 10} ", output)
        self.assertNotIn("damaged", error)
        self.assertEqual(self.checkpoints(name), self.whole_checkpoints(name))  # nothing half-written stays behind
        self.run_ranks(f"{name}-uninterrupted", ranks, sets=sets)
        self.assert_same_bits(name, f"{name}-uninterrupted", last)
        return output

    def compare(self, one, other, tolerance=0.0, code=0) -> str:
        result = subprocess.run([sys.executable, str(ROOT / "scripts/compare_runs.py"), str(self.run_folder(one)),
                                 str(self.run_folder(other)), "--tolerance", str(tolerance)], text=True,
                                capture_output=True)
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result.stdout

    def assert_same_bits(self, one, other, steps: int):
        """All steps, and weights and moments of the last one."""
        self.assertEqual(self.steps(one), list(range(1, steps + 1)))
        self.assertEqual(self.steps(other), list(range(1, steps + 1)))
        self.assertIn(f"{steps} common steps", self.compare(one, other))
        self.assertIn(f"of the checkpoint of step {steps}", self.compare(one, other))


class RanksOnDevice(RanksCase):
    """On the device that INGOT_RANKS_DEVICE names."""
    device = DEVICE

    @classmethod
    def setUpClass(cls):
        if ON_GPUS and MOST_RANKS < 2:
            count, why = num_gpus()
            raise unittest.SkipTest(f"needs two GPUs: {why or f'there is {count}'}")
        super().setUpClass()
        if ON_GPUS:
            # A model of sizes for which kernels are made. What is timed here stays here, so that every run of this
            # class has the same algorithms.
            model = {**CONFIG["model"], "d_model": 64, "head_dim": 32}
            (cls.folder / "config.json").write_text(json.dumps({**CONFIG, "model": model}))
            cls.environment = {"XDG_CACHE_HOME": str(cls.folder / "cache")}
