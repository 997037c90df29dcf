"""Ranks: the processes that compute a rollout's products together, and what passes between them.

All of it is torch.distributed's. What passes are activations, whole columns of them, which are put
beside each other: nothing is added up across ranks, but for :meth:`Ranks.sum`, which an exact
engine never calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from accel.errors import RankError
from accel.refusal import Refusal

# The older name is deprecated from torch 2.13 on.
_gather: Any = getattr(dist, "all_gather_single", None) or getattr(
    dist, "all_gather_into_tensor", None
)
# Of consecutive ranks, by the process group they are part of and how many they are: torch makes
# groups on all processes at once, and a second engine shall find those of the first.
_MADE: dict[tuple[Any, int], Any] = {}


class Ranks:
    """``degree`` of them: ``given``, a process group or a mesh of one dimension, or else as many
    consecutive ranks of all, as DeepSpeed forms them.

    A copy is of the same processes; loaded from a file, it finds consecutive ones again.
    """

    def __init__(self, degree: int, given: Any = None) -> None:
        self.degree = degree
        self.given = given

    def __deepcopy__(self, memo: object) -> Ranks:
        return self

    def __reduce__(self) -> tuple[Callable[..., Ranks], tuple[int]]:
        return Ranks, (self.degree,)

    @cached_property
    def group(self) -> Any:
        """The process group. Where it must be made, all processes must come, in the same order."""
        if self.given is not None:
            return self.given.get_group() if hasattr(self.given, "get_group") else self.given
        every = dist.group.WORLD
        if every is not None and self.degree == every.size():
            return every
        key = (every, self.degree)
        if key not in _MADE:
            _MADE[key], _ = dist.new_subgroups(self.degree, timeout=_timeout(every))
        return _MADE[key]

    @property
    def rank(self) -> int:
        """This process's place among them."""
        return dist.get_rank(self.group)

    @property
    def stream(self) -> int:
        """A number that no other group of the processes has: the first of its ranks among all."""
        return int(dist.get_process_group_ranks(self.group)[0])

    def reasons(self) -> Iterator[Refusal]:
        """Why there are no such ranks; makes none."""
        asked, want = "inference_tp_size", f"processes in groups of {self.degree}"
        if not dist.is_available() or not dist.is_initialized():
            yield Refusal(asked, want, "no process group", "start under torchrun, and call "
                          "torch.distributed.init_process_group")  # fmt: skip
        elif self.given is None:
            size = dist.get_world_size()
            if size % self.degree:
                yield Refusal(asked, want, f"{size} processes", "a size that divides them, or "
                              "inference_tp_group")  # fmt: skip
        elif getattr(self.given, "ndim", 1) != 1 or self.group.size() != self.degree:
            want = f"an inference_tp_group of {self.degree} ranks, in one dimension"
            yield Refusal(asked, want, repr(self.given), "take mesh['its dimension']")

    def gather(self, own: Tensor, parts: Sequence[slice]) -> Tensor:
        """Columns ``[..., own]`` of every rank beside each other: those that ``parts`` says."""
        sizes = [part.stop - part.start for part in parts]
        widest, lead = max(sizes), own.shape[:-1]
        rows = own.flatten(0, -2)
        if rows.shape[1] < widest:
            rows = F.pad(rows, (0, widest - rows.shape[1]))
        found = rows.new_empty(self.degree, *rows.shape)
        with self._waiting("a gather of activations"):
            _gather(found.flatten(0, 1), rows.contiguous(), group=self.group)
        if min(sizes) == widest:
            return found.transpose(0, 1).reshape(*lead, -1)
        return torch.cat([each[:, :size] for each, size in zip(found, sizes)], 1).view(*lead, -1)

    def sum(self, own: Tensor) -> Tensor:
        """Every rank's added up, in ``own``; in which order is the backend's to say."""
        with self._waiting("a sum of activations"):
            dist.all_reduce(own, group=self.group)
        return own

    def any(self, mine: bool, device: torch.device) -> bool:
        """True if it is on one of them."""
        flag = torch.tensor(int(mine), device=device)
        with self._waiting("whether to stop"):
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.group)
        return bool(flag)

    def exchange(self, mine: Any) -> list[Any]:
        """Every rank's, in their order: objects that can be pickled."""
        found: list[Any] = [None] * self.degree
        with self._waiting("what each was asked for"):
            dist.all_gather_object(found, mine, group=self.group)
        return found

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        """RankError where the others do not come in the group's time, or are gone."""
        try:
            yield
        except RuntimeError as error:
            others = [r for r in dist.get_process_group_ranks(self.group) if r != dist.get_rank()]
            raise RankError(
                f"rank {dist.get_rank()} waited for {what} from ranks {others} of its "
                f"tensor-parallel group, which did not come: {str(error).splitlines()[0]:.300}. "
                "One of them has raised or is gone: its own error says why. This group cannot be "
                "used any more; end all processes and start them again"
            ) from error


def _timeout(group: Any) -> Any:
    """How long the ranks of a group wait, if a backend of it says; None: torch's default, which
    :func:`torch.distributed.new_subgroups` would take in place of what the user chose."""
    for device in group._device_types:
        try:
            return group._get_backend(device).options._timeout
        except (AttributeError, RuntimeError):  # no such backend here, or it says nothing
            continue
    return None
