"""The collectives of GPUs, by as many processes as ranks (tests/collectives_rank.cpp): every sum has the bits of the
order of the ranks, and every rank gets every weight.

Ranks that share one GPU copy to and from each other's memory as those of several GPUs do; NCCL wants a GPU for each.
The words of INGOT_RANK_WRAPPER stand before the command of each rank, and INGOT_FEW_ROUNDS=1 keeps it short:

    INGOT_FEW_ROUNDS=1 INGOT_RANK_WRAPPER="compute-sanitizer --tool memcheck --error-exitcode 9" \\
        python3 -m unittest -v tests/scripts/test_collectives_cuda.py

Seen to catch, with a stand-in for CUDA's runtime on the CPU in place of the GPU: a chunk that is overwritten before it
is added, or added before it is copied; sums that are read before they are added; a rank that does not wait until
another's gradients or weights are there; sums that begin with the own part; the last chunk of a range left out.
"""

import json
import os
import pathlib
import shlex
import subprocess
import time
import unittest

from . import ROOT, TRAIN
from .inputs import temporary_folder
from .ranks_case import LAUNCHER_VARIABLES, free_port

PROGRAM = str(pathlib.Path(os.environ.get("INGOT_BUILD_DIR", ROOT / "build/release")) / "tests/collectives_rank")
WRAPPER = shlex.split(os.environ.get("INGOT_RANK_WRAPPER", ""))
IS_SHORT = os.environ.get("INGOT_FEW_ROUNDS") == "1"
SECONDS = 280 if WRAPPER else 130


def info():
    return json.loads(subprocess.run([TRAIN, "info", "--json"], capture_output=True, text=True, check=True).stdout)


INFO = info()
NUM_GPUS = len(INFO["cuda"]["gpus"])


@unittest.skipIf(NUM_GPUS == 0, f"needs a GPU: {INFO['cuda'].get('no_gpu_because')}")
class Collectives(unittest.TestCase):
    def setUp(self):
        self.processes = []
        self.folder = temporary_folder(self)

    def tearDown(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def check(self, num_ranks, *arguments, **variables):
        """Runs all ranks, and returns what they have printed. Where one fails, the others may wait for ever."""
        clean = {key: value for key, value in os.environ.items() if not LAUNCHER_VARIABLES.match(key)}
        port = str(free_port())
        outputs = [self.folder / f"rank{rank}" for rank in range(num_ranks)]
        for rank, output in enumerate(outputs):
            environment = {"RANK": str(rank), "WORLD_SIZE": str(num_ranks), "LOCAL_RANK": str(rank),
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "INGOT_RUN_NONCE": "n"}
            with output.open("w") as file:
                self.processes.append(subprocess.Popen([*WRAPPER, PROGRAM, *arguments], stdout=file, stderr=file,
                                                       env={**clean, **environment, **variables}))
        deadline = time.monotonic() + SECONDS
        codes = [None]
        while None in codes and time.monotonic() < deadline and not any(codes):
            time.sleep(0.05)
            codes = [process.poll() for process in self.processes]
        time.sleep(1 if any(codes) else 0)  # a moment for the others to say what they have seen
        text = "\n".join(f"rank {rank}: {output.read_text()}" for rank, output in enumerate(outputs))
        if "this build has no NCCL" in text:
            self.skipTest("needs a build with NCCL")
        self.assertEqual(codes, [0] * num_ranks, text)
        return text

    def rounds(self, buckets):
        return {"large": "2" if IS_SHORT else "4", "many": "2" if IS_SHORT else "12"}[buckets]

    def copies(self, num_ranks, buckets):
        self.assertIn("copies alone", self.check(num_ranks, "copies", buckets, self.rounds(buckets)))

    def ranks(self, num_ranks, collectives, said):
        if NUM_GPUS < num_ranks:
            self.skipTest(f"needs {num_ranks} GPUs, since NCCL wants one for each rank: there are {NUM_GPUS}")
        for buckets in ("large", "many"):
            with self.subTest(buckets):
                self.processes = []
                self.assertIn(said, self.check(num_ranks, "ranks", buckets, self.rounds(buckets),
                                               INGOT_COLLECTIVES=collectives))

    def test_two_ranks_copy_large_buckets(self):
        self.copies(2, "large")

    def test_two_ranks_copy_many_buckets(self):
        self.copies(2, "many")

    def test_three_ranks_copy_large_buckets(self):
        self.copies(3, "large")

    def test_three_ranks_copy_many_buckets(self):
        self.copies(3, "many")

    def test_one_rank_by_nccl(self):
        """It sends to itself what it owns, and adds what it gets."""
        self.ranks(1, "nccl", "1 GPUs, all by NCCL")

    def test_two_ranks_by_nccl(self):
        self.ranks(2, "nccl", "2 GPUs, all by NCCL")

    def test_three_ranks_by_nccl(self):
        self.ranks(3, "nccl", "3 GPUs, all by NCCL")

    def test_two_ranks_by_nccl_and_copies(self):
        self.ranks(2, "auto", "gradients and weights by their copy engines")


if __name__ == "__main__":
    unittest.main()
