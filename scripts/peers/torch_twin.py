"""Computes again in PyTorch what Ingot computes before its first GEMM: random numbers, initial weights, learning rates.
torch_rows.py has the rows of tokens.

For the scripts that train the same model in PyTorch: bench_torch.py and torch_loop.py. Nothing here is run by itself.
Each part names the file that it is the twin of; tests/scripts/test_torch_twin.py compares them with a run of ./train.
"""

from __future__ import annotations

import json
import math
import pathlib
import struct
import sys
from typing import Any, Callable, NoReturn, TypeVar

try:
    import torch
    from torch import Tensor
except ImportError:
    sys.exit("error: this Python has no PyTorch: run the script with one that has, 2.6 or later")

# Returns the weight of a checkpoint name and shape.
WeightSource = Callable[[str, tuple[int, ...]], Tensor]


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


# ---- Random numbers: kernels/core/rng.h ------------------------------------------------------------------------------

LOW = 0xFFFFFFFF
Word = TypeVar("Word", int, Tensor)  # 32 bits, or int64 tensors of them


def multiply_high_low(constant: int, x: Word) -> tuple[Word, Word]:
    """Returns the two 32-bit halves of constant * x, both of 32 bits, in int64. It multiplies the 16-bit halves of x,
    so that no product reaches the sign bit."""
    low, high = constant * (x & 0xFFFF), constant * (x >> 16)
    high = high + (low >> 16)
    return high >> 16, (high & 0xFFFF) << 16 | low & 0xFFFF


def philox(counter: tuple[Word, Word, Word, Word], key: int) -> tuple[Word, Word, Word, Word]:
    """Philox4x32-10."""
    x0, x1, x2, x3 = counter
    k0, k1 = key & LOW, key >> 32 & LOW
    for _ in range(10):
        high0, low0 = multiply_high_low(0xD2511F53, x0)
        high1, low1 = multiply_high_low(0xCD9E8D57, x2)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return x0, x1, x2, x3


def stream_of(name: str) -> int:
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def random_bits(seed: int, stream: int, begin: int, count: int, device: str = "cpu") -> Tensor:
    """Words [begin, begin + count) of a stream, begin a multiple of 4; int64 that holds 32 bits."""
    block = torch.arange(begin // 4, (begin + count + 3) // 4, device=device)
    ones = torch.ones_like(block)
    words = philox((block & LOW, block >> 32, ones * (stream & LOW), ones * (stream >> 32)), seed)
    return torch.stack(words, dim=1).view(-1)[:count]


def fused(a: Tensor | float, b: Tensor, c: Tensor | float) -> Tensor:
    """Computes fmaf: the product of two floats is exact in double. The sum is rounded twice, which differs from one
    rounding in about one case of 2^29."""
    a, c = (x.double() if isinstance(x, Tensor) else float_of(x) for x in (a, c))
    return (a * b.double() + c).float()


def float_of(x: float) -> float:
    """Returns the number as C++ reads a float literal."""
    return struct.unpack("f", struct.pack("f", x))[0]


def polynomial(x: Tensor, first: float, *rest: float) -> Tensor:
    p = torch.full_like(x, first)
    for coefficient in rest:
        p = fused(p, x, coefficient)
    return p


def natural_log(x: Tensor) -> Tensor:
    bits = x.view(torch.int32)
    exponent = (bits >> 23) - 126
    m = ((bits & 0x007FFFFF) | 0x3F000000).view(torch.float32)
    small = m < float_of(0.70710678)
    exponent = torch.where(small, exponent - 1, exponent).float()
    m = torch.where(small, m + m, m) - 1.0
    square = m * m
    p = polynomial(m, 7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
                   -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)
    p = fused(-0.5, square, p * m * square)
    return fused(0.693359375, exponent, fused(float_of(-2.12194440e-4), exponent, m + p))


def normal_from_bits(bits: Tensor) -> Tensor:
    tail = ((bits & 0x7FFFFFFF).float() + 0.5) * 2.0**-32
    x = fused(-2.0, tail, 1.0)
    w = -natural_log(4.0 * tail * fused(-1.0, tail, 1.0))
    center = polynomial(w - 2.5, 2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
                        -0.00125372503, -0.00417768164, 0.246640727, 1.50140941)
    root = w.double().clamp(min=0).sqrt().float()  # as IEEE 754 rounds it, which MKL's own root does not
    tails = polynomial(root - 3.0, -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
                       -0.0076224613, 0.00943887047, 1.00167406, 2.83297682)
    z = torch.where(w < 5.0, center, tails) * x * torch.tensor(1.41421356, dtype=torch.float32, device=bits.device)
    return torch.where((bits & 0x80000000) != 0, -z, z)


# ---- Initial weights: src/model/parameters.cpp -----------------------------------------------------------------------------


def initial_weights(config: dict[str, Any], device: str = "cpu") -> WeightSource:
    """Returns Ingot's initial weights, tensor by tensor, on any device."""
    m, seed = config["model"], config["seed"]

    def weight(name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return (torch.zeros if name.endswith(".bias") else torch.ones)(shape, device=device)
        std = m["init_std"]
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= math.sqrt(2.0 * m["n_layers"])
        stream, count, chunk = stream_of(name), math.prod(shape), 1 << 22
        values = torch.empty(count, device=device)
        for begin in range(0, count, chunk):
            size = min(chunk, count - begin)
            values[begin:begin + size] = normal_from_bits(random_bits(seed, stream, begin, size, device))
        return values.mul_(float_of(std)).view(shape)

    return weight


def saved_weights(path: pathlib.Path) -> WeightSource:
    """Returns the tensors of a checkpoint's safetensors file."""
    content = memoryview(bytearray(path.read_bytes()))
    (size,) = struct.unpack_from("<Q", content)
    header = json.loads(bytes(content[8:8 + size]))

    def weight(name: str, shape: tuple[int, ...]) -> Tensor:
        begin, end = header[name]["data_offsets"]
        flat = torch.frombuffer(content[8 + size + begin:8 + size + end], dtype=torch.float32)
        return flat.view(shape)

    return weight


def alibi_slopes(heads: int) -> Tensor:
    """Press et al. 2022, also for a head count that is no power of two."""
    n2 = 2 ** (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (h + 1) / n2) for h in range(n2)]
    return torch.tensor(slopes + [2.0 ** (-4.0 * (2 * (h - n2) + 1) / n2) for h in range(n2, heads)])


def rope_frequencies(m: dict[str, Any], device: str = "cpu") -> Tensor:
    """Returns the radians per position of each pair (HS/2), in float64, stretched where model.rope_scaling says so."""
    half = m["head_dim"] // 2
    frequencies = m["rope_theta"] ** (-torch.arange(half, dtype=torch.float64, device=device) / half)
    scaling = m.get("rope_scaling", {"type": "none"})
    if scaling["type"] == "none":
        return frequencies
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    cycles = scaling["original_context_length"] * frequencies / (2 * math.pi)
    share = ((cycles - low) / (high - low)).clamp(0, 1)
    return frequencies * ((1 - share) / scaling["factor"] + share)


# ---- Learning rate: src/optimizer/schedule.cpp ---------------------------------------------------------------------------------


def learning_rate(config: dict[str, Any], step: int) -> float:
    schedule, lr, steps = config["schedule"], config["optimizer"]["lr"], config["training"]["steps"]
    warmup, low = schedule["warmup_steps"], schedule["final_lr_fraction"]
    if step <= warmup:
        return lr * step / warmup

    def progress(begin: int) -> float:
        return (step - begin) / max(1, steps - begin)

    if schedule["type"] == "linear":
        return lr * (1 - (1 - low) * progress(warmup))
    if schedule["type"] == "cosine":
        return lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress(warmup))))
    begin = steps - schedule["decay_steps"] if schedule["type"] == "wsd" else steps
    return lr if step <= begin else lr * (1 - (1 - low) * progress(begin))
