"""scripts/ingot_torch.py against PyTorch: attention's values, gradients and bits, and what is refused.

Needs a Python with PyTorch and NumPy, named by INGOT_TORCH_PYTHON if it is not the one that runs this; skipped
without.
From a folder that holds libingot.so, scripts/ and tests/ side by side, on a GPU if there is one:

    python3 -m unittest -v tests/scripts/test_ingot_torch*.py

Each class names what it was seen to catch.
"""

import itertools
import math
import os
import pathlib
import subprocess
import unittest
import warnings

from . import ROOT, ingot_torch_case
from .ingot_torch_case import HAS_GPU, HAS_TORCH, TorchCase, alibi_slopes, cu, definition, relative_error, results

if ingot_torch_case.IS_READY:
    import torch
    import torch.utils.checkpoint
    import ingot_library
    import ingot_torch
    from .ingot_torch_case import DEVICE, SHORT, TYPES


class OtherPython(unittest.TestCase):
    @unittest.skipIf(HAS_TORCH, "this Python has PyTorch, and runs the tests itself")
    def test_elsewhere(self):
        python = os.environ.get("INGOT_TORCH_PYTHON")
        if not python:
            self.skipTest("no PyTorch: name a Python that has it by INGOT_TORCH_PYTHON")
        tests = sorted(str(path) for path in pathlib.Path(__file__).parent.glob("test_ingot_torch*.py"))
        result = subprocess.run([python, "-m", "unittest", "-v", *tests], cwd=ROOT, text=True, capture_output=True)
        self.assertEqual(result.returncode, 0, result.stderr)


class Attention(TorchCase):
    """Seen to catch: causal and full exchanged, a document's end taken from its begin, slopes not repeated where a
    batch stands as heads, dk and dv exchanged, boundaries searched from the left, the scale left out, lse with batch
    and heads exchanged, strides of axes of one element taken at their word, attention traced by torch.compile, a
    second derivative without an error."""

    def layouts(self, B, T, NH, NKV, HS, dtype):
        """The same numbers, lying in memory in other ways."""
        fused = torch.randn(B, T, NH + 2 * NKV, HS, device=DEVICE).to(dtype)
        slices = list(fused.split([NH, NKV, NKV], 2))
        yield "slices of one buffer", slices
        yield "heads before tokens", [x.transpose(1, 2).contiguous().transpose(1, 2) for x in slices]
        yield "one of each", [slices[0], *[x.transpose(1, 2).contiguous().transpose(1, 2) for x in slices[1:]]]

    def check(self, q, k, v, what, boundaries=None, slopes=None, causal=True):
        dout = torch.randn(q.shape, device=DEVICE).to(q.dtype)
        packed = {} if boundaries is None else {"cu_seqlens": cu(boundaries)}
        actual = results(q, k, v, dout, alibi_slopes=slopes, causal=causal, **packed)
        references = []
        for dtype in (q.dtype, torch.float64):
            leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
            out, lse = definition(*leaves, slopes, causal, boundaries)
            references.append([out, lse, *torch.autograd.grad(out, leaves, dout.to(dtype))])
        for name, a, plain, exact in zip("out lse dq dk dv".split(), actual, *references):
            self.assertEqual((name, a.shape), (name, exact.shape))
            self.assert_close(a, plain, exact, f"{name}, {what}")
        return actual

    def test_definition(self):
        for dtype, (B, T, NH, NKV, HS), alibi, causal in itertools.product(
                TYPES, [(2, 131, 4, 2, 64), (3, 64, 3, 1, 32), (1, 200, 6, 6, 96), (2, 129, 4, 1, 128)], [False, True],
                [True, False]):
            slopes = alibi_slopes(NH) if alibi else None
            first = None
            for layout, (q, k, v) in self.layouts(B, T, NH, NKV, HS, dtype):
                what = f"{dtype}, {(B, T, NH, NKV, HS)}, ALiBi {alibi}, causal {causal}, {layout}"
                torch.manual_seed(6)
                actual = self.check(q, k, v, what, slopes=slopes, causal=causal)
                if B == 1:  # one sequence is one sequence, however it lies
                    first = first or actual
                    self.assert_same(actual, first, what)

    def test_documents(self):
        NH, NKV, HS = 4, 2, 64
        for dtype, boundaries, alibi, causal in itertools.product(
                TYPES, [[0, 1, 2, 130, 261], [0, 64, 192, 200], [0, 77]], [False, True], [True, False]):
            q, k, v = next(self.layouts(1, boundaries[-1], NH, NKV, HS, dtype))[1]
            self.check(q, k, v, f"{dtype}, {boundaries}, ALiBi {alibi}, causal {causal}", boundaries,
                       alibi_slopes(NH) if alibi else None, causal)

    def test_packed_documents_are_each_alone(self):
        # Where a document begins at a multiple of the tiles, its tiles are the same: so are the bits. Between them lie
        # documents without a token, which are as if they were not there.
        boundaries, lengths = [0, 0, 128, 128, 128, 384, 512, 512], [128, 256, 128]
        for dtype in TYPES:
            fused = torch.randn(512, 8, 64, device=DEVICE).to(dtype)
            dout = torch.randn(512, 4, 64, device=DEVICE).to(dtype)
            arguments = {"alibi_slopes": alibi_slopes(4)}
            packed = results(*fused.split([4, 2, 2], 1), dout, cu_seqlens=cu(boundaries), **arguments)
            start = 0
            for length in lengths:
                rows = slice(start, start + length)
                alone = results(*[x[None] for x in fused[rows].split([4, 2, 2], 1)], dout[None, rows], **arguments)
                part = [x[:, rows] if number == 1 else x[rows] for number, x in enumerate(packed)]
                self.assert_same(part, [x[0] for x in alone], f"{dtype}, the document at {start}")
                start += length

    def test_documents_do_not_see_each_other(self):
        boundaries, other = [0, 50, 133, 300], slice(50, 133)
        for dtype in TYPES:
            fused = torch.randn(300, 8, 64, device=DEVICE).to(dtype)
            changed = fused.clone()
            changed[other] = 3 * torch.randn(83, 8, 64, device=DEVICE).to(dtype)
            dout = torch.randn(300, 4, 64, device=DEVICE).to(dtype)
            a, b = (results(*x.split([4, 2, 2], 1), dout, cu_seqlens=cu(boundaries)) for x in (fused, changed))
            for rows in (slice(0, 50), slice(133, 300)):
                self.assert_same([x[:, rows] if n == 1 else x[rows] for n, x in enumerate(a)],
                                 [x[:, rows] if n == 1 else x[rows] for n, x in enumerate(b)], str(dtype))

    def test_bits_do_not_depend_on_memory_or_time(self):
        for dtype in TYPES:
            fused = torch.randn(2, 260, 8, 64, device=DEVICE).to(dtype)
            dout = torch.randn(2, 260, 4, 64, device=DEVICE).to(dtype)
            views = list(fused.split([4, 2, 2], 2))
            first = results(*views, dout)
            for _ in range(5):
                self.assert_same(results(*views, dout), first, "the same again")
            self.assert_same(results(*[x.contiguous() for x in views], dout), first, "copies of the views")
            any_order = results(*views, dout, deterministic=False)
            self.assert_same(any_order[:2] + any_order[3:], first[:2] + first[3:], "all but dq, in any order")
            self.assertLess(relative_error(any_order[2], first[2]), 1e-2 if dtype != torch.float32 else 1e-5)

    def test_gradients_reach_a_fused_buffer(self):
        fused = torch.randn(2, 70, 8 * 64, device=DEVICE).to(SHORT).requires_grad_()
        q, k, v = (x.unflatten(-1, (-1, 64)) for x in fused.split([4 * 64, 2 * 64, 2 * 64], -1))
        out = ingot_torch.attention(q, k, v)
        out.float().sum().backward()  # the gradient that arrives is expanded from one number
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        expected = torch.autograd.grad(ingot_torch.attention(*leaves), leaves, torch.ones_like(out))
        self.assertTrue(torch.equal(fused.grad, torch.cat([x.flatten(2) for x in expected], -1)))

    def test_strides_of_axes_of_one_element(self):
        # They say nothing, but a kernel would look at them.
        odd = torch.randn(50 * 64, device=DEVICE).to(SHORT).as_strided((1, 50, 1, 64), (7, 64, 3, 1))
        self.assert_same(results(odd, odd, odd, odd), results(*[odd.clone(memory_format=torch.contiguous_format)] * 4))

    def test_gradients_that_cannot_be_read_in_place(self):
        q = torch.randn(2, 70, 4, 64, device=DEVICE).to(SHORT)
        dout = torch.randn(2, 70, 4, 64, device=DEVICE).to(SHORT)
        strange = dout.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
        constant = dout[:1, :1, :1, :1].expand(2, 70, 4, 64)
        self.assert_same(results(q, q, q, strange), results(q, q, q, dout))
        self.assert_same(results(q, q, q, constant), results(q, q, q, constant.contiguous()))

    def test_lse(self):
        q = torch.randn(60, 4, 32, device=DEVICE).to(SHORT)
        out, lse = ingot_torch.attention(q, q, q, cu_seqlens=cu([0, 20, 60]), return_lse=True)
        self.assertEqual((out.shape, lse.shape, lse.dtype), (q.shape, (4, 60), torch.float32))
        self.assertFalse(lse.requires_grad)
        batch, lse = ingot_torch.attention(*[q.view(3, 20, 4, 32)] * 3, return_lse=True)
        self.assertEqual((batch.shape, lse.shape), ((3, 20, 4, 32), (3, 4, 20)))

    def test_nothing_to_attend(self):
        q = torch.zeros(0, 4, 64, device=DEVICE, dtype=SHORT)
        out, lse, *gradients = results(q, q, q, q, cu_seqlens=cu([0, 0, 0]))
        self.assertEqual([x.shape for x in (out, lse, *gradients)], [(0, 4, 64), (4, 0)] + [(0, 4, 64)] * 3)

    def test_scale(self):
        q, k, v = torch.randn(3, 1, 50, 2, 64, device=DEVICE).to(SHORT)
        half = ingot_torch.attention(q, k, v, softmax_scale=0.0625)
        self.assertTrue(torch.equal(half, ingot_torch.attention(q / 2, k, v, softmax_scale=0.125)))
        usual = ingot_torch.attention(q, k, v)
        self.assertTrue(torch.equal(usual, ingot_torch.attention(q, k, v, softmax_scale=0.125)))

    def test_finite_differences(self):
        # In double on the CPU, whatever else is there.
        q, k, v = (torch.randn(2, 9, heads, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
        slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
        self.assertTrue(torch.autograd.gradcheck(
            lambda q, k, v: ingot_torch.attention(q, k, v, alibi_slopes=slopes), (q, k, v)))
        documents = torch.tensor([0, 3, 3, 9], dtype=torch.int32)
        self.assertTrue(torch.autograd.gradcheck(
            lambda q, k, v: ingot_torch.attention(q, k, v, cu_seqlens=documents, causal=False),
            tuple(x.detach()[0].requires_grad_() for x in (q, k, v))))

    def test_no_second_derivative(self):
        # Also where the loss is linear in the result, so that no gradient that arrives requires one.
        q, x = (torch.randn(*shape, device=DEVICE, requires_grad=True) for shape in ((1, 9, 4, 32), (6, 32)))
        weight = torch.ones(32, device=DEVICE)
        targets = torch.zeros(6, dtype=torch.int64, device=DEVICE)
        for name, leaf, function in [
                ("attention", q, lambda: ingot_torch.attention(q, q, q)),
                ("rms_norm", x, lambda: ingot_torch.rms_norm(x, weight)),
                ("swiglu", x, lambda: ingot_torch.swiglu(x)),
                ("cross_entropy", x, lambda: ingot_torch.cross_entropy(x, targets))]:
            for loss in (lambda: function().sum(), lambda: function().square().sum()):
                with self.subTest(name), self.assertRaisesRegex(RuntimeError, "no double backward.*create_graph=True"):
                    torch.autograd.grad(loss(), leaf, create_graph=True)
            with self.subTest(name), self.assertRaisesRegex(RuntimeError, "no double backward"):
                gradient, = torch.autograd.grad((leaf * function().sum()).sum(), leaf, create_graph=True)
                (function().sum() + gradient.square().sum()).backward()
            # A graph that is kept is no derivative of a derivative.
            out = function().sum()
            first, = torch.autograd.grad(out, leaf, retain_graph=True)
            self.assert_same(torch.autograd.grad(out, leaf), [first], name)
            # Nor is a forward pass that runs again within the backward pass.
            for use_reentrant in (True, False):
                leaf.grad = None
                again = torch.utils.checkpoint.checkpoint(lambda _: function(), leaf, use_reentrant=use_reentrant)
                again.sum().backward()
                self.assert_same([leaf.grad], [first], f"{name}, checkpoint")
                leaf.grad = None
        small = torch.randn(1, 4, 2, 4, dtype=torch.float64, requires_grad=True)
        with self.assertRaisesRegex(RuntimeError, "no double backward"):
            torch.autograd.gradgradcheck(lambda q: ingot_torch.attention(q, q, q), small)

    def test_slopes_that_favour_far_keys(self):
        # Head sizes of each kernel.
        for dtype, HS, causal in itertools.product(TYPES, (32, 64, 128), (True, False)):
            q, k, v = next(self.layouts(1, 500, 4, 2, HS, dtype))[1]
            self.check(q, k, v, f"{dtype}, {HS}, causal {causal}", slopes=-alibi_slopes(4), causal=causal)

    def test_autocast(self):
        q = torch.randn(1, 33, 4, 64, device=DEVICE, requires_grad=True)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            out = ingot_torch.attention(q, q, q)
            narrow = ingot_torch.attention(*[q.bfloat16()] * 3)
        out.sum().backward()
        self.assertEqual(out.dtype, torch.bfloat16 if HAS_GPU else torch.float32)
        self.assertEqual((q.grad.dtype, narrow.dtype), (torch.float32, out.dtype))
        rounded = q.to(out.dtype)
        self.assertTrue(torch.equal(out, ingot_torch.attention(rounded, rounded, rounded)))

    def test_under_torch_compile(self):
        def work(q):
            return ingot_torch.attention(q * 2, q, q) + ingot_torch.swiglu(torch.cat([q, q], -1))

        q = torch.randn(1, 20, 2, 64, device=DEVICE).to(SHORT).requires_grad_()
        compiled = torch.compile(work, backend="eager")
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Dynamo does not know")
            self.assert_same([compiled(q), *torch.autograd.grad(compiled(q).sum(), q)],
                             [work(q), *torch.autograd.grad(work(q).sum(), q)])

    @unittest.skipUnless(HAS_GPU, "no GPU")
    def test_no_wait_and_a_graph(self):
        q = torch.randn(300, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        boundaries, dout = cu([0, 100, 300]), torch.randn(300, 4, 64, device="cuda", dtype=torch.bfloat16)

        def work(q=q):
            out = ingot_torch.attention(q, q, q, cu_seqlens=boundaries, alibi_slopes=slopes)
            return out, torch.autograd.grad(out, q, dout)[0]

        slopes = alibi_slopes(4)
        work()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            expected = work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.assert_same(work(), expected, "on another stream")
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            # A leaf of the captured stream: autograd ties a leaf to the stream of its first use.
            captured = work(q.detach().requires_grad_())
        # Other boundaries: what is replayed reads them where they lie.
        boundaries.copy_(cu([0, 17, 300]))
        graph.replay()
        self.assert_same(captured, work(), "replayed")


class Refusals(TorchCase):
    """Each with words that say what would do. Seen to catch: the checks of cu_seqlens' dtype, of the ABI's version
    and (in the library) of a struct's size taken out, targets not kept outside of the vocabulary when they become 32
    bits."""

    def refused(self, words, function, *arguments, error=ValueError, **named):
        with self.assertRaises(error) as caught:
            function(*arguments, **named)
        self.assertIn(words, str(caught.exception))
        self.assertNotIn("\n", str(caught.exception))

    def test_attention(self):
        q = torch.randn(2, 40, 4, 64, device=DEVICE).to(SHORT)
        packed, attention = q[0], ingot_torch.attention
        table = [
            ("use (B, T, NH, HS), or packed (N, NH, HS) with cu_seqlens", (packed, packed, packed), {}),
            ("as many keys as queries", (q, q[:, :30], q[:, :30]), {}),
            ("k and v not at all", (q, q, q[:, :, :2]), {}),
            ("4 query heads are not a multiple of 3", (q, q[:, :, :3], q[:, :, :3]), {}),
            ("use one dtype and one device", (q, q.double(), q.double()), {}),
            ("attention in torch.int32", [q.int()] * 3, {}),
            ("head size 33", [torch.zeros(1, 8, 2, 33, device=DEVICE, dtype=SHORT)] * 3, {}),
            ("use q.contiguous()", (q.transpose(2, 3).contiguous().transpose(2, 3), q, q), {}),
            ("documents are packed into one row", (q, q, q), {"cu_seqlens": cu([0, 40])}),
            ("use int32 (documents + 1)", (packed, packed, packed), {"cu_seqlens": cu([0, 40]).long()}),
            ("use int32 (documents + 1)", (packed, packed, packed), {"cu_seqlens": cu([0])}),
            ("use float32 (4,)", (q, q, q), {"alibi_slopes": alibi_slopes(2)}),
            ("use float32 (4,)", (q, q, q), {"alibi_slopes": alibi_slopes(4).double()}),
            ("use alibi_slopes.detach()", (q, q, q), {"alibi_slopes": alibi_slopes(4).requires_grad_()}),
            ("use a finite one above 0", (q, q, q), {"softmax_scale": 0.0}),
            ("use a finite one above 0", (q, q, q), {"softmax_scale": math.nan}),
        ]
        if HAS_GPU:
            padded = torch.zeros(2, 40, 4, 68, device=DEVICE, dtype=SHORT)[..., :64]
            shifted = torch.zeros(2 * 40 * 4 * 64 + 1, device=DEVICE, dtype=SHORT)[1:].view(2, 40, 4, 64)
            table += [("multiples of 8 elements: use k.contiguous()", (q, padded, q), {}),
                      ("a multiple of 16 bytes", (q, q, shifted), {}),
                      ("use one of (32, 64, 96, 128)", [q[..., :48].contiguous()] * 3, {}),
                      ("use bfloat16 or float16 or float32", [q.double()] * 3, {}),
                      ("use int32 (documents + 1) on cuda", [packed] * 3, {"cu_seqlens": cu([0, 40]).cpu()})]
        else:
            table += [("use float32 or float64", [q.bfloat16()] * 3, {}),
                      ("begins with 0, ends with the number of tokens (40)", [packed] * 3, {"cu_seqlens": cu([0, 39])}),
                      ("does not decrease", [packed] * 3, {"cu_seqlens": cu([0, 20, 10, 40])}),
                      ("begins with 0", [packed] * 3, {"cu_seqlens": cu([1, 40])})]
        for words, arguments, named in table:
            with self.subTest(words):
                self.refused(words, attention, *arguments, **named)

    def test_library(self):
        load = ingot_library.library.__wrapped__
        saved = os.environ.get("INGOT_LIBRARY")
        try:
            os.environ["INGOT_LIBRARY"] = "/nowhere/libingot.so"
            self.refused("/nowhere/libingot.so does not exist", load, error=RuntimeError)
            os.environ["INGOT_LIBRARY"] = __file__
            self.refused("cannot be loaded", load, error=RuntimeError)
        finally:
            os.environ.pop("INGOT_LIBRARY")
            if saved is not None:
                os.environ["INGOT_LIBRARY"] = saved
        version, ingot_library.ABI_VERSION = ingot_library.ABI_VERSION, 99
        try:
            self.refused("this file version 99", load, error=RuntimeError)
        finally:
            ingot_library.ABI_VERSION = version

    def test_a_caller_of_another_version(self):
        x = torch.randn(4, 8, device=DEVICE)
        older = ingot_library.struct_of("Older", "out gate_up dgate_up")
        self.refused("compile the caller with the c_api.h of this library", ingot_library.On(x).run, "swiglu_forward",
                     older, {"out": x[:, :4].contiguous(), "gate_up": x})

    def test_others(self):
        x, weight = torch.randn(6, 64, device=DEVICE), torch.ones(64, device=DEVICE)
        targets = torch.zeros(6, dtype=torch.int64, device=DEVICE)
        for words, function, arguments, named in [
                ("use x.contiguous()", ingot_torch.rms_norm, (x.t(), torch.ones(6, device=DEVICE)), {}),
                ("of x's dtype", ingot_torch.rms_norm, (x, weight.double()), {}),
                ("use (..., 2F)", ingot_torch.swiglu, (x[:, :63],), {}),
                ("use gate_up.contiguous()", ingot_torch.swiglu, (x[:, :62],), {}),
                ("use logits.contiguous()", ingot_torch.cross_entropy, (x[:, :63], targets), {}),
                ("use (N, V) and (N)", ingot_torch.cross_entropy, (x[None], targets[None]), {}),
                ("use int64 or int32", ingot_torch.cross_entropy, (x, targets.float()), {}),
                ("not negative", ingot_torch.cross_entropy, (x, targets), {"z_loss": -1.0}),
                ('use "mean", "sum" or "none"', ingot_torch.cross_entropy, (x, targets), {"reduction": "avg"})]:
            with self.subTest(words):
                self.refused(words, function, *arguments, **named)
        if not HAS_GPU:
            for target in (64, -1, 2**32):
                self.refused("outside the vocabulary", ingot_torch.cross_entropy, x, torch.full_like(targets, target))
