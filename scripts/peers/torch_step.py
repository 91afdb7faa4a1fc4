"""PyTorch's side of bench_torch.py on a GPU: the compiled training step, and one timed phase of it, in a process of its
own. torch_ranks.py spreads the same step over several GPUs. Nothing here is run by itself."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import pathlib
import statistics
import time
from typing import Any, Callable

from torch_rows import IGNORED, Rows
from torch_twin import alibi_slopes, initial_weights
from torch_gpt import Attention, Gpt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

LOSSES_KEPT = 20


class ChunkedCrossEntropy(torch.autograd.Function):
    """Returns the sum of token losses. The gradient is taken in the forward pass, a chunk of tokens at a time, so that
    only the logits of one chunk exist at a time; the gradient of the weight is summed over the chunks in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        narrow = weight.to(x.dtype)
        total = torch.zeros((), device=x.device)
        dweight = torch.zeros(weight.shape, device=x.device)
        columns = torch.arange(weight.shape[0], device=x.device)
        dx = []
        for begin in range(0, len(x), chunk):
            part, target = x[begin:begin + chunk], targets[begin:begin + chunk]
            logits = (part @ narrow.T).float()
            lse = logits.logsumexp(dim=-1)
            counts = target != IGNORED
            at_target = logits.gather(1, target.clamp(min=0)[:, None])[:, 0]
            total = total + torch.where(counts, lse - at_target, 0.0).sum()
            dlogits = (logits - lse[:, None]).exp() - (columns == target[:, None]).float()
            dlogits = torch.where(counts[:, None], dlogits, 0.0).to(x.dtype)
            dx.append(dlogits @ narrow)
            dweight = dweight + dlogits.T @ part
        ctx.save_for_backward(torch.cat(dx), dweight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        dx, dweight = ctx.saved_tensors
        return (dx * dloss).to(dx.dtype), (dweight * dloss).to(dweight.dtype), None, None


class FlexAttend:
    """FlexAttention with ALiBi or without; the block mask has causality and documents."""

    def __init__(self, slopes: Tensor | None) -> None:
        def alibi(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return score - slopes[h] * (q - k)  # type: ignore[index]

        self.score_mod = None if slopes is None else alibi

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        return flex_attention(q.to(v.dtype), k.to(v.dtype), v, score_mod=self.score_mod,  # type: ignore[return-value]
                              block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def attend_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask,
                                          enable_gqa=q.shape[1] != k.shape[1])


def attend_causal(q: Tensor, k: Tensor, v: Tensor, mask: None) -> Tensor:
    return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True,
                                          enable_gqa=q.shape[1] != k.shape[1])


def attend_not(q: Tensor, k: Tensor, v: Tensor, mask: None) -> Tensor:
    """Leaves attention out: each query head gets its own token's v. So q and k get no gradient, but are computed, and
    the GEMMs of QKV keep their shapes. Ingot does the same with `./bench step --no-attention`: out = v of the head's
    group, dq = dk = 0, dv = dout summed over the group, and neither RoPE nor QK-norm."""
    return v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


class DocumentMask:
    """FlexAttention's block mask of a micro-batch. Its function reads one buffer, so that it is compiled once."""

    def __init__(self, rows: int, context: int, is_masked: bool, is_compiled: bool, device: str) -> None:
        self.documents = documents = torch.zeros(rows, context, dtype=torch.int32, device=device)

        def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return q >= k

        def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (documents[b, q] == documents[b, k])

        create = torch.compile(create_block_mask, dynamic=False) if is_compiled else create_block_mask
        if is_masked:
            self.create: Callable[[], Any] = lambda: create(visible, rows, None, context, context, device=device)
        else:
            whole = create_block_mask(causal, None, None, context, context, device=device)
            self.create = lambda: whole

    def __call__(self, documents: Tensor) -> Any:
        self.documents.copy_(documents)
        return self.create()


class TimedGpt(Gpt):
    """Gpt as it is timed: with a given attention and loss, and with masks and RoPE's angles made outside."""

    def __init__(self, config: dict[str, Any], attend: Attention, chunk: int | None) -> None:
        super().__init__(config)
        self.attend, self.chunk = attend, chunk

    def angles(self, documents: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.rope_table is None:
            return None
        place = torch.arange(documents.shape[1], device=documents.device)
        is_first = torch.diff(documents, dim=1, prepend=documents[:, :1] - 1) != 0
        positions = place - torch.where(is_first, place, 0).cummax(dim=1).values
        cosine, sine = (table.to(documents.device) for table in self.rope_table)
        return cosine[positions][:, None], sine[positions][:, None]

    def forward(self, tokens: Tensor, targets: Tensor, mask: Any,  # type: ignore[override]
                rope: tuple[Tensor, Tensor] | None, scale: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.attend, mask, rope)
        return self.loss(x, targets, scale)

    def loss(self, x: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
        x = F.rms_norm(x, x.shape[-1:], self.final_norm, self.m["norm_eps"]).flatten(0, 1)
        if self.chunk is not None:
            if torch.is_autocast_enabled(x.device.type):
                x = x.to(torch.get_autocast_dtype(x.device.type))
            return ChunkedCrossEntropy.apply(x, self.head.weight, targets.flatten(), self.chunk) * scale
        logits = self.head(x).float()
        return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum") * scale


def multiply_in_float8(model: Gpt) -> None:
    """Has the layers multiply in fp8 by torchao: one scale for a tensor, from the largest value of the moment. The
    head stays as it is, as Ingot's does."""
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise SystemExit(f"error: training.precision \"fp8\" has PyTorch's side use torchao, and {error}: "
                         "python3 -m pip install torchao") from None
    convert_to_float8_training(model, config=Float8LinearConfig.from_recipe_name("tensorwise"),
                               module_filter_fn=lambda module, name: isinstance(module, nn.Linear) and name != "head")


class Trainer:
    """Trains on one GPU. A subclass for several overrides the four methods below."""

    def distribute(self, mode: str) -> Callable[..., Tensor]:
        """Spreads self.model over the ranks, before the optimizer sees its parameters; returns what computes a loss,
        compiled in this mode of torch.compile unless it is "off"."""
        return self.model if mode == "off" else torch.compile(self.model, mode=mode, dynamic=False)

    def first_row(self, micro_step: int) -> int:
        """Returns where the rows of a micro-step begin, micro-steps being counted from the start of the run."""
        return micro_step * self.micro_batch

    def accumulating(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Is entered around a micro-step."""
        return contextlib.nullcontext()

    def clip(self) -> Tensor:
        """Clips the gradients; returns their norm before."""
        return nn.utils.clip_grad_norm_(self.masters, self.grad_clip or math.inf, foreach=True)

    def __init__(self, job: dict[str, Any]) -> None:
        config, device = job["config"], job["device"]
        m, o, training = config["model"], config["optimizer"], config["training"]
        self.precision, self.device, self.attention = job["precision"], device, job["attention"]
        self.grad_clip, self.micro_batch = o["grad_clip"], training["micro_batch_size"]
        self.rows = Rows(config, device)
        self.micro_steps = training["batch_tokens"] // (self.micro_batch * m["context_length"])
        slopes = alibi_slopes(m["n_heads"]).to(device) if m["position"] == "alibi" else None
        attend: Attention = {"flex": FlexAttend(slopes), "flash": attend_causal, "cudnn": attend_causal,
                             "none": attend_not, "mask": attend_masked}[self.attention]
        self.model = TimedGpt(config, attend, job["chunk_tokens"] if job["loss"] == "chunked" else None).to(device)
        self.model.load(initial_weights(config, device))
        if training.get("precision") == "fp8":
            multiply_in_float8(self.model)
        is_compiled = job["compile"] != "off"
        self.mask = DocumentMask(self.micro_batch, m["context_length"], config["data"]["mask_documents"], is_compiled,
                                 device) if self.attention == "flex" else None
        self.call = self.distribute(job["compile"])
        parameters = list(self.model.parameters())
        self.masters = parameters
        if self.precision == "master":  # fp32 weights for AdamW, a bf16 copy for the model, as Ingot has
            self.masters = [nn.Parameter(p.detach().clone()) for p in parameters]
        if self.precision in ("master", "bf16"):
            self.model.to(torch.bfloat16)
        self.parameters = list(self.model.parameters())
        groups = [{"params": [p for p in self.masters if p.dim() == 2], "weight_decay": o["weight_decay"]},
                  {"params": [p for p in self.masters if p.dim() != 2], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=o["lr"], betas=(o["beta1"], o["beta2"]), eps=o["eps"], fused=True)

    def contexts(self) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        if self.precision == "autocast":
            stack.enter_context(torch.autocast(torch.device(self.device).type, torch.bfloat16))
        backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
        if self.attention in backends:
            stack.enter_context(sdpa_kernel([backends[self.attention]]))
        return stack

    def masks(self, documents: Tensor) -> Any:
        if self.attention == "mask":  # the materialized matrix, to try this on a CPU
            return self.model.mask(documents.cpu()).to(self.device)
        return None if self.mask is None else self.mask(documents)

    def gather_gradients(self) -> None:
        """Sums the copy's gradients in fp32."""
        gradients = [p.grad for p in self.parameters]
        if self.masters[0].grad is None:
            for master, gradient in zip(self.masters, gradients):
                master.grad = gradient.float()  # type: ignore[union-attr]
        else:
            torch._foreach_add_([master.grad for master in self.masters], gradients)
        for p in self.parameters:
            p.grad = None

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """Takes a step; returns the mean loss and the norm of its gradient, on the device."""
        first = number * self.micro_steps
        batches = [self.rows.batch(self.first_row(first + i), self.micro_batch) for i in range(self.micro_steps)]
        scale = 1.0 / sum((targets != IGNORED).sum() for _, targets, _ in batches)  # type: ignore[operator]
        total = torch.zeros((), device=self.device)
        for i, (tokens, targets, documents) in enumerate(batches):
            mask, rope = self.masks(documents), self.model.angles(documents)
            with self.accumulating(is_last=i + 1 == len(batches)):
                with self.contexts():
                    loss = self.call(tokens, targets, mask, rope, scale)
                loss.backward()
            total += loss.detach()
            if self.precision == "master":
                self.gather_gradients()
        norm = self.clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.precision == "master":
            torch._foreach_copy_([p.detach() for p in self.parameters], [p.detach() for p in self.masters])
        return total, norm


def worker(job: dict[str, Any]) -> None:
    """Runs one phase, in a process of its own."""
    is_gpu = job["device"] == "cuda"
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    trainer = Trainer(job)
    batch_tokens = job["config"]["training"]["batch_tokens"]

    def synchronize() -> None:
        if is_gpu:
            torch.cuda.synchronize()

    losses: list[Tensor] = []
    norms: list[Tensor] = []
    ends: list[Any] = []
    first_step = begin = settled = math.nan
    counted = 0
    for number in itertools.count():
        loss, norm = trainer.step(number)
        if number < LOSSES_KEPT:
            losses.append(loss)
            norms.append(norm)
        if is_gpu:
            ends.append(torch.cuda.Event(enable_timing=True))
            ends[-1].record()
            if len(ends) > 1:
                ends[-2].synchronize()  # the host is a step ahead, and no more
        if number == 0:
            synchronize()
            settled = time.time()
            first_step = settled - job["spawned"]
        elif math.isnan(begin):
            if time.time() - settled >= job["settle"]:
                synchronize()
                begin = time.time()
                ends = ends[-1:]
        else:
            counted += 1
            if time.time() - begin >= job["seconds"]:
                break
    synchronize()
    end = time.time()
    milliseconds = [a.elapsed_time(b) for a, b in zip(ends, ends[1:])]
    memory = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()} if is_gpu \
        else {}
    pathlib.Path(job["result"]).write_text(json.dumps({
        "tokens_per_second": counted * batch_tokens / (end - begin), "steps": counted,
        "median_step_seconds": statistics.median(milliseconds) / 1e3 if milliseconds else (end - begin) / counted,
        "first_step_seconds": first_step, "window": [begin, end], "losses": [x.item() for x in losses],
        "norms": [x.item() for x in norms], "memory": memory}))
