"""The toy device's memory: 1 GiB, counted to the byte, and full of NaN where nothing was written.

Torch takes no allocator written in Python, but it adopts foreign memory: a DLPack capsule whose
device type is "extension" becomes a tensor on the private device, with real storage that views
share, and the capsule's deleter says when that storage dies.
"""

import ctypes
from typing import NamedTuple

import torch
from torch.types import Device

TOTAL = 1 << 30
_EXTENSION, _UINT8, _NAME = 12, 1, b"dltensor"


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype_code", ctypes.c_uint8),
        ("dtype_bits", ctypes.c_uint8),
        ("dtype_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _DLManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]


class _Block(NamedTuple):
    storage: torch.UntypedStorage  # the bytes, as the CPU sees them
    nbytes: int
    managed: _DLManagedTensor  # torch holds its address, so somebody must hold the object


class Usage:
    """Bytes of tensors that are alive now, and the most there have been."""

    current = 0
    peak = 0


_blocks: dict[int, _Block] = {}  # by address
_new_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", ctypes.pythonapi))


@_Deleter
def _free(managed: int) -> None:
    Usage.current -= _blocks.pop(_DLManagedTensor.from_address(managed).tensor.data).nbytes


def allocate(nbytes: int) -> torch.Tensor:
    """`nbytes` of device memory as a uint8 tensor, all 0xFF: NaN in every floating-point type."""
    if nbytes > TOTAL - Usage.current:
        free = f"{TOTAL - Usage.current} of {TOTAL} bytes are free"
        raise torch.OutOfMemoryError(f"toy: tried to allocate {nbytes} bytes; {free}")
    # At least one byte, so that every block has its own address. Not torch.full: it uses OpenMP,
    # which hangs in a forked child.
    memory = bytearray(b"\xff") * max(nbytes, 1)
    storage = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    shape = (ctypes.c_int64 * 1)(nbytes)
    tensor = _DLTensor(storage.data_ptr(), _EXTENSION, 0, 1, _UINT8, 8, 1, shape)
    managed = _DLManagedTensor(tensor, None, _free)
    _blocks[storage.data_ptr()] = _Block(storage, nbytes, managed)
    Usage.current += nbytes
    Usage.peak = max(Usage.peak, Usage.current)
    return torch.from_dlpack(_new_capsule(ctypes.addressof(managed), _NAME, None))


def host_alias(tensor: torch.Tensor) -> torch.Tensor:
    """A device tensor's memory as a CPU tensor.

    It keeps the bytes alive, though not counted, when `tensor` dies: queued work may still use
    them, as with an allocator that reuses memory in stream order.
    """
    if not tensor.numel():  # nothing to share, and `out=` may make it larger
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
    storage = _blocks[tensor.untyped_storage().data_ptr()].storage
    alias = torch.empty(0, dtype=tensor.dtype, device="cpu")
    alias.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
    alias = alias.conj() if tensor.is_conj() else alias
    return torch._neg_view(alias) if tensor.is_neg() else alias


def new_storage(
    cls: type, *args: object, device: Device = None, **kwargs: object
) -> torch.UntypedStorage:
    """`torch.UntypedStorage(n, device="toy")`; torch itself crashes for want of a C++ allocator.

    `copy.deepcopy` and `torch.load` come through here.
    """
    if device is None or torch.device(device).type != "toy":
        return torch._C.StorageBase.__new__(cls, *args, device=device, **kwargs)
    return allocate(*(args or [0])).untyped_storage()
