"""Weights packed for a library's products, and how long a packed copy may be kept.

Packing costs more than a small product, and a packed copy goes stale when the weight changes in a
way nobody can see (``.data``). So a copy is only kept where the user vouches for the weights::

    with accel_cpu.packing.frozen_weights():
        ...                                # weights do not change in here
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

# Those kept, by what made them of which tensors. Those tensors' memory is kept beside them, so that
# its addresses are not given to others.
_Kept = dict[tuple[Any, ...], tuple[tuple[Tensor | None, ...], Any]]
_frozen: ContextVar[_Kept | None] = ContextVar("accel_cpu_frozen_weights", default=None)


@contextmanager
def frozen_weights() -> Iterator[None]:
    """Keep packed copies of the weights used in the body; dropped at its end (may be nested).

    The caller promises that no weight changes inside. For this thread or task only.
    """
    if _frozen.get() is not None:
        yield
        return
    token = _frozen.set({})
    try:
        yield
    finally:
        _frozen.reset(token)


def packed(pack: Callable[..., Any], rows: int, *tensors: Tensor | None) -> Any:
    """``pack(rows, *tensors)``, for products with ``rows`` rows; of frozen weights the first."""
    frozen = _frozen.get()
    if frozen is None:
        return pack(rows, *tensors)
    key = (pack, *map(_place, tensors))
    if key not in frozen:
        memory = tuple(None if t is None else t.detach() for t in tensors)
        frozen[key] = (memory, pack(rows, *tensors))
    return frozen[key][1]


def _place(tensor: Tensor | None) -> tuple[Any, ...] | None:
    """What two tensors share only if they are the same numbers in the same memory."""
    if tensor is None:
        return None
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
