"""What the tests of scripts/ingot_torch.py share: devices and types, attention by its definition, comparisons.

They need a Python with PyTorch and NumPy, and libingot.so, in the repository root or where INGOT_LIBRARY says;
without, they are skipped. On a GPU bf16, fp16 and fp32 are tested, else fp32 on the CPU. A result may be twice as far
from float64 (relative L2 norm of the whole tensor) as the definition written in PyTorch in the same precision.
"""

import math
import os
import pathlib
import unittest

from . import ROOT, gguf_case

LIBRARY = pathlib.Path(os.environ.get("INGOT_LIBRARY") or ROOT / "libingot.so")

try:
    import torch
    HAS_TORCH = True
except ImportError:
    HAS_TORCH = False
IS_READY = HAS_TORCH and LIBRARY.is_file()
HAS_GPU = False
if IS_READY:
    import ingot_library
    import ingot_torch
    HAS_GPU = torch.cuda.is_available() and ingot_library.library().ingot_has_cuda() == 1
    DEVICE = "cuda" if HAS_GPU else "cpu"
    TYPES = [torch.bfloat16, torch.float16, torch.float32] if HAS_GPU else [torch.float32]
    SHORT = TYPES[0]


def relative_error(actual, exact):
    """Of the whole tensor; infinity for NaN."""
    error = (actual.double() - exact.double()).norm() / exact.double().norm().clamp(min=1e-300)
    return error.item() if torch.isfinite(error) else math.inf


def alibi_slopes(heads):
    return torch.tensor(gguf_case.alibi_slopes(heads), dtype=torch.float32, device=DEVICE)


def definition(q, k, v, slopes=None, causal=True, boundaries=None):
    """Attention as it is written in a paper, (B, T, heads, HS), in the precision of q; out and lse."""
    T, groups = q.shape[1], q.shape[2] // k.shape[2]
    k, v = (tensor.repeat_interleave(groups, 2) for tensor in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
    i = torch.arange(T, device=q.device)
    if slopes is not None:
        scores = scores - (slopes.to(q.dtype)[:, None, None] * (i[:, None] - i).abs()).to(q.dtype)
    hidden = i[:, None] < i if causal else torch.zeros(T, T, dtype=torch.bool, device=q.device)
    if boundaries is not None:
        document = torch.bucketize(i, torch.tensor(boundaries[1:], device=q.device), right=True)
        hidden = hidden | (document[:, None] != document)
    scores = scores.masked_fill(hidden, -math.inf)
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v), scores.logsumexp(-1)


def cu(boundaries):
    return torch.tensor(boundaries, dtype=torch.int32, device=DEVICE)


def results(q, k, v, dout, **arguments):
    """out, lse, dq, dk, dv"""
    leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    out, lse = ingot_torch.attention(*leaves, return_lse=True, **arguments)
    return [out.detach(), lse, *torch.autograd.grad(out, leaves, dout)]


@unittest.skipUnless(IS_READY, "no PyTorch, or no libingot.so (INGOT_LIBRARY)")
class TorchCase(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(5)

    def assert_same(self, actual, expected, what=""):
        for number, (a, e) in enumerate(zip(actual, expected)):
            self.assertTrue(torch.equal(a, e), f"{what} differs: result {number}")

    def assert_close(self, actual, plain, exact, what):
        """Twice the error of the plain version, and a floor of 1e-5 as for a plain version that happens to be exact."""
        bound = 2 * relative_error(plain, exact) + 1e-5
        error = relative_error(actual, exact)
        if not error <= bound:
            self.fail(f"{what}: an error of {error:.2e}, more than {bound:.2e}")
