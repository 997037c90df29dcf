"""Company: processes that hold parts of one model's parameters generate together.

What gathers a layer's parameters when it runs waits for all of them. A process whose answers have
ended, or which makes fewer waves, must go on as long as another does (transformers calls it
``synced_gpus``); one that fails must say so to the others, who would wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist
from torch import nn

from accel.errors import AccelError, RankError, UnsupportedModelError

# What process groups say when another process is gone, where they have no class of error for it.
_SAYS = ("onnection closed by peer", "onnection reset by peer", "imed out", "roken pipe",
         "onnection refused", "timeout")  # fmt: skip


class Company:
    """Those that a model is sharded over, or will be over ``mesh``; of another there is nobody.

    They exchange four numbers before each forward that gathers, when a rollout begins and when it
    ends, so that all hear of a failure in the same exchange.

    ``gathers``  forwards gather parameters, so that all must run them together
    ``joint``    others share a forward's products, and wait for this process in it
    ``torn``     this process has left a forward that others are still in
    """

    def __init__(self, model: nn.Module, mesh: Any = None, *, joint: bool = False) -> None:
        self._model = model
        self._groups = list(_groups(model) if mesh is None else _groups_of(mesh))
        self._device = next(model.parameters()).device
        self.gathers = bool(self._groups)
        self.joint = joint
        self.torn = False

    def __bool__(self) -> bool:
        return bool(self._groups)

    def begin(self, level: int) -> int:
        """All ask for a rollout, and their models have the same parameters; returns the lowest
        ``level`` of all. UnsupportedModelError, on all of them, if the models differ."""
        if not self._groups:
            return level
        names = sorted((n, _shape(p), str(p.dtype)) for n, p in self._model.named_parameters())
        found = crc32(repr(names).encode())
        most, least, lowest = self._exchange(found, -found, -level)
        if most != -least:
            adapters = sum("lora_" in name for name, *_ in names)
            raise UnsupportedModelError(
                "the processes that share this model do not have the same parameters, and could "
                f"not gather them together; here are {len(names)}, {adapters} of them of LoRA "
                "adapters: add an adapter on every rank, of one shape, or on none"
            )
        return -lowest

    @contextmanager
    def forward(self) -> Iterator[None]:
        """This process runs a forward in the block: all others must know, and run one too."""
        if self.gathers:
            self._exchange(1)
        with self.inside() if self.gathers or self.joint else nullcontext():
            yield

    @contextmanager
    def inside(self) -> Iterator[None]:
        """What gathers in the block cannot be left by one process alone."""
        self.torn = True
        yield
        self.torn = False

    def keep(self, forward: Callable[[], object]) -> None:
        """This process has run its own: run one for each of the others', until none comes."""
        while self._groups:
            others_come = self._exchange(0)[0]
            if not (self.gathers and others_come):
                return
            with self.inside():
                forward()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """An error in the block is told to the others, unless they wait in the middle of a forward
        that this process has left: then they wait until their process group's timeout, or until
        this process ends."""
        with reached():
            try:
                yield
            except RankError:
                raise
            except BaseException as error:
                if not self.torn and not _is_lost(error):
                    self.tell()
                raise

    def tell(self) -> None:
        """The others hear, in their next exchange, that this process has failed."""
        if self._groups:
            with suppress(RuntimeError):  # what has happened here is what counts
                self._exchange(failed=dist.get_rank() + 1)

    def _exchange(self, *mine: int, failed: int = 0) -> list[int]:
        """The maxima over all; RankError if another process has failed."""
        given = (failed, *mine, 0, 0, 0)[:4]
        numbers = torch.tensor(given, dtype=torch.int64, device=self._device)
        for group in self._groups:  # one after the other they make the maximum over all
            dist.all_reduce(numbers, dist.ReduceOp.MAX, group=group)
        who, *found = numbers.tolist()
        if who and not failed:
            raise RankError(
                f"rank {who - 1} failed in generate, which rank {dist.get_rank()} runs with it; "
                "its own error is the cause. Nothing of the model was changed: all ranks may "
                "generate again"
            )
        return found


@contextmanager
def reached() -> Iterator[None]:
    """What a process group raises in the block, where another process is gone or does not come, is
    a RankError."""
    try:
        yield
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise RankError(
            f"rank {dist.get_rank()} waited for the processes that share the model, and another "
            f"has ended or did not come within the process group's timeout: {error}"
        ) from error


def _is_lost(error: BaseException) -> bool:
    if not isinstance(error, RuntimeError) or isinstance(error, AccelError):
        return False
    if not (dist.is_available() and dist.is_initialized()):
        return False
    return isinstance(error, dist.DistError) or any(words in str(error) for words in _SAYS)


def _shape(parameter: Any) -> tuple[int, ...]:
    """As a whole, of what is partitioned too."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _groups(model: nn.Module) -> Iterator[Any]:
    """A group for each dimension of the mesh that parameters are spread over."""
    for parameter in model.parameters():
        found: Any = parameter
        if hasattr(found, "device_mesh"):  # of fully_shard: a DTensor
            yield from _groups_of(found.device_mesh)
            return
        if hasattr(found, "ds_id"):  # of DeepSpeed's ZeRO-3
            if dist.is_available() and dist.is_initialized():
                yield getattr(found, "ds_process_group", None)
            return


def _groups_of(mesh: Any) -> Iterator[Any]:
    yield from (mesh.get_group(dimension) for dimension in range(mesh.ndim))
