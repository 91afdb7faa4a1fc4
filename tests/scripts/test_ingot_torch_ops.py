"""scripts/ingot_torch.py against PyTorch: RMSNorm, SwiGLU and cross-entropy, and xFormers' masks.

As test_ingot_torch.py, which runs this too where another Python has PyTorch. Each class names what it was seen to
catch.
"""

import itertools

from . import ingot_torch_case
from .ingot_torch_case import TorchCase, alibi_slopes, cu, relative_error

if ingot_torch_case.IS_READY:
    import torch
    import torch.nn.functional as F
    import ingot_torch
    from .ingot_torch_case import DEVICE, SHORT, TYPES


class OtherOps(TorchCase):
    """Seen to catch: dweight that does not begin with zeros, the loss scale at another place of the block, the ignored
    targets counted."""

    def compare(self, function, plain, tensors, what):
        """Values and gradients of function(*tensors) beside plain(*tensors) in the same precision and in double."""
        outputs = []
        for f, dtype in ((function, None), (plain, None), (plain, torch.float64)):
            leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors]
            out = f(*leaves)
            torch.manual_seed(1)
            dout = torch.randn(out.shape, device=DEVICE).to(tensors[0].dtype).to(out.dtype)
            outputs.append([out.detach(), *torch.autograd.grad(out, leaves, dout)])
        for number, (a, p, e) in enumerate(zip(*outputs)):
            self.assertEqual(a.shape, e.shape)
            self.assert_close(a, p, e, f"{what}, result {number}")

    def test_rms_norm(self):
        def plain(x, weight):
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight

        for dtype, shape in itertools.product(TYPES, [(37, 64), (2, 9, 768), (5, 4, 33), (100,)]):
            x, weight = torch.randn(shape, device=DEVICE).to(dtype), torch.randn(shape[-1], device=DEVICE).to(dtype)
            self.compare(ingot_torch.rms_norm, plain, (x, weight), f"{dtype} {shape}")
        heads = torch.randn(20, 8, 64, device=DEVICE).to(SHORT)[:, 2:5]  # a view of the heads of q
        self.compare(ingot_torch.rms_norm, plain, (heads, heads[0, 0].contiguous()), "a view")

    def test_swiglu(self):
        def plain(gate_up):
            gate, up = gate_up.chunk(2, -1)
            return F.silu(gate) * up

        for dtype, shape in itertools.product(TYPES, [(37, 64), (2, 9, 768), (5, 34)]):
            self.compare(ingot_torch.swiglu, plain, (torch.randn(shape, device=DEVICE).to(dtype),), f"{dtype} {shape}")

    def test_cross_entropy(self):
        for dtype, V, reduction, ignored, kind in itertools.product(
                TYPES, [50, 1000, 4099], ["mean", "sum", "none"], [-100, 3], [torch.int64, torch.int32]):
            targets = torch.randint(V, (40,), device=DEVICE)
            targets[::5] = ignored

            def plain(logits):
                # In fp32 inside, as torch.autocast has it: 16-bit losses would make any bound a wide one.
                return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets,
                                       ignore_index=ignored, reduction=reduction)

            self.compare(lambda logits: ingot_torch.cross_entropy(logits, targets.to(kind), ignore_index=ignored,
                                                                  reduction=reduction),
                         plain, (3 * torch.randn(40, V, device=DEVICE).to(dtype),),
                         f"{dtype} {V} {reduction} {ignored}")

    def test_z_loss(self):
        logits, targets = 3 * torch.randn(40, 96, device=DEVICE), torch.randint(96, (40,), device=DEVICE)
        ours, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
        loss = ingot_torch.cross_entropy(ours, targets, z_loss=0.01)
        loss.backward()
        reported = F.cross_entropy(exact, targets)
        (reported + 0.01 * exact.logsumexp(-1).square().mean()).backward()
        self.assertLess(abs(loss.item() - reported.item()), 1e-5 * reported.item())
        self.assertLess(relative_error(ours.grad, exact.grad), 1e-5)

    def test_finite_differences(self):
        x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(12, dtype=torch.float64, requires_grad=True)
        targets = torch.tensor([0, 11, -100, 3, 3])
        self.assertTrue(torch.autograd.gradcheck(ingot_torch.rms_norm, (x, weight)))
        self.assertTrue(torch.autograd.gradcheck(ingot_torch.swiglu, (x,)))
        for reduction in ("mean", "sum", "none"):
            self.assertTrue(torch.autograd.gradcheck(
                lambda x: ingot_torch.cross_entropy(x, targets, reduction=reduction), (x,)))

    def test_nothing_to_do(self):
        x = torch.zeros(0, 64, device=DEVICE, requires_grad=True)
        for out in (ingot_torch.rms_norm(x, torch.ones(64, device=DEVICE)), ingot_torch.swiglu(x),
                    ingot_torch.cross_entropy(x, torch.zeros(0, dtype=torch.int64, device=DEVICE), reduction="sum")):
            out.sum().backward()
        ignored = ingot_torch.cross_entropy(torch.zeros(2, 8, device=DEVICE),
                                            torch.full((2,), -100, device=DEVICE))
        self.assertTrue(ignored.isnan())


class SeqInfo:
    def __init__(self, *boundaries):
        self.seqstart = cu(boundaries)


def named(name, **attributes):
    """An object of a class of that name, as from_xformers() knows them."""
    instance = type(name, (), {})()
    for key, value in attributes.items():
        setattr(instance, key, value)
    return instance


class FromXformers(TorchCase):
    """Seen to catch: names compared by their beginnings (a window is taken for causal), slopes of the wrong sign, a
    tolerance that takes any bias near ALiBi's, a row's constant taken for a part of the slope."""

    def alibi(self, slopes, T, dtype):
        positions = torch.arange(T, device=DEVICE)
        return (slopes.double()[:, None, None] * (positions - positions[:, None])).to(dtype)

    def test_masks(self):
        info = SeqInfo(0, 3, 3, 10)
        self.assertEqual(ingot_torch.from_xformers(None), {"causal": False})
        self.assertEqual(ingot_torch.from_xformers(named("LowerTriangularMask")), {"causal": True})
        for name, causal in (("BlockDiagonalMask", False), ("BlockDiagonalCausalMask", True),
                             ("BlockDiagonalCausalFromBottomRightMask", True)):
            for keys in (info, SeqInfo(0, 3, 3, 10)):
                arguments = ingot_torch.from_xformers(named(name, q_seqinfo=info, k_seqinfo=keys))
                self.assertEqual(arguments["causal"], causal)
                self.assertEqual((arguments["cu_seqlens"].tolist(), arguments["cu_seqlens"].dtype),
                                 ([0, 3, 3, 10], torch.int32))
        q = torch.randn(1, 10, 2, 64, device=DEVICE).to(SHORT)
        out = ingot_torch.attention(q, q, q, **arguments)
        self.assertTrue(torch.equal(out[0], ingot_torch.attention(*[q[0]] * 3, cu_seqlens=info.seqstart)))

    def test_a_bias_of_alibi(self):
        slopes = alibi_slopes(6)
        for attribute, dtype, batched in itertools.product(
                ("_bias", "_subtensor"), (torch.float32, torch.bfloat16, torch.float16), (False, True)):
            bias = self.alibi(slopes, 60, dtype)
            bias = bias.expand(3, -1, -1, -1) if batched else bias
            arguments = ingot_torch.from_xformers(named("LowerTriangularMaskWithTensorBias", **{attribute: bias}))
            self.assertTrue(arguments["causal"])
            # The bias at the longest distance was rounded once.
            error = (arguments["alibi_slopes"] / slopes - 1).abs().max().item()
            self.assertLessEqual(error, torch.finfo(dtype).eps)

    def test_a_bias_of_alibi_and_a_constant_for_each_row(self):
        # The softmax takes the constant out again. BLOOM writes slope * j, MPT slope * (j - T + 1).
        T, slopes = 60, alibi_slopes(6)
        j = torch.arange(T, device=DEVICE)
        per_row = torch.randn(6, T, 1, device=DEVICE)
        q = torch.randn(2, T, 6, 32, device=DEVICE)
        forms = {"BLOOM": lambda slope: (slope * j).expand(6, T, T),
                 "MPT": lambda slope: (slope * (j - T + 1)).expand(6, T, T),
                 "any": lambda slope: slope * (j - j[:, None]) + per_row}
        for sign, (name, form), dtype in itertools.product(
                (1, -1), forms.items(), (torch.float32, torch.bfloat16, torch.float16)):
            bias = form(sign * slopes.double()[:, None, None]).to(dtype)
            masked = bias.masked_fill(j > j[:, None], float("-inf"))
            for each in (bias, masked, bias.expand(2, 6, T, T)):
                arguments = ingot_torch.from_xformers(named("LowerTriangularMaskWithTensorBias", _bias=each))
                error = (arguments["alibi_slopes"] - sign * slopes).abs()
                bound = torch.finfo(dtype).eps * (bias.double()[:, -1, [0, -1]].abs().sum(-1) / (T - 1) + 1e-12)
                self.assertTrue((error <= bound).all(), f"{name} {dtype}: {error} {bound}")
            if dtype == torch.float32:
                exact = torch.softmax(torch.einsum("bihd,bjhd->bhij", q.double(), q.double()) / 32 ** 0.5
                                      + masked.double(), -1)
                exact = torch.einsum("bhij,bjhd->bihd", exact, q.double())
                self.assertLess(relative_error(ingot_torch.attention(q, q, q, **arguments), exact), 1e-5)

    def test_refused(self):
        slopes = alibi_slopes(2)
        other, flipped = self.alibi(slopes, 8, torch.float32), self.alibi(slopes, 8, torch.float32)
        other[1, 5, 2] *= 1.00001
        info, with_bias = SeqInfo(0, 3, 10), "LowerTriangularMaskWithTensorBias"
        j = torch.arange(8, device=DEVICE)
        alibi = self.alibi(slopes, 8, torch.float32)
        per_column, not_a_number = torch.zeros(8, device=DEVICE), alibi.clone()
        per_column[3], not_a_number[0, 5, 5] = 1e-4, float("nan")
        for words, bias in [
                ("use None, LowerTriangularMask", torch.zeros(1, 2, 8, 8)),
                ("a tensor as a bias", torch.zeros(1, 2, 8, 8)),
                ("BlockDiagonalCausalLocalAttentionMask",
                 named("BlockDiagonalCausalLocalAttentionMask", q_seqinfo=info, k_seqinfo=info)),
                ("BlockDiagonalCausalWithOffsetPaddedKeysMask", named("BlockDiagonalCausalWithOffsetPaddedKeysMask")),
                ("not as many keys as queries",
                 named("BlockDiagonalMask", q_seqinfo=info, k_seqinfo=SeqInfo(0, 4, 10))),
                ("is not ALiBi's", named(with_bias, _bias=other)),
                ("is not ALiBi's", named(with_bias, _bias=torch.stack([flipped, 2 * flipped]))),
                ("is not ALiBi's", named(with_bias, _bias=alibi + per_column)),
                ("is not ALiBi's", named(with_bias, _bias=1000 + alibi.square())),
                ("is not ALiBi's", named(with_bias, _bias=alibi.masked_fill(j < 2, float("-inf")))),
                ("is not ALiBi's", named(with_bias, _bias=not_a_number)),
                ("use (NH, T, T)", named(with_bias, _bias=other[0])),
                ("requires a gradient", named(with_bias, _bias=other.clone().requires_grad_()))]:
            with self.subTest(words):
                with self.assertRaises(ValueError) as caught:
                    ingot_torch.from_xformers(bias)
                self.assertIn(words, str(caught.exception))
