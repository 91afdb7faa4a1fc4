"""scripts/ingot_torch.py against PyTorch's own math where elements share memory or lie apart.

The gradient of a sum is one number seen as many; keys may be expanded over tokens; windows of a signal overlap. As
test_ingot_torch.py, which runs this too where another Python has PyTorch.

Seen to catch: a token stride below the head size handed to the BLAS (wrong in fp64, the process ended in fp32), a
gradient that is not copied where it does not fold.
"""

import itertools

from . import ingot_torch_case
from .ingot_torch_case import HAS_GPU, TorchCase, alibi_slopes, cu, definition

if ingot_torch_case.IS_READY:
    import torch
    import torch.nn.functional as F
    import ingot_torch
    from .ingot_torch_case import DEVICE, TYPES
    ALL_TYPES = TYPES if HAS_GPU else [torch.float32, torch.float64]

# What makes a loss of an output (B, T, heads, HS): its gradient is expanded over the axes of the sum.
REDUCTIONS = {
    "sum over tokens": lambda out: out.sum(1),
    "sum over the batch": lambda out: out.sum(0),
    "sum over both": lambda out: out.sum((0, 1)),
    "sum over heads": lambda out: out.sum(2),
    "sum over elements": lambda out: out.sum(3),
    "flattened heads": lambda out: out.flatten(2).sum(1),
    "flattened tokens": lambda out: out.flatten(0, 1).sum(0),
    "mean over tokens": lambda out: out.mean(1),
    "the last token": lambda out: out[:, -1],
    "sum of all": lambda out: out.sum(),
    "cumulative": lambda out: out.cumsum(1).flip(1),
}


def expanded(axes):
    """A tensor of that shape in which these axes are one element, seen as many."""
    def make(shape, dtype):
        small = [1 if axis in axes else extent for axis, extent in enumerate(shape)]
        return torch.randn(small, device=DEVICE).to(dtype), lambda memory: memory.expand(shape)
    return make


def overlapping(token_stride):
    """Tokens that begin `token_stride` elements after each other, each of (heads, HS)."""
    def make(shape, dtype):
        B, T, H, HS = shape
        batch = T * token_stride + H * HS
        return torch.randn(B * batch, device=DEVICE).to(dtype), lambda memory: memory.as_strided(
            shape, (batch, token_stride, HS, 1))
    return make


def heads_that_overlap(shape, dtype):
    B, T, H, HS = shape
    row = HS + 8 * H
    return torch.randn(B * T * row, device=DEVICE).to(dtype), lambda memory: memory.as_strided(
        shape, (T * row, row, 8, 1))


def unfolded(shape, dtype):
    """Windows of a signal (B, channels), 8 apart: (B, T, 1, HS), seen as many heads."""
    B, T, H, HS = shape
    return torch.randn(B, 8 * (T - 1) + HS, device=DEVICE).to(dtype), lambda memory: memory.unfold(1, HS, 8).unsqueeze(
        2).expand(shape)


def transposed(shape, dtype):
    """(B, heads, T, HS) in memory, expanded over the tokens."""
    B, T, H, HS = shape
    return torch.randn(B, H, 1, HS, device=DEVICE).to(dtype), lambda memory: memory.expand(B, H, T, HS).transpose(1, 2)


# make(shape, dtype) -> memory, and a function that makes of it the view which is given to attention.
VIEWS = {
    "expanded over tokens": expanded([1]),
    "expanded over the batch": expanded([0]),
    "expanded over heads": expanded([2]),
    "expanded over tokens and the batch": expanded([0, 1]),
    "expanded over tokens and heads": expanded([1, 2]),
    "tokens that overlap by all but 8": overlapping(8),
    "tokens that overlap": overlapping(40),
    "heads that overlap": heads_that_overlap,
    "unfolded": unfolded,
    "heads before tokens, expanded": transposed,
}


class Strides(TorchCase):
    def check(self, leaves, views, loss, dtype, what, **arguments):
        """Loss and the gradients of q, k and v, which `views` make of `leaves`, beside the definition's. Some are 0, as
        queries and keys do nothing where all keys are the same: errors are measured by the larger of the norms of the
        exact gradient and of the output's."""
        outcomes = []
        for kind in ("ours", "plain", "exact"):
            exact = kind == "exact"
            memory = [leaf.detach().to(torch.float64 if exact else dtype).requires_grad_() for leaf in leaves]
            q, k, v = (view(each) for view, each in zip(views, memory))
            if kind == "ours":
                out = ingot_torch.attention(q, k, v, **arguments)
            else:
                boundaries = arguments.get("cu_seqlens")
                as_batch = [x if x.dim() == 4 else x[None] for x in (q, k, v)]
                out = definition(*as_batch, arguments.get("alibi_slopes"), arguments.get("causal", True),
                                 None if boundaries is None else boundaries.tolist())[0].view(q.shape)
            total = loss(out)
            total = total.to(torch.promote_types(total.dtype, torch.float32))  # squares of sums are beyond fp16
            total = total.square().mean() if total.dim() > 0 else total
            outcomes.append([total.detach()[None], *torch.autograd.grad(total, (q, k, v, out))])
        dout = [outcome.pop() for outcome in outcomes][-1]
        for number, (ours, plain, exact) in enumerate(zip(*outcomes)):
            scale = max(exact.norm(), dout.norm()).item()
            error, plain_error = ((x.double() - exact).norm().item() / scale for x in (ours, plain))
            bound = 1e-12 if dtype == torch.float64 else 2 * plain_error + 1e-5
            if number == 0:  # one number, which each side rounds to its dtype once: half an ulp of either
                bound += torch.finfo(dtype).eps * exact.norm().item() / scale
            if not error <= bound:
                self.fail(f"{what}, result {number}: an error of {error:.2e}, more than {bound:.2e}")

    def shapes(self):
        sizes = [(9, 32), (150, 64)] + ([] if HAS_GPU else [(9, 8)])
        return [(B, T, 4, 2, HS) for B, (T, HS) in itertools.product((1, 2), sizes)]

    def plain_leaves(self, B, T, NH, NKV, HS, dtype):
        return [torch.randn(B, T, heads, HS, device=DEVICE).to(dtype) for heads in (NH, NKV, NKV)]

    def test_gradients_of_sums(self):
        slopes = alibi_slopes(4)
        for dtype, shape, (name, loss) in itertools.product(ALL_TYPES, self.shapes(), REDUCTIONS.items()):
            leaves = self.plain_leaves(*shape, dtype)
            what = f"{dtype} {shape} {name}"
            self.check(leaves, [lambda x: x] * 3, loss, dtype, what, alibi_slopes=slopes)
            heads_first = [x.transpose(1, 2).contiguous() for x in leaves]
            self.check(heads_first, [lambda x: x.transpose(1, 2)] * 3, loss, dtype, what + ", heads before tokens")

    def test_gradients_of_sums_over_packed_documents(self):
        packed = {"sum over tokens": lambda out: out.sum(0), "flattened": lambda out: out.flatten(1).sum(0),
                  "sum over heads": lambda out: out.sum(1), "sum of all": lambda out: out.sum()}
        for dtype, (name, loss) in itertools.product(ALL_TYPES, packed.items()):
            leaves = [x[0] for x in self.plain_leaves(1, 150, 4, 2, 64, dtype)]
            self.check(leaves, [lambda x: x] * 3, loss, dtype, f"{dtype} {name}", cu_seqlens=cu([0, 3, 70, 150]))

    def test_gradients_that_are_given(self):
        for dtype, (B, T, NH, NKV, HS), (name, make) in itertools.product(ALL_TYPES, self.shapes(), VIEWS.items()):
            leaves = [x.requires_grad_() for x in self.plain_leaves(B, T, NH, NKV, HS, dtype)]
            memory, view = make((B, T, NH, HS), dtype)
            out = ingot_torch.attention(*leaves)
            expected = torch.autograd.grad(out, leaves, view(memory).contiguous(), retain_graph=True)
            self.assert_same(torch.autograd.grad(out, leaves, view(memory)), expected, f"{dtype} B {B} {name}")

    def test_inputs(self):
        for dtype, shape, (name, make), which in itertools.product(ALL_TYPES, self.shapes(), VIEWS.items(), "qkv"):
            B, T, NH, NKV, HS = shape
            leaves, views = self.plain_leaves(*shape, dtype), [lambda x: x] * 3
            place = "qkv".index(which)
            leaves[place], views[place] = make(tuple(leaves[place].shape), dtype)
            loss = REDUCTIONS["cumulative" if T < 100 else "sum over tokens"]
            self.check(leaves, views, loss, dtype, f"{dtype} {shape} {which} {name}", causal=T < 100)

    def test_all_inputs_at_once(self):
        for dtype, B, (name, make) in itertools.product(ALL_TYPES, (1, 2), VIEWS.items()):
            leaves, views = zip(*[make((B, 150, heads, 64), dtype) for heads in (4, 2, 2)])
            self.check(leaves, views, REDUCTIONS["sum over tokens"], dtype, f"{dtype} B {B} {name}")

    def test_other_ops(self):
        for dtype in ALL_TYPES:
            x, weight = torch.randn(20, 4, 64, device=DEVICE).to(dtype), torch.randn(64, device=DEVICE).to(dtype)
            windows = torch.randn(20 * 64, device=DEVICE).to(dtype).as_strided((20, 4, 64), (40, 8, 1))
            logits, targets = torch.randn(20, 96, device=DEVICE).to(dtype), torch.arange(20, device=DEVICE)

            def plain_norm(x, weight):
                return F.rms_norm(x, (64,), weight, 1e-5)

            def plain_swiglu(x):
                gate, up = x.chunk(2, -1)
                return F.silu(gate) * up

            def losses(function):
                return lambda logits: function(logits, targets, reduction="none")

            for name, ours, plain, inputs in [
                    ("rms_norm", ingot_torch.rms_norm, plain_norm, (x, weight)),
                    ("rms_norm of windows", ingot_torch.rms_norm, plain_norm, (windows, weight)),
                    ("rms_norm of one head", ingot_torch.rms_norm, plain_norm, (x[:, :1].expand(20, 4, 64), weight)),
                    ("swiglu", ingot_torch.swiglu, plain_swiglu, (x,)),
                    ("cross_entropy", losses(ingot_torch.cross_entropy), losses(F.cross_entropy), (logits,))]:
                for axis in range(ours(*inputs).dim()):
                    outcomes = []
                    for function, kind in ((ours, dtype), (plain, dtype), (plain, torch.float64)):
                        leaves = [each.detach().to(kind).requires_grad_() for each in inputs]
                        out = function(*[leaf.as_strided(each.shape, each.stride()) if each is windows else leaf
                                         for leaf, each in zip(leaves, inputs)])
                        outcomes.append(torch.autograd.grad(out.sum(axis).square().sum(), leaves))
                    for number, (a, p, e) in enumerate(zip(*outcomes)):
                        self.assert_close(a, p, e, f"{dtype} {name}, sum over {axis}, result {number}")
