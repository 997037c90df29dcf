"""Gather and release: parameters whose values lie elsewhere, whoever put them there.

    with gathered(layer.weight, layer.bias):
        use(layer.weight)

ZeRO, offloading and the like leave a parameter in place and take its values away. What brings them
back registers a :class:`Gatherer`; where none is, or none of the parameters is away, ``gathered``
does nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch.distributed
from torch import Tensor


@runtime_checkable
class Gatherer(Protocol):
    """Brings back the values of the parameters it knows; shards and processes are its matter.

    Gathering may be a collective: then all processes enter and leave with the same parameters in
    the same order.
    """

    def knows(self, parameter: Tensor) -> bool:
        """True if the values of ``parameter`` may be away at times."""
        ...

    def absent(self, parameter: Tensor) -> bool:
        """True if the values of ``parameter`` are away and this gatherer can bring them."""
        ...

    def gather(self, parameter: Tensor) -> None:
        """Bring them: ``parameter`` itself holds them on return."""
        ...

    def release(self, parameter: Tensor, modified: bool) -> None:
        """Let them go; those of the first process are kept before, if ``modified``."""
        ...


@dataclass
class _Held:
    """A parameter that was gathered here, by how many blocks it is wanted, and whether one of them
    has written to it."""

    parameter: Tensor
    gatherer: Gatherer
    wanted: int = 0
    modified: bool = False


_gatherers: list[Gatherer] = []
_held: dict[int, _Held] = {}  # by the parameter's id, which cannot be reused while it is held
_lock = threading.RLock()


def register_gatherer(gatherer: Gatherer) -> None:
    """Ask ``gatherer`` too from now on, before those that were registered earlier. TypeError for
    what is no :class:`Gatherer`."""
    if isinstance(gatherer, type) or not isinstance(gatherer, Gatherer):
        raise TypeError(
            "register_gatherer: a gatherer is an object with knows(), absent(), gather() and "
            f"release(); found {gatherer!r:.80}"
        )
    _gatherers.insert(0, gatherer)


def unregister_gatherer(gatherer: Gatherer) -> None:
    """Ask it no more; it still releases what it has gathered. ValueError if it is not known."""
    _gatherers.remove(gatherer)


def gathered(*parameters: Tensor | None, modify: bool = False) -> AbstractContextManager[None]:
    """The values of ``parameters`` are there in the block; what was away before is away after.

    Re-entrant: of nested blocks, or of several threads, the last one to leave releases. An
    exception in the block, or in gathering a later parameter, releases too. ``modify`` says that
    the block writes to the parameters: the first process's values are kept.
    """
    if not _gatherers and not _held:
        return nullcontext()
    given = [p for p in parameters if p is not None]
    # What may be away when a compiled graph runs cannot be traced; nor can a lock for what is not.
    if torch.compiler.is_compiling() and not any(g.knows(p) for g in _gatherers for p in given):
        return nullcontext()
    return _gathered(given, modify)


@contextmanager
def _gathered(parameters: list[Tensor], modify: bool) -> Iterator[None]:
    with ExitStack() as stack:
        for parameter in parameters:
            if _take(parameter, modify):
                stack.callback(_leave, parameter)
        yield


def _take(parameter: Tensor, modify: bool) -> bool:
    """Whether this block holds the parameter: it was away, or other blocks hold it already."""
    with _lock:
        held = _held.get(id(parameter))
        if held is None:
            gatherer = next((g for g in _gatherers if g.absent(parameter)), None)
            if gatherer is None:
                return False
            gatherer.gather(parameter)
            held = _held[id(parameter)] = _Held(parameter, gatherer)
        held.wanted += 1
        held.modified |= modify
        return True


def _leave(parameter: Tensor) -> None:
    with _lock:
        held = _held[id(parameter)]
        held.wanted -= 1
        if not held.wanted:
            del _held[id(parameter)]
            held.gatherer.release(parameter, held.modified)


class PartitionedGatherer:
    """For parameters that say themselves how: ``ds_id``, ``ds_status``, ``all_gather()`` and
    ``partition()``, as those of DeepSpeed's ZeRO-3 do."""

    def knows(self, parameter: Any) -> bool:
        return hasattr(parameter, "ds_id")

    def absent(self, parameter: Any) -> bool:
        status = getattr(parameter, "ds_status", None)
        return self.knows(parameter) and getattr(status, "name", "") == "NOT_AVAILABLE"

    def gather(self, parameter: Any) -> None:
        parameter.all_gather()

    def release(self, parameter: Any, modified: bool) -> None:
        group = getattr(parameter, "ds_process_group", None)
        if modified and torch.distributed.is_initialized():
            torch.distributed.broadcast(parameter.data, group=group, group_src=0)
        parameter.partition(has_been_updated=modified)
