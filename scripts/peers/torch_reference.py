#!/usr/bin/env python3
"""Write float64 reference fixtures for the tests: logits, gradients and ten optimizer steps of three tiny models.

The model is a pre-norm Llama-like decoder written in plain PyTorch, with explicit masked softmax attention and with
autograd for every gradient. It shares no code with the CUDA implementation that is tested against it.

    x = wte[token]
    per layer:  x = x + Wo attention(rmsnorm(x));  n = rmsnorm(x);  x = x + Wdown (silu(Wgate n) * (Wup n))
    logits = Whead rmsnorm(x)                      (tied embeddings: Whead = wte)

Initial weights come from a formula, so the files need not hold them. For the tensor called `name` and the flat
row-major element index i, in unsigned 32-bit arithmetic (every product and shift modulo 2^32):

    x  = fnv1a32(bytes of name) ^ (i * 0x9E3779B9)     fnv1a32: start at 0x811C9DC5; per byte: ^= byte, *= 0x01000193
    x ^= x >> 16;  x *= 0x85EBCA6B;  x ^= x >> 13;  x *= 0xC2B2AE35;  x ^= x >> 16
    u  = x / 2^32 - 0.5                                exact in float64
    2-D weights: 0.6 * u        1-D weights of norms: 1 + 0.5 * u        biases: 0.5 * u

`name` is the parameter's name in a LlamaForCausalLM checkpoint, such as `model.layers.0.self_attn.q_proj.weight`.

Batches use the same hash x(name, i), with i the token's index in the flattened (rows, context) batch of step s = 0..9:

    token           = x("tokens.step<s>", i) mod vocab_size
    document length = LENGTHS[x("documents.step<s>", i) mod 8] for the document that starts at i, cut at the row's end
                      (packed batches only; otherwise a row is one document)
    target          = the next token of the same document; -1 (ignored) at a document's last token
                      and wherever x("ignored.step<s>", i) mod 8 == 0

Each fixture is a safetensors file, torch_<case>.safetensors, N = rows * context:

    __metadata__     `config`: the dimensions and hyper-parameters as JSON; `torch`: the PyTorch version
    tokens, targets, positions    I32 (10, N)   positions count from 0 within each document
    logits           F64 (N, V)   first batch, initial weights
    losses           F64 (10)     cross-entropy, without the z-loss, before each of the ten updates
    grad_norms       F64 (10)     global norm of the full gradient, z-loss included, before clipping
    grad.<name>      F64          gradient of the first batch at the initial weights, z-loss included, unclipped
    error.<dtype>.<name>  F64 (1)  relative L2 error of that gradient where all that kernels store is bf16 or fp16
    final.<name>     F64          parameters after the ten updates

The same PyTorch build on the same kind of processor writes the same bytes; elsewhere the last bits may differ.
Needs Python 3.10 and PyTorch 2.6, or later; runs on the CPU in a few seconds.
"""

import argparse
import array
import dataclasses
import json
import math
import pathlib
import struct
import sys
from typing import Any, Callable

import torch
from torch import Tensor

STEPS = 10
IGNORED = -1
LENGTHS = (1, 2, 3, 4, 5, 7, 9, 12)  # lengths a packed document can have before the row's end cuts it

Params = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Config:
    """Dimensions and hyper-parameters of one case; all but `packed` and `name` are stored in its fixture."""

    name: str
    n_heads: int
    n_kv_heads: int
    position: str  # "alibi" or "rope"
    tie_embeddings: bool
    qk_norm: bool
    packed: bool
    z_loss: float
    n_layers: int = 2
    d_model: int = 32
    head_dim: int = 32
    d_ff: int = 48
    vocab_size: int = 61
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_factor: float = 1.0  # above 1: wavelengths are stretched as in Llama 3.1
    rope_original_context: int = 8
    qkv_bias: bool = False
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    batch: int = 2
    context_length: int = 24
    steps: int = STEPS

    def to_json(self) -> str:
        fields = dataclasses.asdict(self)
        del fields["name"], fields["packed"]
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))


CASES = (
    # Three heads: a count that is no power of two, so the ALiBi slopes take both branches of their definition.
    Config("alibi_packed_gqa", n_heads=3, n_kv_heads=1, position="alibi", tie_embeddings=True, qk_norm=False,
           packed=True, z_loss=0.0),
    Config("rope_untied_qknorm", n_heads=2, n_kv_heads=1, position="rope", tie_embeddings=False, qk_norm=True,
           packed=False, z_loss=1e-3),
    # A base of 40 and a context of 8 put pairs into all three ranges of the stretch.
    Config("rope_stretched_bias", n_heads=4, n_kv_heads=2, position="rope", tie_embeddings=True, qk_norm=False,
           packed=True, z_loss=0.0, qkv_bias=True, rope_theta=40.0, rope_factor=4.0),
)


# ---- Weights and batches by formula ---------------------------------------------------------------------------------


def hash_u32(name: str, count: int) -> list[int]:
    """Returns the docstring's hash x(name, i) for i = 0..count-1."""
    mask = 0xFFFFFFFF
    seed = 0x811C9DC5
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x01000193) & mask
    values = []
    for i in range(count):
        x = seed ^ (i * 0x9E3779B9 & mask)
        x ^= x >> 16
        x = x * 0x85EBCA6B & mask
        x ^= x >> 13
        x = x * 0xC2B2AE35 & mask
        x ^= x >> 16
        values.append(x)
    return values


def parameter_shapes(cfg: Config) -> dict[str, tuple[int, ...]]:
    c, hs, f, v = cfg.d_model, cfg.head_dim, cfg.d_ff, cfg.vocab_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, c)}
    for layer in range(cfg.n_layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (c,)
        shapes[prefix + "self_attn.q_proj.weight"] = (cfg.n_heads * hs, c)
        shapes[prefix + "self_attn.k_proj.weight"] = (cfg.n_kv_heads * hs, c)
        shapes[prefix + "self_attn.v_proj.weight"] = (cfg.n_kv_heads * hs, c)
        shapes[prefix + "self_attn.o_proj.weight"] = (c, cfg.n_heads * hs)
        if cfg.qkv_bias:
            for which, heads in (("q", cfg.n_heads), ("k", cfg.n_kv_heads), ("v", cfg.n_kv_heads)):
                shapes[f"{prefix}self_attn.{which}_proj.bias"] = (heads * hs,)
        if cfg.qk_norm:
            shapes[prefix + "self_attn.q_norm.weight"] = (hs,)
            shapes[prefix + "self_attn.k_norm.weight"] = (hs,)
        shapes[prefix + "post_attention_layernorm.weight"] = (c,)
        shapes[prefix + "mlp.gate_proj.weight"] = (f, c)
        shapes[prefix + "mlp.up_proj.weight"] = (f, c)
        shapes[prefix + "mlp.down_proj.weight"] = (c, f)
    shapes["model.norm.weight"] = (c,)
    if not cfg.tie_embeddings:
        shapes["lm_head.weight"] = (v, c)
    return shapes


def initial_params(cfg: Config) -> Params:
    params = {}
    for name, shape in parameter_shapes(cfg).items():
        u = [x / 2.0**32 - 0.5 for x in hash_u32(name, math.prod(shape))]
        if len(shape) == 2:
            values = [0.6 * t for t in u]
        else:
            values = [0.5 * t if name.endswith(".bias") else 1.0 + 0.5 * t for t in u]
        params[name] = torch.tensor(values, dtype=torch.float64).reshape(shape).requires_grad_()
    return params


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch of (rows, context) integers. `documents` numbers the documents, unique over the whole batch."""

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    documents: Tensor


def make_batch(cfg: Config, step: int) -> Batch:
    rows, context = cfg.batch, cfg.context_length
    count = rows * context
    tokens = [x % cfg.vocab_size for x in hash_u32(f"tokens.step{step}", count)]
    length_hash = hash_u32(f"documents.step{step}", count)
    ignore_hash = hash_u32(f"ignored.step{step}", count)

    positions, documents = [0] * count, [0] * count
    targets = [IGNORED] * count
    start = document = 0
    while start < count:
        row_end = (start // context + 1) * context
        length = LENGTHS[length_hash[start] % len(LENGTHS)] if cfg.packed else context
        end = min(start + length, row_end)
        for i in range(start, end):
            positions[i], documents[i] = i - start, document
            if i + 1 < end and ignore_hash[i] % 8 != 0:
                targets[i] = tokens[i + 1]
        start, document = end, document + 1
    return Batch(*(torch.tensor(column).reshape(rows, context) for column in (tokens, targets, positions, documents)))


# ---- Model ----------------------------------------------------------------------------------------------------------


class RoundBothWays(torch.autograd.Function):
    """Stores a tensor in a 16-bit type, and its gradient too."""

    @staticmethod
    def forward(context: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        context.dtype = dtype
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(context.dtype).to(gradient.dtype), None


class RoundForward(torch.autograd.Function):
    """Rounds the copy of a weight that GEMMs read; its gradient is accumulated unrounded."""

    @staticmethod
    def forward(context: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


Stored = Callable[[Tensor], Tensor]  # marks a tensor that a kernel stores: nothing, or rounding to a 16-bit type


def exact(x: Tensor) -> Tensor:
    return x


def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps) * weight


def alibi_slopes(n_heads: int) -> Tensor:
    """Press et al. 2022: a geometric sequence for a power of two; further heads interleave the next finer sequence."""
    n2 = 2 ** (n_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (h + 1) / n2) for h in range(n2)]
    slopes += [2.0 ** (-4.0 * (2 * (h - n2) + 1) / n2) for h in range(n2, n_heads)]
    return torch.tensor(slopes, dtype=torch.float64)


def stretched(frequency: float, cfg: Config) -> float:
    """Returns the radians per position after Llama 3.1's stretch, with its factors of 1 and 4."""
    cycles = cfg.rope_original_context * frequency / (2 * math.pi)
    if cycles <= 1:
        return frequency / cfg.rope_factor
    if cycles >= 4:
        return frequency
    untouched = (cycles - 1) / 3
    return (1 - untouched) * frequency / cfg.rope_factor + untouched * frequency


def rotate(x: Tensor, positions: Tensor, cfg: Config) -> Tensor:
    """Applies RoPE to x (rows, heads, context, head_dim): turns the pair (d, d + HS/2) by position * its frequency."""
    half = x.shape[-1] // 2
    frequencies = torch.tensor([stretched(cfg.rope_theta ** (-d / half), cfg) for d in range(half)],
                               dtype=torch.float64)
    angles = positions[:, None, :, None].to(torch.float64) * frequencies
    cos, sin = torch.cos(angles), torch.sin(angles)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention(cfg: Config, params: Params, prefix: str, x: Tensor, batch: Batch, stored: Stored) -> Tensor:
    rows, context, _ = x.shape
    hs = cfg.head_dim

    def project(which: str, heads: int) -> Tensor:
        y = x @ params[f"{prefix}{which}_proj.weight"].T
        if cfg.qkv_bias:
            y = y + params[f"{prefix}{which}_proj.bias"]
        y = stored(y)
        return y.reshape(rows, context, heads, hs).transpose(1, 2)  # (rows, heads, context, head_dim)

    q = project("q", cfg.n_heads)
    k = project("k", cfg.n_kv_heads)
    v = project("v", cfg.n_kv_heads)
    if cfg.qk_norm:
        q = stored(rmsnorm(q, params[prefix + "q_norm.weight"], cfg.norm_eps))
        k = stored(rmsnorm(k, params[prefix + "k_norm.weight"], cfg.norm_eps))
    if cfg.position == "rope":
        q = stored(rotate(q, batch.positions, cfg))
        k = stored(rotate(k, batch.positions, cfg))

    # Query head h reads key/value head h // G: indexing repeats the heads, and autograd sums their gradients.
    kv_head = torch.arange(cfg.n_heads) // (cfg.n_heads // cfg.n_kv_heads)
    scores = q @ k[:, kv_head].transpose(-1, -2) / math.sqrt(hs)

    index = torch.arange(context)
    distance = index[:, None] - index[None, :]  # i - j; within a document equal to the difference of positions
    if cfg.position == "alibi":
        scores = scores - alibi_slopes(cfg.n_heads)[:, None, None] * distance

    same_document = batch.documents[:, :, None] == batch.documents[:, None, :]
    visible = (same_document & (distance >= 0))[:, None]
    scores = scores.masked_fill(~visible, -math.inf)
    # Every token sees at least itself, so each row's maximum is finite. The shift by it cancels in the quotient.
    weights = torch.exp(scores - scores.amax(dim=-1, keepdim=True).detach())
    weights = weights / weights.sum(dim=-1, keepdim=True)

    y = stored((weights @ v[:, kv_head]).transpose(1, 2).reshape(rows, context, cfg.n_heads * hs))
    return y @ params[prefix + "o_proj.weight"].T


def forward(cfg: Config, params: Params, batch: Batch, stored: Stored = exact) -> Tensor:
    """Returns the logits (rows, context, vocab)."""
    x = params["model.embed_tokens.weight"][batch.tokens]
    for layer in range(cfg.n_layers):
        prefix = f"model.layers.{layer}."
        n = stored(rmsnorm(x, params[prefix + "input_layernorm.weight"], cfg.norm_eps))
        x = stored(x + attention(cfg, params, prefix + "self_attn.", n, batch, stored))
        n = stored(rmsnorm(x, params[prefix + "post_attention_layernorm.weight"], cfg.norm_eps))
        gate = stored(n @ params[prefix + "mlp.gate_proj.weight"].T)
        up = stored(n @ params[prefix + "mlp.up_proj.weight"].T)
        hidden = stored(gate * torch.sigmoid(gate) * up)
        x = stored(x + hidden @ params[prefix + "mlp.down_proj.weight"].T)
    x = stored(rmsnorm(x, params["model.norm.weight"], cfg.norm_eps))
    head = params["model.embed_tokens.weight" if cfg.tie_embeddings else "lm_head.weight"]
    return stored(x @ head.T)


def losses_of(cfg: Config, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns cross-entropy, and the objective that is differentiated; both are means over the valid targets."""
    valid = targets != IGNORED
    chosen = logits[valid]
    lse = torch.logsumexp(chosen, dim=-1)
    target_logit = chosen.gather(1, targets[valid][:, None])[:, 0]
    cross_entropy = (lse - target_logit).sum() / valid.sum()
    z_term = cfg.z_loss * (lse * lse).sum() / valid.sum()
    return cross_entropy, cross_entropy + z_term


# ---- Optimizer ------------------------------------------------------------------------------------------------------


def gradients(cfg: Config, params: Params, batch: Batch) -> tuple[Tensor, Tensor, Params]:
    """Returns logits, cross-entropy and the unclipped gradient of the objective."""
    logits = forward(cfg, params, batch)
    cross_entropy, objective = losses_of(cfg, logits, batch.targets)
    grads = torch.autograd.grad(objective, list(params.values()))
    return logits.detach(), cross_entropy.detach(), dict(zip(params, grads))


def rounding_errors(cfg: Config, params: Params, batch: Batch, grads: Params, dtype: torch.dtype) -> Params:
    """Returns how far rounding takes gradients from `grads`: relative L2 errors where everything that a 16-bit kernel
    stores is rounded once, forward and backward, and everything between is exact. The gradient stored is that of the
    sum of token losses, so the objective is that sum."""
    copies = {name: RoundForward.apply(p, dtype) for name, p in params.items()}
    logits = forward(cfg, copies, batch, lambda x: RoundBothWays.apply(x, dtype))
    count = (batch.targets != IGNORED).sum()
    objective = losses_of(cfg, logits, batch.targets)[1] * count
    rounded = torch.autograd.grad(objective, list(params.values()))
    return {name: torch.linalg.norm(g / count - grads[name]) / torch.linalg.norm(grads[name])
            for name, g in zip(params, rounded)}


def clip(cfg: Config, grads: Params) -> tuple[Tensor, Params]:
    """Returns the global norm before clipping, and the gradients times min(1, grad_clip / norm)."""
    norm = torch.sqrt(sum((g * g).sum() for g in grads.values()))
    factor = min(1.0, cfg.grad_clip / norm.item())
    return norm, {name: g * factor for name, g in grads.items()}


class AdamW:
    """Adam with bias correction and decoupled weight decay; only 2-D parameters decay."""

    def __init__(self, cfg: Config, params: Params):
        self.cfg = cfg
        self.step_count = 0
        self.m = {name: torch.zeros_like(p) for name, p in params.items()}
        self.v = {name: torch.zeros_like(p) for name, p in params.items()}

    @torch.no_grad()
    def step(self, params: Params, grads: Params) -> None:
        cfg = self.cfg
        self.step_count += 1
        m_correction = 1.0 - cfg.beta1**self.step_count
        v_correction = 1.0 - cfg.beta2**self.step_count
        for name, p in params.items():
            g = grads[name]
            self.m[name] = m = cfg.beta1 * self.m[name] + (1.0 - cfg.beta1) * g
            self.v[name] = v = cfg.beta2 * self.v[name] + (1.0 - cfg.beta2) * g * g
            update = (m / m_correction) / (torch.sqrt(v / v_correction) + cfg.eps)
            decay = cfg.weight_decay if p.dim() == 2 else 0.0
            p -= cfg.lr * (update + decay * p)  # the right side is evaluated first: decay acts on the old value


def torch_adamw_params(cfg: Config, batches: list[Batch]) -> Params:
    """Returns the final parameters of the same run with torch.optim.AdamW as its optimizer."""
    params = initial_params(cfg)
    groups = [
        {"params": [p for p in params.values() if p.dim() == 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in params.values() if p.dim() != 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps)
    for batch in batches:
        _, _, grads = gradients(cfg, params, batch)
        # clip_grad_norm_ would not do: it divides by norm + 1e-6, so its result would differ in the seventh digit.
        _, clipped = clip(cfg, grads)
        for name, p in params.items():
            p.grad = clipped[name]
        optimizer.step()
    return params


# ---- Fixture --------------------------------------------------------------------------------------------------------


def run_case(cfg: Config) -> dict[str, Tensor]:
    """Train for the ten steps and return everything that the fixture holds."""
    batches = [make_batch(cfg, step) for step in range(cfg.steps)]
    check_batches(cfg, batches)
    params = initial_params(cfg)
    optimizer = AdamW(cfg, params)
    tensors: dict[str, Tensor] = {}
    losses, norms = [], []
    for step, batch in enumerate(batches):
        logits, loss, grads = gradients(cfg, params, batch)
        if step == 0:
            tensors["logits"] = logits.reshape(-1, cfg.vocab_size)
            tensors.update((f"grad.{name}", g) for name, g in grads.items())
            for dtype, label in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
                errors = rounding_errors(cfg, params, batch, grads, dtype)
                tensors.update((f"error.{label}.{name}", error.reshape(1)) for name, error in errors.items())
        norm, clipped = clip(cfg, grads)
        optimizer.step(params, clipped)
        losses.append(loss)
        norms.append(norm)

    reference = torch_adamw_params(cfg, batches)
    difference = max((params[name] - reference[name]).abs().max().item() for name in params)
    require(difference < 1e-12, f"{cfg.name}: AdamW differs from torch.optim.AdamW by {difference:.3g}")

    tensors["losses"] = torch.stack(losses)
    tensors["grad_norms"] = torch.stack(norms)
    tensors.update((f"final.{name}", p.detach()) for name, p in params.items())
    for key in ("tokens", "targets", "positions"):
        columns = [getattr(batch, key).reshape(-1) for batch in batches]
        tensors[key] = torch.stack(columns).to(torch.int32)
    return tensors


def safetensors_bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """8-byte header length, JSON header padded with spaces to a multiple of 8, data; all of it little-endian."""
    kinds = {torch.float64: ("F64", "d"), torch.int32: ("I32", "i")}
    header: dict[str, object] = {"__metadata__": metadata}
    data = bytearray()
    for name in sorted(tensors):
        tensor = tensors[name]
        dtype, code = kinds[tensor.dtype]
        values = array.array(code, tensor.reshape(-1).tolist())
        if sys.byteorder == "big":
            values.byteswap()
        begin = len(data)
        data += values.tobytes()
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(data)


# ---- Checks ---------------------------------------------------------------------------------------------------------


def require(condition: bool, message: str) -> None:
    """Asserts; `python -O` does not remove it."""
    if not condition:
        raise SystemExit(f"error: {message}")


def check_batches(cfg: Config, batches: list[Batch]) -> None:
    """Checks that the formula gives what the tests rely on."""
    for step, batch in enumerate(batches):
        lengths = torch.bincount(batch.documents.reshape(-1))
        where = f"{cfg.name}, step {step}"
        require(bool((batch.positions[:, 0] == 0).all()), f"{where}: a row does not start a document")
        require(bool((batch.targets != IGNORED).any()), f"{where}: no valid target")
        if cfg.packed:
            require(len(lengths) > cfg.batch, f"{where}: rows are not packed")
        else:
            require(len(lengths) == cfg.batch, f"{where}: a row is not one document")
        if cfg.packed and step == 0:
            require(bool((lengths == 1).any()), f"{where}: no one-token document")


@torch.no_grad()
def self_check(cfg: Config) -> None:
    """Check what each logit depends on, in both the packed and the plain layout."""
    params = initial_params(cfg)
    for packed in (True, False):
        layout = dataclasses.replace(cfg, packed=packed)
        batch = make_batch(layout, 0)
        logits = forward(cfg, params, batch)
        where = f"{cfg.name}, {'packed' if packed else 'plain'} rows"

        # Change one token at a time. Exactly the same document's tokens from there on may move, and must.
        for row in range(cfg.batch):
            for column in range(cfg.context_length):
                tokens = batch.tokens.clone()
                tokens[row, column] = (tokens[row, column] + 1) % cfg.vocab_size
                changed = (forward(cfg, params, dataclasses.replace(batch, tokens=tokens)) != logits).any(dim=-1)
                expected = batch.documents == batch.documents[row, column]
                expected &= batch.positions >= batch.positions[row, column]
                require(torch.equal(changed, expected), f"{where}: token ({row}, {column}) moves the wrong logits")

        # A document alone, at the start of a row of its own, has the logits that it has when packed.
        for document in range(int(batch.documents.max()) + 1):
            inside = batch.documents == document
            alone = Batch(*(getattr(batch, field.name)[inside][None] for field in dataclasses.fields(Batch)))
            difference = (forward(cfg, params, alone)[0] - logits[inside]).abs().max().item()
            require(difference < 1e-12, f"{where}: document {document} alone differs by {difference:.3g}")

    # The gradient against a central difference along a fixed direction, which the z-loss and the tying take part in.
    batch = make_batch(cfg, 0)
    with torch.enable_grad():
        _, _, grads = gradients(cfg, params, batch)
    direction = {name: torch.tensor(hash_u32("direction." + name, p.numel()), dtype=torch.float64).reshape(p.shape)
                 / 2.0**32 - 0.5 for name, p in params.items()}
    h = 1e-5
    ends = []
    for sign in (1.0, -1.0):
        moved = {name: p + sign * h * direction[name] for name, p in params.items()}
        ends.append(losses_of(cfg, forward(cfg, moved, batch), batch.targets)[1].item())
    slope = sum((grads[name] * direction[name]).sum().item() for name in params)
    difference = abs((ends[0] - ends[1]) / (2.0 * h) - slope)
    require(difference < 1e-6 * max(1.0, abs(slope)), f"{cfg.name}: gradient is off by {difference:.3g}")
    print(f"self-check {cfg.name}: passed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write the float64 PyTorch reference fixtures torch_<case>.safetensors: logits, gradients and "
        "ten AdamW steps of three tiny models. The weights and batches come from a formula, so runs are reproducible.",
        epilog="Cases: " + ", ".join(cfg.name for cfg in CASES) + ".",
    )
    parser.add_argument("--output", metavar="DIR", type=pathlib.Path, required=True,
                        help="directory that receives the fixture files; made if missing")
    parser.add_argument("--self-check", action="store_true",
                        help="first check causality, document isolation and the gradient of each model")
    args = parser.parse_args()

    torch.set_num_threads(1)  # the order of every sum, and so the bytes written, must not depend on the core count
    if args.self_check:
        for cfg in CASES:
            self_check(cfg)
    args.output.mkdir(parents=True, exist_ok=True)
    for cfg in CASES:
        tensors = run_case(cfg)
        content = safetensors_bytes(tensors, {"config": cfg.to_json(), "torch": str(torch.__version__)})
        path = args.output / f"torch_{cfg.name}.safetensors"
        path.write_bytes(content)
        losses = tensors["losses"].tolist()
        print(f"{path}: {len(content)} bytes, loss {losses[0]:.6f} -> {losses[-1]:.6f}")


if __name__ == "__main__":
    main()
