"""Every op of libingot.so as the first thing that a thread does, in processes of their own (ingot_torch_process.py).

What a process sets up once (a GPU's context, attributes of kernels, addresses) hides in a process that has done it. As
test_ingot_torch.py, which runs this too where another Python has PyTorch. On a GPU all of it runs there, on the second
GPU too where there are two; else a part of it on the CPU.

The fault that it was written for: a kernel of Hopper could not be started by autograd's thread where that was the first
to start one, since the thread had no current context.
"""

import concurrent.futures
import os
import subprocess
import sys
import unittest

from . import ROOT, ingot_torch_case
from .ingot_torch_case import HAS_GPU, TorchCase

if ingot_torch_case.IS_READY:
    import torch
    from . import ingot_torch_process
    from .ingot_torch_process import CANNOT, KINDS, OPS


def rows():
    """Of (op, kind): all dtypes and kernels where threads differ, one dtype where processes do."""
    return [(op, kind) for op in OPS for kind in KINDS
            if kind not in ("graph", "fork") or "bf16" in op]


def run(op, kind, device):
    """None if it went well, else what went wrong."""
    try:
        result = subprocess.run([sys.executable, "-m", "tests.scripts.ingot_torch_process", op, kind, device], cwd=ROOT,
                                text=True, capture_output=True, timeout=240)
    except subprocess.TimeoutExpired:
        return "no end"
    if result.returncode in (0, CANNOT):
        return None
    lines = (result.stderr or result.stdout).strip().splitlines()
    return f"exit code {result.returncode}: {lines[-1] if lines else 'no line'}"


class FreshProcesses(TorchCase):
    def check(self, device, table):
        # Starting takes most of the time, and many can start at once.
        with concurrent.futures.ThreadPoolExecutor(max_workers=min(12, os.cpu_count() or 1)) as pool:
            outcomes = pool.map(lambda row: run(*row, device), table)
            for (op, kind), wrong in zip(table, outcomes):
                with self.subTest(op=op, kind=kind, device=device):
                    self.assertIsNone(wrong)

    def test_on_the_first_gpu(self):
        if not HAS_GPU:
            self.skipTest("no GPU")
        self.check("cuda:0", rows())

    def test_on_the_second_gpu(self):
        if not HAS_GPU or torch.cuda.device_count() < 2:
            self.skipTest("fewer than two GPUs")
        self.check("cuda:1", rows())

    @unittest.skipIf(HAS_GPU, "there is a GPU")
    def test_on_the_cpu(self):
        self.check("cpu", [("attention fp32 64", "fork"), ("raw attention fp32 automatic", "thread"),
                           ("rms_norm fp32", "autograd"), ("rope_backward fp32", "main")])
