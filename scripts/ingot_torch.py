"""Ingot's kernels in PyTorch's hands: the object code that trains, called through libingot.so by ctypes.

    import sys; sys.path.insert(0, "scripts")
    import ingot_torch

    out = ingot_torch.attention(q, k, v, cu_seqlens=cu_seqlens, alibi_slopes=slopes)     differentiable in q, k, v
    out = ingot_torch.attention(q, k, v, **ingot_torch.from_xformers(attn_bias))
    y = ingot_torch.rms_norm(x, weight, eps=1e-5)
    y = ingot_torch.swiglu(gate_up)
    loss = ingot_torch.cross_entropy(logits, targets)

Nothing is compiled: it needs PyTorch 2.4 or later, ingot_library.py beside it, and libingot.so, which the build leaves
in the repository root (or wherever INGOT_LIBRARY says). Tensors on a GPU run on it, on the current stream, without a
wait for the device: bf16 and fp16 on tensor cores, fp32 on SIMT kernels that are meant for debugging. Tensors on the
CPU run on Ingot's CPU device, in fp32 and fp64. What cannot be done is refused with a ValueError that says what can;
nothing is copied or converted behind the caller's back, but under torch.autocast, as said below, and for a gradient
that autograd hands on in a form that no kernel reads. A fault of CUDA is a RuntimeError.

All gradients are of first order. A backward pass that is to be differentiated again (create_graph=True) is a
RuntimeError: a term of it would be missing.

torch.compile calls these functions as they are, between the graphs that it makes.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Callable, Optional, Union

import torch
from torch import Tensor

from ingot_library import (CAttentionBackward, CAttentionForward, CAttentionOptions, CCrossEntropy, CRmsNormBackward,
                           CRmsNormForward, CSwigluBackward, CSwigluForward, MASK, On, require, view)

CUDA_HEAD_SIZES = (32, 64, 96, 128)
MAX_HEAD_SIZE_CPU = 256


def _first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For the backward of an autograd.Function without a backward of its own. (PyTorch's once_differentiable looks at
    whether an incoming gradient requires one: where a loss is linear in the result none does, and the term that runs
    through the saved tensors would be left out without a word.)"""

    @functools.wraps(backward)
    def first_order(ctx: Any, *gradients: Optional[Tensor]) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("ingot_torch has no double backward: its gradients cannot be differentiated again. Call "
                               "backward() or torch.autograd.grad() without create_graph=True, or compute this part "
                               "with PyTorch's own functions")
        return backward(ctx, *gradients)

    return first_order


def _autocast(tensors: list[Tensor], cpu_dtype: torch.dtype) -> list[Tensor]:
    """Under torch.autocast: its type on a GPU; on the CPU `cpu_dtype`, since 16-bit types do not run there."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind) if kind == "cuda" else cpu_dtype
    return [t.to(dtype) if t.is_floating_point() and t.dtype is not torch.float64 else t for t in tensors]


# ---- Attention ----

@torch._disable_dynamo
def attention(q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens: Optional[Tensor] = None,
              alibi_slopes: Optional[Tensor] = None, causal: bool = True, softmax_scale: Optional[float] = None,
              deterministic: bool = True, return_lse: bool = False) -> Union[Tensor, tuple[Tensor, Tensor]]:
    """softmax(softmax_scale * q k^T - slope |i - j|) v within each sequence or document, for grouped queries.

    q: (B, T, NH, HS), k and v: (B, T, NKV, HS), NH a multiple of NKV; or packed documents: q (N, NH, HS), k and v (N,
    NKV, HS), or the same with B = 1, with `cu_seqlens`, int32 (documents + 1) on the same device: document d is
    tokens [cu_seqlens[d], cu_seqlens[d + 1]). They begin with 0, end with N and do not decrease; empty documents are
    allowed. A GPU that finds them otherwise stops with a device-side assertion: no host waits for them.

    dtypes: bf16 or fp16 on tensor cores; fp32 by a SIMT kernel, for debugging; on the CPU fp32 and fp64. Head sizes:
    32, 64, 96 and 128; on the CPU every even one up to 256. Strides: any, with a contiguous last axis; in bf16 and
    fp16 all others are multiples of 8 elements, and data begins at multiples of 16 bytes. Elements may share memory
    (keys expanded over the tokens, windows that overlap). Where the sequences of a batch neither follow each other nor
    stand as further heads in all of q, k and v, each is a call of its own.

    alibi_slopes: fp32 (NH), finite; Press et al. (2022) have them positive, so that near keys count more, and a
    negative one favours keys that are far. softmax_scale: 1 / sqrt(HS) unless given. causal: a token
    sees itself and what is before it. deterministic: the same bits every time, forward and backward; else dq is summed
    in any order, if that is faster.

    Returns out, like q in shape and dtype, and with return_lse also the natural logarithm of the softmax's sum, fp32
    (B, NH, T), or (NH, N) for q (N, NH, HS); no gradient goes through it. Differentiable, once, in q, k and v.

    Under torch.autocast q, k and v are rounded to its type first (on the CPU to fp32).
    """
    q, k, v = _autocast([q, k, v], torch.float32)
    _check_attention(q, k, v, cu_seqlens, alibi_slopes)
    scale = 1 / math.sqrt(q.shape[-1]) if softmax_scale is None else float(softmax_scale)
    require(math.isfinite(scale) and scale > 0, f"softmax_scale is {scale}: use a finite one above 0")
    is_packed = q.dim() == 3
    batched = [tensor.unsqueeze(0) if is_packed else tensor for tensor in (q, k, v)]
    out, lse = _Attention.apply(*batched, alibi_slopes, cu_seqlens, causal, scale, deterministic)
    if is_packed:
        out, lse = out.squeeze(0), lse.squeeze(0)
    return (out, lse) if return_lse else out


def _check_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Optional[Tensor], slopes: Optional[Tensor]) -> None:
    require(q.dim() == 4 or (q.dim() == 3 and cu_seqlens is not None),
            f"q is {tuple(q.shape)}: use (B, T, NH, HS), or packed (N, NH, HS) with cu_seqlens")
    require(k.shape == v.shape and k.dim() == q.dim() and k.shape[:-2] == q.shape[:-2] and k.shape[-1] == q.shape[-1],
            f"q is {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)}: they may differ in the number of "
            "heads alone, k and v not at all (self-attention: as many keys as queries)")
    NH, HS, NKV = q.shape[-2], q.shape[-1], k.shape[-2]
    require(NKV >= 1 and NH >= 1 and NH % NKV == 0,
            f"{NH} query heads are not a multiple of {NKV} key/value heads")
    require(q.device == k.device == v.device and q.dtype == k.dtype == v.dtype,
            f"q is {q.dtype} on {q.device}, k {k.dtype} on {k.device}, v {v.dtype} on {v.device}: use one dtype and "
            "one device")
    is_cpu = q.device.type == "cpu"
    allowed = (torch.float32, torch.float64) if is_cpu else (torch.bfloat16, torch.float16, torch.float32)
    require(q.dtype in allowed, f"attention in {q.dtype} on {q.device.type}: use {_names(allowed)}")
    if is_cpu:
        require(HS >= 2 and HS % 2 == 0 and HS <= MAX_HEAD_SIZE_CPU,
                f"head size {HS} on the CPU: use an even one up to {MAX_HEAD_SIZE_CPU}")
    else:
        require(HS in CUDA_HEAD_SIZES, f"head size {HS} on CUDA: use one of {CUDA_HEAD_SIZES}")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        why_not = _why_not_a_view(tensor)
        require(why_not is None, f"{name} has strides {tensor.stride()}, {why_not}: use {name}.contiguous()")
    if cu_seqlens is not None:
        require(q.dim() == 3 or q.shape[0] == 1, f"cu_seqlens with a batch of {q.shape[0]}: documents are packed into "
                "one row, q (N, NH, HS) or (1, N, NH, HS)")
        require(cu_seqlens.dtype == torch.int32 and cu_seqlens.dim() == 1 and cu_seqlens.numel() >= 2
                and cu_seqlens.device == q.device,
                f"cu_seqlens is {cu_seqlens.dtype} {tuple(cu_seqlens.shape)} on {cu_seqlens.device}: use int32 "
                f"(documents + 1) on {q.device}")
    if slopes is not None:
        require(slopes.dtype == torch.float32 and tuple(slopes.shape) == (NH,) and slopes.device == q.device,
                f"alibi_slopes are {slopes.dtype} {tuple(slopes.shape)} on {slopes.device}: use float32 ({NH},), one "
                f"for each query head, on {q.device}")
        require(not slopes.requires_grad, "alibi_slopes require a gradient, and attention has none for them: use "
                "alibi_slopes.detach()")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(dtype).replace("torch.", "") for dtype in dtypes)


def _why_not_a_view(tensor: Tensor) -> Optional[str]:
    """What keeps a kernel from reading (B, T, heads, HS) or (N, heads, HS) in place; None if nothing does."""
    if tensor.numel() == 0:
        return None
    if tensor.stride(-1) != 1:
        return "its last axis is not contiguous"
    if tensor.element_size() == 2:
        outer = [tensor.stride(axis) for axis in range(tensor.dim() - 1) if tensor.shape[axis] > 1]
        if any(stride % 8 != 0 for stride in outer):
            return "those before the last must be multiples of 8 elements"
        if tensor.data_ptr() % 16 != 0:
            return "its data does not begin at a multiple of 16 bytes"
    return None


def _documents(cu_seqlens: Tensor, N: int) -> tuple[Tensor, Tensor, Tensor]:
    """int32 (N) each: the position of each token, the first token of its document, and the end of it. On the device,
    without a wait."""
    cu_seqlens = cu_seqlens.contiguous()
    lengths = cu_seqlens.diff()
    is_sound = (cu_seqlens[0] == 0) & (cu_seqlens[-1] == N) & (lengths >= 0).all()
    if cu_seqlens.device.type == "cpu":
        require(bool(is_sound), f"cu_seqlens is {cu_seqlens.tolist()}: it begins with 0, ends with the number of "
                f"tokens ({N}) and does not decrease")
    else:
        torch._assert_async(is_sound, "cu_seqlens must begin with 0, end with the number of tokens and not decrease")
    positions = torch.arange(N, device=cu_seqlens.device, dtype=torch.int32)
    # The last of the boundaries that are not beyond a token: documents without tokens are passed over.
    number = torch.searchsorted(cu_seqlens, positions, right=True, out_int32=True) - 1
    return positions, cu_seqlens.index_select(0, number), cu_seqlens[1:].index_select(0, number)


def _sequences(N: int, T: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The same for sequences of T tokens each."""
    positions = torch.arange(N, device=device, dtype=torch.int32)
    first = positions - positions % T
    return positions, first, first + T


def _mask(positions: Tensor, first: Tensor, end: Tensor, causal: bool) -> tuple[Tensor, ...]:
    """The intervals of kernels/attention/attention.h: first_key, end_key, first_query, end_query."""
    return (first, positions + 1, positions, end) if causal else (first, end, first, end)


# How a batch becomes what a kernel takes, (tokens, heads, HS): its sequences follow each other as one packed row, or
# stand side by side as further heads of one sequence, or are calls of their own.
ROW, HEADS, CALLS = "row", "heads", "calls"


def _merges(tensor: Tensor, outer: int, inner: int) -> bool:
    """Whether two axes can be seen as one."""
    return (tensor.shape[outer] == 1 or tensor.shape[inner] == 1
            or tensor.stride(outer) == tensor.shape[inner] * tensor.stride(inner))


def _fold_of(tensors: list[Tensor]) -> str:
    if all(_merges(tensor, 0, 1) for tensor in tensors):
        return ROW
    return HEADS if all(_merges(tensor, 0, 2) for tensor in tensors) else CALLS


def _folded(tensor: Tensor, fold: str) -> list[Tensor]:
    """(B, T, heads, HS) as views (tokens, heads, HS), one for each call."""
    B, T, H, HS = tensor.shape
    if fold == ROW:
        return [tensor.view(B * T, H, HS)]
    return [tensor.transpose(0, 1).view(T, B * H, HS)] if fold == HEADS else list(tensor.unbind(0))


def _empty(like: Tensor, fold: str) -> Tensor:
    """Memory for (B, T, heads, HS) that folds likewise."""
    B, T, H, HS = like.shape
    if fold == HEADS:
        return like.new_empty(B, H, T, HS).transpose(1, 2)
    return like.new_empty(B, T, H, HS)


def _repeats(tensor: Tensor) -> bool:
    """Whether elements share memory: an axis is expanded, or rows lie closer than they are long."""
    last = 0
    for stride, extent in sorted(zip(tensor.stride(), tensor.shape)):
        if extent > 1:
            if stride <= last:
                return True
            last += (extent - 1) * stride
    return False


def _fitting(gradient: Tensor, fold: str) -> Tensor:
    """A gradient as autograd gives it, copied where no kernel could read it, and where its elements share memory, as
    those of the gradient of a sum do: kernels for any strides are slower than a copy."""
    folds = fold == CALLS or (_merges(gradient, 0, 1) if fold == ROW else _merges(gradient, 0, 2))
    if folds and _why_not_a_view(gradient) is None and not _repeats(gradient):
        return gradient
    return _empty(gradient, fold).copy_(gradient)


class _Attention(torch.autograd.Function):
    """q (B, T, NH, HS), k and v (B, T, NKV, HS) -> out like q, lse (B, NH, T)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, slopes: Optional[Tensor], cu_seqlens: Optional[Tensor],
                causal: bool, scale: float, deterministic: bool) -> tuple[Tensor, Tensor]:
        B, T, NH, _ = q.shape
        fold = _fold_of([q, k, v])
        stats = torch.float64 if q.dtype == torch.float64 else torch.float32
        out = _empty(q, fold)
        # As the kernel writes it, (heads, tokens) for each call.
        raw_lse = q.new_empty((B, NH, T) if fold != ROW else (NH, B * T), dtype=stats)
        ctx.fold, ctx.scale = fold, scale
        ctx.options = CAttentionOptions(0, 0 if deterministic else 1)
        ctx.set_materialize_grads(False)
        mask: tuple[Tensor, ...] = ()
        if q.numel() > 0:
            if slopes is not None:
                slopes = slopes.to(stats).contiguous()
                if fold == HEADS:
                    slopes = slopes.repeat(B)
            if cu_seqlens is not None:
                mask = _mask(*_documents(cu_seqlens, B * T), causal)
            else:
                mask = _mask(*_sequences(B * T if fold == ROW else T, T, q.device), causal)
            on = On(q)
            lses = _lse_folded(raw_lse, fold)
            for call in zip(_folded(out, fold), lses, _folded(q, fold), _folded(k, fold), _folded(v, fold)):
                on.run("attention_forward", CAttentionForward,
                       dict(zip("out lse q k v".split(), call), slopes=slopes, **dict(zip(MASK.split(), mask))),
                       scale=scale, options=ctx.options)
        ctx.save_for_backward(q, k, v, out, raw_lse, slopes, *mask)
        lse = raw_lse.view(NH, B, T).transpose(0, 1) if fold == ROW else raw_lse
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @_first_order
    def backward(ctx: Any, dout: Optional[Tensor], _: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
        nothing = (None,) * 5
        if dout is None:
            return (None, None, None) + nothing
        q, k, v, out, raw_lse, slopes, *mask = ctx.saved_tensors
        fold = ctx.fold
        dq, dk, dv = (_empty(tensor, fold) for tensor in (q, k, v))
        if q.numel() > 0:
            dout = _fitting(dout, fold)
            on = On(q)
            calls = list(zip(*[_folded(tensor, fold) for tensor in (dq, dk, dv, dout, out)],
                             _lse_folded(raw_lse, fold), *[_folded(tensor, fold) for tensor in (q, k, v)]))
            size = on.bytes_of("attention_backward_workspace", view(calls[0][6]), ctx.options)
            workspace = torch.empty(size, dtype=torch.uint8, device=q.device) if size > 0 else None
            for call in calls:
                on.run("attention_backward", CAttentionBackward,
                       dict(zip("dq dk dv dout out lse q k v".split(), call), slopes=slopes,
                            **dict(zip(MASK.split(), mask)), workspace=workspace),
                       scale=ctx.scale, options=ctx.options)
        return (dq, dk, dv) + nothing


def _lse_folded(raw_lse: Tensor, fold: str) -> list[Tensor]:
    if fold == ROW:
        return [raw_lse]
    return [raw_lse.flatten(0, 1)] if fold == HEADS else list(raw_lse.unbind(0))


# ---- xFormers ----

# Names of its masks (xformers.ops.fmha.attn_bias) -> causal. A class that is derived from one of them may mean another
# mask, so that names must match exactly. "From bottom right" is the same where there are as many keys as queries.
_WHOLE_MASKS = {"LowerTriangularMask": True, "LowerTriangularFromBottomRightMask": True,
                "LowerTriangularMaskWithTensorBias": True}
_BLOCK_MASKS = {"BlockDiagonalMask": False, "BlockDiagonalCausalMask": True,
                "BlockDiagonalCausalFromBottomRightMask": True}


def from_xformers(bias: Any) -> dict[str, Any]:
    """What xFormers calls attn_bias, as keyword arguments of attention(); xFormers itself is not needed.

    Taken: None (no mask); the classes named above; a LowerTriangularMaskWithTensorBias, if its bias is ALiBi's,
    -slope[h] * (i - j) for j <= i, in (NH, T, T) or (B, NH, T, T), the same for all sequences of the batch: to see
    that, the tensor is read once, which waits for the device. A constant may be added to each row of each head, which
    the softmax takes out again, as in the slope[h] * j of BLOOM and the slope[h] * (j - T + 1) of MPT; attention() adds
    none, so that its lse differs by it. Slopes may have any sign. Others are refused, windows and padded keys among
    them, and documents that have not as many keys as queries.

    Shapes are the same on both sides: q (1, N, NH, HS) with block-diagonal masks, (B, T, NH, HS) with the others.
    Where xFormers takes a fifth axis for groups, (B, T, NKV, G, HS), flatten it: q.flatten(2, 3), and give k and v
    their NKV heads once.
    """
    if bias is None:
        return {"causal": False}
    name = type(bias).__name__
    if name in _BLOCK_MASKS:
        starts, keys = bias.q_seqinfo, bias.k_seqinfo
        require(starts is keys or starts.seqstart is keys.seqstart or torch.equal(starts.seqstart, keys.seqstart),
                f"{name} with documents that have not as many keys as queries: attention() is self-attention")
        return {"cu_seqlens": starts.seqstart.to(torch.int32), "causal": _BLOCK_MASKS[name]}
    if name not in _WHOLE_MASKS:
        kind = "a tensor as a bias" if isinstance(bias, Tensor) and name == "Tensor" else name
        raise ValueError(f"from_xformers() does not take {kind}: use None, "
                         + ", ".join([*_WHOLE_MASKS, *_BLOCK_MASKS]))
    arguments: dict[str, Any] = {"causal": True}
    if name == "LowerTriangularMaskWithTensorBias":
        # xFormers has called it by both names.
        tensor = getattr(bias, "_bias", None)
        arguments["alibi_slopes"] = _slopes_of(getattr(bias, "_subtensor") if tensor is None else tensor)
    return arguments


def _slopes_of(bias: Tensor) -> Tensor:
    """fp32 (NH): ALiBi's slopes from a bias (NH, T, T) or (B, NH, T, T), whose lower triangle must be made of them."""
    what = "the bias of a LowerTriangularMaskWithTensorBias"
    require(bias.dim() in (3, 4) and bias.shape[-1] == bias.shape[-2] >= 2,
            f"{what} is {tuple(bias.shape)}: use (NH, T, T) or (B, NH, T, T), T at least 2")
    require(not bias.requires_grad, f"{what} requires a gradient, and attention() has none for it")
    heads = bias.detach().reshape(-1, *bias.shape[-3:]).double()  # (B, NH, T, T)
    T, eps = heads.shape[-1], torch.finfo(bias.dtype).eps
    # A row's constant is what stands on the diagonal, and the longest distance tells the slope best.
    constant = heads.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    slopes = (heads[0, :, -1, -1] - heads[0, :, -1, 0]) / (T - 1)
    positions = torch.arange(T, device=bias.device)
    distance = (positions[:, None] - positions).clamp(min=0).double()
    expected = constant - slopes[:, None, None] * distance
    # Whoever made the bias rounded each number once, or twice (the slope before the product): this one, the row's
    # constant, and the two that the slope was taken from.
    slope_error = (heads[0, :, -1, -1].abs() + heads[0, :, -1, 0].abs()) / (T - 1)
    tolerance = eps * (heads.abs() + constant.abs() + slope_error[:, None, None] * distance)
    is_close = (heads - expected).abs() <= tolerance
    is_alibi = is_close | (positions > positions[:, None])
    require(bool(is_alibi.all()), f"{what} is not ALiBi's, -slope[h] * (i - j) for j <= i and a constant for each row: "
            "attention() has no other bias")
    return slopes.float()


# ---- The other ops ----

def _check_dtype(op: str, tensor: Tensor) -> None:
    is_cpu = tensor.device.type == "cpu"
    allowed = (torch.float32, torch.float64) if is_cpu else (torch.bfloat16, torch.float16, torch.float32)
    require(tensor.dtype in allowed, f"{op} in {tensor.dtype} on {tensor.device.type}: use {_names(allowed)}")


def _stats_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@torch._disable_dynamo
def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (torch.nn.functional.rms_norm; Zhang and Sennrich 2019).

    x: (..., C), contiguous, or (N, H, C) with any strides and a contiguous last axis, such as the heads of q; weight:
    (C), x's dtype. bf16, fp16 and fp32, on the CPU fp32 and fp64; sums in fp32, rounded once. Differentiable, once, in
    both. Under torch.autocast weight is rounded to x's type.
    """
    _check_dtype("rms_norm", x)
    if torch.is_autocast_enabled(x.device.type):
        weight = weight.to(x.dtype)
    require(x.dim() >= 1 and tuple(weight.shape) == x.shape[-1:] and weight.dtype == x.dtype
            and weight.device == x.device and weight.is_contiguous(),
            f"x is {x.dtype} {tuple(x.shape)} on {x.device}, weight {weight.dtype} {tuple(weight.shape)} with strides "
            f"{weight.stride()} on {weight.device}: weight is contiguous, ({x.shape[-1] if x.dim() else 1},), of x's "
            "dtype and device")
    if x.dim() != 3 or x.is_contiguous():
        require(x.is_contiguous(), f"x is {tuple(x.shape)} with strides {x.stride()}: use x.contiguous()")
        return _RmsNorm.apply(x.view(-1, x.shape[-1]), weight, eps).view(x.shape)
    require(x.stride(-1) == 1, f"x has strides {x.stride()}, its last axis is not contiguous: use x.contiguous()")
    return _RmsNorm.apply(x, weight, eps)


class _RmsNorm(torch.autograd.Function):
    """x (N, C) or (N, H, C), weight (C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, rstd = x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=_stats_dtype(x))
        if x.numel() > 0:
            On(x).run("rmsnorm_forward", CRmsNormForward,
                      {"out": out, "rstd": rstd, "x": x, "weight": weight}, eps=eps)
        ctx.save_for_backward(x, weight, rstd)
        return out

    @staticmethod
    @_first_order
    def backward(ctx: Any, dout: Tensor) -> tuple[Optional[Tensor], ...]:
        x, weight, rstd = ctx.saved_tensors
        dx, dweight = x.new_empty(x.shape), torch.zeros_like(weight, dtype=_stats_dtype(x))
        if x.numel() > 0:
            on = On(x)
            workspace = torch.empty(on.bytes_of("rmsnorm_backward_workspace", view(x)), dtype=torch.uint8,
                                    device=x.device)
            on.run("rmsnorm_backward", CRmsNormBackward,
                   {"dx": dx, "dweight": dweight, "dout": dout.contiguous(), "x": x, "rstd": rstd, "weight": weight,
                    "workspace": workspace})
        return dx, dweight.to(weight.dtype), None


@torch._disable_dynamo
def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020). gate_up: (..., 2F), contiguous, the F gates before the F ups; returns (..., F).

    bf16, fp16 and fp32, on the CPU fp32 and fp64; computed in fp32, rounded once. Differentiable, once.
    """
    _check_dtype("swiglu", gate_up)
    require(gate_up.dim() >= 1 and gate_up.shape[-1] % 2 == 0 and gate_up.shape[-1] > 0,
            f"gate_up is {tuple(gate_up.shape)}: use (..., 2F)")
    require(gate_up.is_contiguous(), f"gate_up has strides {gate_up.stride()}: use gate_up.contiguous()")
    shape = gate_up.shape
    return _Swiglu.apply(gate_up.view(-1, shape[-1])).view(*shape[:-1], shape[-1] // 2)


class _Swiglu(torch.autograd.Function):
    """gate_up (N, 2F)."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
        if out.numel() > 0:
            On(gate_up).run("swiglu_forward", CSwigluForward, {"out": out, "gate_up": gate_up})
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    @_first_order
    def backward(ctx: Any, dout: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        dgate_up = torch.empty_like(gate_up)
        if dout.numel() > 0:
            On(gate_up).run("swiglu_backward", CSwigluBackward,
                            {"dgate_up": dgate_up, "dout": dout.contiguous(), "gate_up": gate_up})
        return dgate_up


@torch._disable_dynamo
def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean",
                  z_loss: float = 0.0) -> Tensor:
    """-log softmax(logits)[target], as torch.nn.functional.cross_entropy with class indices; differentiable in logits.

    logits: (N, V), contiguous; targets: (N), int32 or int64, in [0, V) or ignore_index; one outside stops a GPU with a
    CUDA error, for no host waits for them. reduction: "mean" over the targets that are not ignored (NaN if there are
    none), "sum", or "none" for (N), 0 where ignored. The result is fp32 (fp64 for fp64 logits), computed in fp32.
    z_loss: z adds z * log(sum of e^logits)^2 of each token to what is differentiated (PaLM, Chowdhery et al. 2022),
    not to the result.

    Memory: the logits are kept, and backward makes their gradient, rounded once to their dtype ("none": twice).
    bf16, fp16 and fp32, on the CPU fp32 and fp64.
    """
    _check_dtype("cross_entropy", logits)
    require(logits.dim() == 2 and logits.shape[1] > 0 and tuple(targets.shape) == logits.shape[:1]
            and targets.device == logits.device,
            f"logits are {tuple(logits.shape)} on {logits.device}, targets {tuple(targets.shape)} on "
            f"{targets.device}: use (N, V) and (N), with logits.flatten(0, -2) and targets.flatten()")
    require(logits.is_contiguous(), f"logits have strides {logits.stride()}: use logits.contiguous()")
    require(targets.dtype in (torch.int32, torch.int64), f"targets are {targets.dtype}: use int64 or int32 indices")
    require(reduction in ("mean", "sum", "none"), f'reduction is {reduction!r}: use "mean", "sum" or "none"')
    require(math.isfinite(z_loss) and z_loss >= 0, f"z_loss is {z_loss}: use a finite one, not negative")
    # -1 is what the kernel ignores; whatever else lies outside [0, V) must stay outside it, in 32 bits too.
    V = logits.shape[1]
    kernel_targets = targets.masked_fill(targets < 0, -2).clamp(max=V).masked_fill(targets == ignore_index, -1).int()
    return _CrossEntropy.apply(logits, kernel_targets, reduction, z_loss)


class _CrossEntropy(torch.autograd.Function):
    """logits (N, V), targets (N) int32, -1 where ignored."""

    @staticmethod
    def _run(logits: Tensor, losses: Tensor, targets: Tensor, z_loss: float, loss_scale: Optional[Tensor]) -> None:
        On(logits).run("cross_entropy", CCrossEntropy, {"logits": logits, "losses": losses, "targets": targets},
                       vocab_size=logits.shape[1], z_loss=z_loss, write_gradient=0 if loss_scale is None else 1,
                       loss_scale=None if loss_scale is None else loss_scale.data_ptr())

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, reduction: str, z_loss: float) -> Tensor:
        losses = logits.new_empty(logits.shape[0], dtype=_stats_dtype(logits))
        if logits.numel() > 0:
            _CrossEntropy._run(logits, losses, targets, z_loss, None)
        ctx.reduction, ctx.z_loss = reduction, z_loss
        count = (targets >= 0).sum() if reduction == "mean" else None
        ctx.save_for_backward(logits, targets, count)
        return losses if reduction == "none" else losses.sum() if count is None else losses.sum() / count

    @staticmethod
    @_first_order
    def backward(ctx: Any, dloss: Tensor) -> tuple[Optional[Tensor], ...]:
        logits, targets, count = ctx.saved_tensors
        dlogits = logits.clone()
        if logits.numel() > 0:
            # The kernel multiplies by the loss scale, which it reads on the device: here the gradient of a token.
            loss_scale = torch.ones(1, dtype=torch.float64, device=logits.device)
            if ctx.reduction != "none":
                loss_scale[0] = dloss if count is None else dloss / count
            losses = logits.new_empty(logits.shape[0], dtype=_stats_dtype(logits))
            _CrossEntropy._run(dlogits, losses, targets, ctx.z_loss, loss_scale)
            if ctx.reduction == "none":
                dlogits *= dloss.unsqueeze(1)
        return dlogits, None, None, None
