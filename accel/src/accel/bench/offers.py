"""What a plugin may bring to ``accel bench``: peers of its device, and what the device can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accel.op_builder import Request
from accel.refusal import Refusal


def _always(request: Request) -> Sequence[Refusal]:
    return ()


@dataclass(frozen=True)
class Peer:
    """Another library's way to compute an op; :meth:`accel.OpBuilder.peers` lists a plugin's.

    ``op``       the contract's name
    ``name``     what people call it
    ``prepare``  called with the op's arguments; returns a call without any that computes the op.
                 What a user of the library does once for each weight is done here, and not timed
    ``reasons``  why it cannot serve a request: not installed, another dtype, an option; it is then
                 named with them. What it computes is held against the contract before it is timed
    """

    op: str
    name: str
    prepare: Callable[..., Callable[[], Any]]
    reasons: Callable[[Request], Sequence[Refusal]] = _always


@dataclass(frozen=True)
class Ceiling:
    """The highest rate some means was seen to reach; :meth:`accel.Accelerator.ceilings` measures a
    device's own.

    ``what``    ``"read"`` or ``"copy"``, in bytes a second, or the name of a dtype, such as
                ``"float32"``: the flops a second of products in it
    ``rate``    per second
    ``method``  how it was measured
    """

    what: str
    rate: float
    method: str
