"""The model that bench_torch.py times: Ingot's, as a careful user of PyTorch writes it. Nothing here is run by itself.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Callable

from torch_rows import IGNORED
from torch_twin import WeightSource, alibi_slopes, rope_frequencies

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A layer calls this for attention: q (B, NH, T, HS), k and v (B, NKV, T, HS), and the batch's mask.
Attention = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


class Attend:
    """scaled_dot_product_attention: an additive mask or none, keys repeated for the group or not."""

    def __init__(self, is_causal: bool, grouped: bool, group: int) -> None:
        self.is_causal, self.grouped, self.group = is_causal, grouped, group

    def __str__(self) -> str:
        return f"scaled_dot_product_attention({'is_causal' if self.is_causal else 'float mask'}, " + \
            ("no groups" if self.group == 1 else "enable_gqa" if self.grouped else "keys repeated") + ")"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if not self.grouped and self.group > 1:
            k, v = (x.repeat_interleave(self.group, dim=1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if self.is_causal else mask,
                                              is_causal=self.is_causal, enable_gqa=self.grouped and self.group > 1)


class Block(nn.Module):
    def __init__(self, m: dict[str, Any]) -> None:
        super().__init__()
        c, heads, kv_heads, hs = m["d_model"], m["n_heads"], m["n_kv_heads"], m["head_dim"]
        self.heads, self.kv_heads, self.hs, self.eps = heads, kv_heads, hs, m["norm_eps"]
        self.attention_norm = nn.Parameter(torch.ones(c))
        self.qkv = nn.Linear(c, (heads + 2 * kv_heads) * hs, bias=m.get("qkv_bias", False))
        self.attention_out = nn.Linear(heads * hs, c, bias=False)
        self.mlp_norm = nn.Parameter(torch.ones(c))
        self.gate_up = nn.Linear(c, 2 * m["d_ff"], bias=False)
        self.down = nn.Linear(m["d_ff"], c, bias=False)
        if m["qk_norm"]:
            self.q_norm, self.k_norm = nn.Parameter(torch.ones(hs)), nn.Parameter(torch.ones(hs))

    def forward(self, x: Tensor, attend: Attention, mask: Any, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        rows, context, c = x.shape
        qkv = self.qkv(F.rms_norm(x, (c,), self.attention_norm, self.eps))
        qkv = qkv.view(rows, context, self.heads + 2 * self.kv_heads, self.hs).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if hasattr(self, "q_norm"):
            q, k = (F.rms_norm(x, (self.hs,), w, self.eps) for x, w in ((q, self.q_norm), (k, self.k_norm)))
        if rope is not None:
            q, k = (rotate(x, *rope) for x in (q, k))
        y = attend(q, k, v, mask).transpose(1, 2).reshape(rows, context, self.heads * self.hs)
        x = x + self.attention_out(y)
        gate, up = self.gate_up(F.rms_norm(x, (c,), self.mlp_norm, self.eps)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


class Gpt(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        m = self.m = config["model"]
        self.embedding = nn.Embedding(m["vocab_size"], m["d_model"])
        self.layers = nn.ModuleList(Block(m) for _ in range(m["n_layers"]))
        self.final_norm = nn.Parameter(torch.ones(m["d_model"]))
        self.head = nn.Linear(m["d_model"], m["vocab_size"], bias=False)
        if m["tie_embeddings"]:
            self.head.weight = self.embedding.weight
        context = m["context_length"]
        self.rope_table = None
        if m["position"] == "rope":
            frequencies = rope_frequencies(m)
            angles = torch.arange(context)[:, None] * torch.cat((frequencies, frequencies))
            self.rope_table = (angles.cos().float(), angles.sin().float())

    @functools.cached_property
    def bias(self) -> Tensor:
        """Returns ALiBi, and -inf for the future: (1 or NH, T, T)."""
        m = self.m
        distance = torch.arange(m["context_length"])[:, None] - torch.arange(m["context_length"])[None, :]
        causal = torch.where(distance >= 0, 0.0, -math.inf)
        if m["position"] == "alibi":
            return causal - alibi_slopes(m["n_heads"])[:, None, None] * distance
        return causal[None]

    def mask(self, documents: Tensor) -> Tensor:
        """(B or 1, NH or 1, T, T), added to the scores."""
        if not bool((documents[:, -1] > documents[:, 0]).any()):
            return self.bias[None]
        other = documents[:, None, :, None] != documents[:, None, None, :]
        return self.bias[None].masked_fill(other, -math.inf)

    def rope(self, documents: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.rope_table is None:
            return None
        first = (documents[:, :, None] == documents[:, None, :]).int().argmax(dim=-1)  # where the document begins
        positions = torch.arange(documents.shape[1]) - first
        cosine, sine = self.rope_table
        return cosine[positions][:, None], sine[positions][:, None]

    def forward(self, tokens: Tensor, targets: Tensor, documents: Tensor, attend: Attend) -> Tensor:
        x = self.embedding(tokens)
        mask = None if attend.is_causal else self.mask(documents)
        rope = self.rope(documents)
        for layer in self.layers:
            x = layer(x, attend, mask, rope)
        logits = self.head(F.rms_norm(x, x.shape[-1:], self.final_norm, self.m["norm_eps"]))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=IGNORED,
                               reduction="sum")

    @torch.no_grad()
    def load(self, weight: WeightSource) -> None:
        m = self.m
        c, f, hs, heads = m["d_model"], m["d_ff"], m["head_dim"], {"q": m["n_heads"]}

        def projection(at: str, letter: str) -> Tensor:
            return weight(f"{at}self_attn.{letter}_proj.weight", (heads.get(letter, m["n_kv_heads"]) * hs, c))

        self.embedding.weight.copy_(weight("model.embed_tokens.weight", (m["vocab_size"], c)))
        self.final_norm.copy_(weight("model.norm.weight", (c,)))
        if not m["tie_embeddings"]:
            self.head.weight.copy_(weight("lm_head.weight", (m["vocab_size"], c)))
        for number, layer in enumerate(self.layers):
            at = f"model.layers.{number}."
            layer.attention_norm.copy_(weight(at + "input_layernorm.weight", (c,)))
            layer.qkv.weight.copy_(torch.cat([projection(at, letter) for letter in "qkv"]))
            if layer.qkv.bias is not None:
                layer.qkv.bias.copy_(torch.cat([weight(f"{at}self_attn.{letter}_proj.bias",
                                                       (heads.get(letter, m["n_kv_heads"]) * hs,))
                                                for letter in "qkv"]))
            layer.attention_out.weight.copy_(weight(at + "self_attn.o_proj.weight", (c, m["n_heads"] * hs)))
            layer.mlp_norm.copy_(weight(at + "post_attention_layernorm.weight", (c,)))
            layer.gate_up.weight.copy_(torch.cat([weight(f"{at}mlp.{x}_proj.weight", (f, c)) for x in ("gate", "up")]))
            layer.down.weight.copy_(weight(at + "mlp.down_proj.weight", (c, f)))
            if m["qk_norm"]:
                layer.q_norm.copy_(weight(at + "self_attn.q_norm.weight", (hs,)))
                layer.k_norm.copy_(weight(at + "self_attn.k_norm.weight", (hs,)))
