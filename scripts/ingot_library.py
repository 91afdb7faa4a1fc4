"""libingot.so by ctypes: the structs of kernels/c_api.h, and how a function of it is called with tensors of PyTorch.

ingot_torch.py makes functions with gradients of it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
from typing import Any, Optional

import torch
from torch import Tensor

ABI_VERSION = 3  # INGOT_ABI_VERSION of kernels/c_api.h
ROOT = pathlib.Path(__file__).resolve().parents[1]

# ---- The structs of kernels/c_api.h ----

# ingot_dtype
DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3, torch.int32: 4, torch.uint8: 5}
_Axes = ctypes.c_int64 * 4


class CTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int32), ("ndim", ctypes.c_int32), ("shape", _Axes),
                ("strides", _Axes)]


class CDevice(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint64), ("kind", ctypes.c_int32), ("index", ctypes.c_int32),
                ("stream", ctypes.c_void_p)]


class CAttentionOptions(ctypes.Structure):
    _fields_ = [("kernel", ctypes.c_int32), ("any_order", ctypes.c_int32)]


def struct_of(name: str, tensors: str, *rest: tuple[str, Any]) -> type[ctypes.Structure]:
    """A struct of arguments: struct_size, `tensors` (names, in order), and what follows them."""
    fields = [("struct_size", ctypes.c_uint64)] + [(tensor, CTensor) for tensor in tensors.split()] + list(rest)
    return type(name, (ctypes.Structure,), {"_fields_": fields})


MASK = "first_key end_key first_query end_query"
CAttentionForward = struct_of("CAttentionForward", f"out lse q k v slopes {MASK}", ("scale", ctypes.c_double),
                              ("options", CAttentionOptions))
CAttentionBackward = struct_of("CAttentionBackward", f"dq dk dv dout out lse q k v slopes {MASK}",
                               ("scale", ctypes.c_double), ("options", CAttentionOptions), ("workspace", CTensor))
CRmsNormForward = struct_of("CRmsNormForward", "out rstd x weight", ("eps", ctypes.c_double))
CRmsNormBackward = struct_of("CRmsNormBackward", "dx dweight dout x rstd weight dresidual workspace",
                             ("overwrite", ctypes.c_int32), ("reserved", ctypes.c_int32))
CSwigluForward = struct_of("CSwigluForward", "out gate_up")
CSwigluBackward = struct_of("CSwigluBackward", "dgate_up dout gate_up out")
CCrossEntropy = struct_of("CCrossEntropy", "logits losses targets", ("vocab_size", ctypes.c_int64),
                          ("z_loss", ctypes.c_double), ("loss_scale", ctypes.c_void_p), ("write_gradient", ctypes.c_int32),
                          ("reserved", ctypes.c_int32))


# ---- The library ----

@functools.lru_cache(maxsize=None)
def library() -> ctypes.CDLL:
    """libingot.so, loaded once. RuntimeError where there is none, or one of another version."""
    path = pathlib.Path(os.environ.get("INGOT_LIBRARY") or ROOT / "libingot.so")
    if not path.is_file():
        raise RuntimeError(f"{path} does not exist: build it (cmake --preset release && "
                           "cmake --build --preset release), or name it by INGOT_LIBRARY")
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(f"{path} cannot be loaded: {error}") from error
    loaded.ingot_last_error.restype = ctypes.c_char_p
    version = loaded.ingot_abi_version()
    if version != ABI_VERSION:
        raise RuntimeError(f"{path} speaks version {version} of the ABI, this file version {ABI_VERSION}: build both "
                           "from the same sources")
    return loaded


def _call(function: str, *arguments: Any) -> None:
    loaded = library()
    status = getattr(loaded, f"ingot_{function}")(*arguments)
    if status != 0:
        message = loaded.ingot_last_error().decode()
        raise (ValueError if status == 2 else RuntimeError)(message)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class On:
    """The device of a call: where `tensor` lies, and the current stream there."""

    def __init__(self, tensor: Tensor) -> None:
        device = tensor.device
        if device.type == "cuda":
            require(library().ingot_has_cuda() == 1,
                    "libingot.so was built without CUDA, and the tensors lie on a GPU: build it with -DINGOT_CUDA=ON")
            index = torch.cuda.current_device() if device.index is None else device.index
            stream = torch.cuda.current_stream(device).cuda_stream
            self.device = CDevice(ctypes.sizeof(CDevice), 1, index, stream)
        else:
            require(device.type == "cpu", f"tensors on {device.type}: Ingot's kernels run on CUDA and on the CPU")
            self.device = CDevice(ctypes.sizeof(CDevice), 0, 0, None)

    def run(self, op: str, struct: type[ctypes.Structure], tensors: dict[str, Optional[Tensor]], **rest: Any) -> None:
        arguments = struct(struct_size=ctypes.sizeof(struct), **{name: view(t) for name, t in tensors.items()}, **rest)
        _call(op, ctypes.byref(self.device), ctypes.byref(arguments))

    def bytes_of(self, question: str, *arguments: Any) -> int:
        answer = ctypes.c_uint64()
        _call(question, ctypes.byref(self.device), *[ctypes.byref(argument) for argument in arguments],
              ctypes.byref(answer))
        return answer.value


def view(tensor: Optional[Tensor]) -> CTensor:
    if tensor is None:
        return CTensor()
    return CTensor(tensor.data_ptr(), DTYPES[tensor.dtype], tensor.dim(), _Axes(*tensor.shape),
                   _Axes(*tensor.stride()))
